"""Whatever is wrong with the place weights should come from, the user gets one line that names it."""

import pickle
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sam2_3dmed.errors import WeightsError
from sam2_3dmed.model.weights import read_sam2


@pytest.mark.parametrize("twin", ["changed", "alone"])
def test_two_positional_buffers_that_differ_are_refused(hf_folder: Path, tmp_path: Path, twin: str) -> None:
    state = load_file(hf_folder / "model.safetensors")
    if twin == "changed":
        state["prompt_encoder.shared_embedding.positional_embedding"] += 1e-3
    else:
        del state["shared_image_embedding.positional_embedding"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"shared_image_embedding and prompt_encoder\.shared_embedding differ"):
        read_sam2(tmp_path)


def write(path: Path, content: object) -> None:
    """Bytes as they are, anything else as torch saves it."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)


def halved(content: object) -> bytes:
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


BROKEN_FILES = {
    "empty.pt": (b"", "not a readable PyTorch checkpoint"),
    "text.pt": (b"not a checkpoint", "not a readable PyTorch checkpoint"),
    "truncated.pt": (halved({"model": {"a": torch.zeros(999)}}), "not a readable PyTorch checkpoint"),
    "code.pt": (pickle.dumps(print, protocol=2), "not a readable PyTorch checkpoint"),
    "list.pt": ([torch.zeros(1)], "no 'model' dictionary"),
    "no_model.pt": ({"state_dict": {}}, "no 'model' dictionary"),
    "no_tensors.pth": ({"model": {"a": 3}}, "no 'model' dictionary of tensors"),
    "another_model.pt": ({"model": {"a": torch.zeros(1)}}, "not a SAM2 checkpoint"),
    "folder/model.safetensors": (b"\0" * 7, "not a readable safetensors file"),
    "weights.bin": (b"", "no such weights"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_gets_one_line(name: str, tmp_path: Path) -> None:
    content, message = BROKEN_FILES[name]
    source = tmp_path / name
    source.parent.mkdir(exist_ok=True)
    write(source, content)
    if source.suffix == ".safetensors":
        source = source.parent
    assert_one_line(source, message)


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.pt", "no such file"), (".", "no model.safetensors in this folder"), ("none", "no such weights")],
)
def test_nothing_there_gets_one_line(name: str, message: str, tmp_path: Path) -> None:
    assert_one_line(tmp_path / name, message)


def assert_one_line(source: Path | str, message: str) -> str:
    with pytest.raises(WeightsError, match=message) as caught:
        read_sam2(source)
    line = str(caught.value)
    assert line.startswith(str(source))
    assert "\n" not in line
    assert "weights_only" not in line  # torch advises to switch it off; we do not
    return line


@pytest.mark.parametrize("error", [OSError("no route\nto the host"), RuntimeError()])
def test_a_hub_that_cannot_be_reached_gets_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    line = assert_one_line("facebook/sam2.1-hiera-tiny", "cannot be downloaded")
    assert "nano for the small network" in line
    assert "none to train from scratch" in line
    assert ("no route" if str(error) else "RuntimeError") in line


def test_offline_without_a_cached_file_gets_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What HF_HUB_OFFLINE=1 sets, which the hub's library reads when it is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_one_line("facebook/sam2.1-hiera-tiny", "cannot be downloaded")


def test_a_hub_id_reads_what_was_downloaded(monkeypatch: pytest.MonkeyPatch, hf_folder: Path) -> None:
    asked = []

    def download(hub_id: str, name: str) -> str:
        asked.append((hub_id, name))
        return str(hf_folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert read_sam2("someone/nano").source == "someone/nano"
    assert asked == [("someone/nano", "model.safetensors")]
