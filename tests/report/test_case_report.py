"""The pictures of one case, with an image and without, and the scale all cases share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.inference.interface import Auxiliary, SlabPositions
from sam2_3dmed.report.charts import distance_map
from sam2_3dmed.report.contents import read_run
from sam2_3dmed.report.planes import (
    CaseReport,
    Surfaces,
    case_report,
    distance_colours,
    distance_limit_mm,
    still,
)
from sam2_3dmed.report.surfaces import Mesh
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume

MANY = 10**6


def nothing(entry, image):
    return None


def mesh(*distances_mm: float) -> Mesh:
    return Mesh(np.zeros((len(distances_mm), 3)), np.zeros((0, 3), dtype=int), np.array(distances_mm))


def report_with(*meshes: Mesh | None) -> CaseReport:
    return CaseReport("only", "a", (), (), [Surfaces("organ", "#E69F00", meshes[0], meshes[-1])])


@pytest.mark.parametrize(
    ("largest", "limit"), [(0.0, 1), (0.9, 1), (1.2, 2), (3.0, 5), (5.0, 5), (7.0, 10), (14.0, 20), (60.0, 100)]
)
def test_the_scale_ends_at_a_round_number(largest: float, limit: float) -> None:
    assert distance_limit_mm([report_with(mesh(largest, largest))]) == limit


def test_one_wild_surface_does_not_spoil_the_scale() -> None:
    assert distance_limit_mm([report_with(mesh(1.5), mesh(1.5)), report_with(mesh(1.0), mesh(80.0))]) == 2
    assert distance_limit_mm([report_with(mesh(*[1.5] * 19, 80.0))]) == 2


def test_the_scale_ignores_what_is_infinitely_far_and_needs_no_case() -> None:
    assert distance_limit_mm([report_with(mesh(np.inf), mesh(3.0))]) == 5
    assert distance_limit_mm([report_with(None)]) == 1
    assert distance_limit_mm([]) == 1


def test_colours_end_at_the_limit() -> None:
    colours = distance_colours(np.array([0.0, 2.0, 4.0, np.inf]), 4.0)
    assert colours.tolist() == [list(distance_map()(share)[:3]) for share in (0.0, 0.5, 1.0, 1.0)]


def test_a_case_with_everything(run: Path) -> None:
    contents = read_run(run)
    entry, plan, figures = contents.cases[2], contents.record.plan, run / "figures"
    positions = SlabPositions((0, 1, 2), np.zeros((3, 3), dtype=np.float32))

    def auxiliary(given, image: Volume) -> Auxiliary:
        assert given is entry
        return Auxiliary(image.with_array(np.zeros(image.shape, dtype=np.uint8)), (positions,))

    report = case_report("worst", entry, plan, figures, auxiliary, MANY)
    assert (report.rank, report.name) == ("worst", "three")
    assert len(report.panels) == 5
    assert "P_bd" in report.panels[2].title
    assert "saying 0 for every pair would give 1.33" in report.charts[1].text
    assert [surfaces.label for surfaces in report.surfaces] == list(plan.labels.values())
    # the prediction is the truth 3 voxels of 1.5 mm aside
    drawn = still(report, distance_limit_mm([report]), figures)
    assert drawn.address.startswith("data:image/svg+xml;base64,")
    assert distance_limit_mm([report]) == 5
    names = {path.stem for path in figures.iterdir()}
    assert names == {"slices_worst", "dice_worst", "positions_worst", "surfaces_worst"}


def test_without_an_image_the_masks_are_drawn(run: Path) -> None:
    contents = read_run(run)
    entry = replace(contents.cases[1], images=())
    report = case_report("only", entry, contents.record.plan, run / "figures", nothing, MANY)
    assert len(report.panels) == 4
    assert len(report.charts) == 1
    assert not any(surfaces.truth.distances_mm.any() for surfaces in report.surfaces), "the masks are equal"


def test_files_on_different_grids_are_named(run: Path) -> None:
    contents = read_run(run)
    entry = contents.cases[1]
    label = read_label(entry.prediction)
    Volume(label.array[:-1], label.affine).write(entry.prediction)
    with pytest.raises(VolumeError, match=r"two\.nii\.gz: not on the grid of"):
        case_report("only", entry, contents.record.plan, run / "figures", nothing, MANY)


def test_no_surface_no_still(run: Path) -> None:
    assert still(report_with(None), 1.0, run) is None
