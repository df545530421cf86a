"""What an ONNX file says of itself, and how it is opened."""

import importlib.util
from pathlib import Path

import pytest

from sam2_3dmed.errors import ConfigError, WeightsError
from sam2_3dmed.inference.onnx_network import FORMAT, OnnxRecord, open_session, read_record, require_onnx, slab_file

RECORD = OnnxRecord(
    part="slab",
    format=FORMAT,
    version="7",  # would be a number in JSON
    model_sha256="00",
    run_sha256="11",
    opset=18,
    image_size=64,
    slab_slices=3,
    classes={"1": "left atrium"},
    outputs=("segmentation",),
    checked_on="a phantom",
    max_abs_difference={"segmentation": 1e-6},
    max_rel_difference={"segmentation": 2e-7},
    tolerance=1e-3,
)


class Described:
    """The one method of a session that `read_record` calls."""

    def __init__(self, properties: dict[str, str]) -> None:
        self.custom_metadata_map = properties

    def get_modelmeta(self) -> "Described":
        return self


def test_the_record_survives_its_properties() -> None:
    properties = RECORD.properties()
    assert properties["version"] == "7"
    assert properties["classes"] == '{"1": "left atrium"}'
    assert OnnxRecord.from_properties(properties | {"added": "by someone"}) == RECORD
    assert read_record(Described(properties), Path("slab_3.onnx")) == RECORD
    encoder = RECORD.model_copy(update={"part": "encoder", "slab_slices": None})
    assert OnnxRecord.from_properties(encoder.properties()) == encoder


def test_files_that_are_not_ours_or_of_another_format() -> None:
    path = Path("encoder.onnx")
    for properties in ({}, {"format": str(FORMAT)}, RECORD.properties() | {"opset": "eighteen"}):
        with pytest.raises(WeightsError, match=r"^encoder\.onnx: not written by sam2-3dmed export$"):
            read_record(Described(properties), path)
    with pytest.raises(WeightsError, match=rf"written by sam2-3dmed 7 in format 99, and this version reads {FORMAT}; "):
        read_record(Described(RECORD.properties() | {"format": "99"}), path)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"no model at all"])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / slab_file(3)
    with pytest.raises(WeightsError, match=r"slab_3\.onnx: no such file; sam2-3dmed export writes it"):
        open_session(path)
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"slab_3\.onnx: cannot be read: ") as caught:
        open_session(path)
    assert "\n" not in str(caught.value)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_onnx("onnx", "onnxruntime")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^ONNX needs the extra: pip install 'sam2-3dmed\[export\]'$"):
        open_session(tmp_path / "encoder.onnx")
