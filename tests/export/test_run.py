"""An export: what is in the folder, what each file says, when nothing is written, and how others run it."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from sam2_3dmed import Volume, load_model
from sam2_3dmed.errors import ConfigError, DataError, WeightsError
from sam2_3dmed.export.run import export_run
from sam2_3dmed.processes.journal import checksum


def said(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_what_the_files_say(make_exported) -> None:
    run, exported = make_exported()
    names = ["config.yaml", "encoder.onnx", "slab_2.onnx", "slab_3.onnx"]
    assert sorted(path.name for path in exported.iterdir()) == names
    assert (exported / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    slab = said(exported / "slab_3.onnx")
    assert slab["part"] == "slab"
    assert slab["model_sha256"] == checksum([run / "model.safetensors"])
    assert slab["checked_on"] == "a phantom"
    numbers = {key: json.loads(slab[key]) for key in ("opset", "image_size", "slab_slices", "classes")}
    assert numbers == {
        "opset": 18,
        "image_size": 64,
        "slab_slices": 3,
        "classes": {"1": "organ 1", "2": "organ 2"},
    }
    for key in ("max_abs_difference", "max_rel_difference"):
        differences = json.loads(slab[key])
        assert list(differences) == ["segmentation", "boundary", "relative_position"]
        assert all(0 <= value < 1e-3 for value in differences.values())
    encoder = said(exported / "encoder.onnx")
    assert encoder["model_sha256"] == slab["model_sha256"]
    assert (encoder["part"], encoder["slab_slices"]) == ("encoder", "null")


def test_a_file_that_is_not_equal_enough_is_not_written(make_exported, tmp_path: Path) -> None:
    run, _ = make_exported()
    with pytest.raises(WeightsError, match=r"encoder\.onnx: z differs .* and 0 is allowed; nothing was written for it"):
        export_run(run, tmp_path / "out", tolerance=0)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unfinished_run(make_exported, tmp_path: Path) -> None:
    run, _ = make_exported()
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    with pytest.raises(WeightsError, match=r"this run is not finished \(it has no model\.safetensors\)"):
        export_run(tmp_path, tmp_path / "out")


def test_a_folder_that_holds_another_run(make_exported, write_random_run, tmp_path: Path) -> None:
    run, exported = make_exported()
    other = write_random_run(tmp_path / "run", num_classes=1, parts=False)
    before = checksum(sorted(exported.iterdir()))
    with pytest.raises(DataError, match=r"exported: holds another run or its export"):
        export_run(other, exported)
    assert checksum(sorted(exported.iterdir())) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: cannot be made"):
        export_run(run, tmp_path / "file")


@pytest.mark.parametrize("length", [0, 3])
def test_lengths_that_no_slab_needs(make_exported, tmp_path: Path, length: int) -> None:
    run, _ = make_exported()
    with pytest.raises(ConfigError, match=f"--length {length}: expected 1 to 2, since the run's slabs have 3"):
        export_run(run, tmp_path, lengths=[length])


def test_without_the_extra(make_exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = make_exported()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    with pytest.raises(ConfigError, match=r"ONNX needs the extra: pip install 'sam2-3dmed\[export\]'"):
        export_run(run, tmp_path)


def test_the_guides_way_to_run_it_without_our_package(
    make_exported, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, exported = make_exported()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, "spleen-onnx")
    scan = Volume.read(shared_data / "Task04_Hippocampus" / "imagesTr" / "hippocampus_001.nii.gz")
    scan = Volume(scan.array[:, :, :3], scan.affine)
    scan.write(Path("ct.nii.gz"))
    guide = Path(__file__).parents[2] / "docs" / "how_to" / "export.md"
    (code,) = re.findall(r"^```python\n(.*?)^```$", guide.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, np.ndarray] = {}
    exec(code.replace("slab_6", "slab_3"), names)
    predictor = load_model("spleen-onnx", backend="onnxruntime", direction="forward")
    expected = predictor.predict_slices(predictor.preprocessing.slices(scan))
    assert names["mask"].shape == expected.shape
    assert (names["mask"] == expected).mean() > 0.999
    assert 0 < np.count_nonzero(expected) < expected.size


def test_slice_mixing_without_memory_gives_the_same_masks(write_random_run, tmp_path: Path) -> None:
    run = write_random_run(tmp_path / "run", changes=("model.slice_mixing=true", "model.memory=none"))
    export_run(run, tmp_path / "onnx")
    slices = np.random.default_rng(0).random((5, 1, 40, 50), dtype=np.float32)
    masks = [
        load_model(folder, backend=backend, precision="32").predict_slices(slices)
        for folder, backend in ((run, "pytorch"), (tmp_path / "onnx", "onnxruntime"))
    ]
    assert (masks[0] == masks[1]).mean() > 0.999
    assert np.count_nonzero(masks[0]) > 0


def test_a_memory_that_draws_random_numbers_is_refused(write_random_run, tmp_path: Path) -> None:
    run = write_random_run(tmp_path / "run", parts=False)
    text = (run / "config.yaml").read_text()
    assert "memory: recent" in text
    (run / "config.yaml").write_text(text.replace("memory: recent", "memory: self_sorting"))
    with pytest.raises(ConfigError, match=r"model.memory self_sorting draws random numbers and cannot become ONNX$"):
        export_run(run, tmp_path / "onnx")
