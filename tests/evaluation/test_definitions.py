from dataclasses import fields

import pytest

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.definitions import METRICS, check_policy, describe_columns, describe_surface
from sam2_3dmed.evaluation.metrics import ClassMetrics


def test_every_metric_is_a_field_of_the_row():
    assert set(METRICS) <= {field.name for field in fields(ClassMetrics)}


def test_columns_say_surface_and_tolerance_where_they_matter():
    columns = describe_columns((2.0, 0.5), "voxel")
    assert columns["nsd_0.5mm"]["tolerance_mm"] == 0.5
    on_surface = {name for name, described in columns.items() if described.get("surface") == "voxel"}
    assert on_surface == {"hd95_mm", "hd100_mm", "assd_mm", "nsd_2mm", "nsd_0.5mm"}
    assert {name for name, described in columns.items() if described["unit"] == "mm"} == {
        name for name in columns if name.endswith("_mm")
    }
    assert {name for name, described in columns.items() if described["better"] == "zero"} == {
        "volume_error_ml",
        "volume_error_percent",
    }
    assert all(described["definition"] for described in columns.values())


def test_surface_in_words():
    assert describe_surface("surfel")["definition"] == "surfel"
    assert "face" in describe_surface("voxel")["meaning"]


def test_no_such_policy():
    with pytest.raises(VolumeError, match="no policy 'zero'"):
        check_policy("zero")
