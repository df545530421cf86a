"""What the project writes for itself: weights, checkpoints, caches and the manifest."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import onnx
import safetensors.numpy
import torch
from onnx import TensorProto, helper

from sam2_3dmed.config import AugmentationConfig, ChannelPlan, FeatureCacheConfig, NetworkConfig, Plan
from sam2_3dmed.data.augment import SlabAugmentation
from sam2_3dmed.data.cache import build_cache
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.slabs import SampleKey, SlabDataset, ViewDataset, collate
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.inference.manifest import Manifest
from sam2_3dmed.inference.onnx_network import OnnxRecord, open_session, read_record
from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.weights import Sam2Weights, read_sam2
from sam2_3dmed.run.run_folder import read_weights
from sam2_3dmed.training.checkpoints import newest_whole_state, read_checkpoint, write_checkpoint
from sam2_3dmed.training.feature_cache import FeatureCache
from sam2_3dmed.volume.volume import Volume

from .images import AFFINE, voxels
from .images import label as make_label
from .kinds import Kind

State = dict[str, torch.Tensor]


def state() -> State:
    return {"a.weight": torch.arange(12.0).view(3, 4), "a.bias": torch.tensor([0.5, -1]), "b": torch.tensor(3)}


def check_weights(folder: Path, found: State, whole: State) -> None:
    """As safetensors reads them for NumPy."""
    expected = safetensors.numpy.load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.isfinite(tensor).all()
        if tensor.dtype in (torch.float32, torch.int64):
            assert np.array_equal(tensor.numpy(), expected[name])


def make_weights(folder: Path) -> None:
    safetensors.numpy.save_file(
        {name: tensor.numpy() for name, tensor in state().items()}, folder / "model.safetensors"
    )


def meta_state() -> State:
    """A few of the names of Meta's checkpoint of size nano, with small tensors."""
    names = [f"image_encoder.trunk.blocks.{number}.norm1.weight" for number in range(5)]
    names += [f"sam_prompt_encoder.point_embeddings.{number}.weight" for number in range(4)]
    names += ["sam_prompt_encoder.mask_downscaling.0.weight", "obj_ptr_tpos_proj.weight"]
    tensors = {name: torch.arange(2.0).view(1, 2) + number for number, name in enumerate(names)}
    return tensors | {"image_encoder.trunk.patch_embed.proj.weight": torch.arange(24.0).view(24, 1, 1, 1)}


def make_meta(folder: Path) -> None:
    torch.save({"model": meta_state()}, folder / "weights.pt")


def check_meta(folder: Path, found: Sam2Weights, whole: Sam2Weights) -> None:
    assert found.size == whole.size
    content = torch.load(folder / "weights.pt", weights_only=True)["model"]
    points = [name for name in content if "point_embeddings" in name]
    assert len(found.state) == len(content) - len(points) + bool(points)
    assert sum(tensor.numel() for tensor in found.state.values()) == sum(tensor.numel() for tensor in content.values())
    assert all(torch.isfinite(tensor).all() for tensor in found.state.values())


def make_folder_of_weights(folder: Path) -> None:
    names = [f"vision_encoder.backbone.blocks.{number}.a" for number in range(5)]
    tensors = {name: np.ones((1, 2), np.float32) for name in names}
    tensors["vision_encoder.backbone.patch_embed.projection.weight"] = np.ones((24, 1), np.float32)
    for name in ("prompt_encoder.shared_embedding", "shared_image_embedding"):
        tensors[f"{name}.positional_embedding"] = np.ones((2, 2), np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def check_folder_of_weights(folder: Path, found: Sam2Weights, whole: Sam2Weights) -> None:
    check_weights(folder, found.state | _twin(folder), whole.state)


def _twin(folder: Path) -> State:
    name = "prompt_encoder.shared_embedding.positional_embedding"
    given = safetensors.numpy.load_file(folder / "model.safetensors")
    return {name: torch.from_numpy(given[name].copy())} if name in given else {}


def checkpoint() -> dict[str, Any]:
    parts = {name: {} for name in ("optimizer", "schedule", "means", "cooldown", "early_stopping")}
    progress = {"step": 7, "epoch": 1}
    return {"state_dict": state(), "weights_in_training": None, **parts, "progress": progress, "best_score": 0.5}


def make_states(folder: Path) -> None:
    write_checkpoint(checkpoint() | {"progress": {"step": 1}}, folder / "step-00000001.ckpt")
    write_checkpoint(checkpoint(), folder / "step-00000002.ckpt")


def members(file: Path) -> dict[str, bytes]:
    with ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_states(folder: Path) -> tuple[str, dict[str, Any], dict[str, bytes]]:
    """The state to go on from: its name, its content, and the members of the file. A broken one is put back."""
    found = newest_whole_state(folder, state())
    for broken in folder.glob("*.broken"):
        broken.replace(broken.with_suffix(".ckpt"))
    assert found is not None, "the state before is whole"
    return found.name, read_checkpoint(found), members(found)


def check_states(folder: Path, found: Any, whole: Any) -> None:
    """The state before is used, or this one, which is as it was if its members are, and has no more than is in them."""
    name, content, inside = found
    assert name in ("step-00000001.ckpt", "step-00000002.ckpt")
    tensors = content["state_dict"]
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    assert sum(stored.values()) <= sum(len(data) for member, data in inside.items() if "/data/" in member)
    if name == "step-00000001.ckpt" or inside == whole[2]:
        expected = checkpoint() | ({"progress": {"step": 1}} if name == "step-00000001.ckpt" else {})
        assert tensors.keys() == expected["state_dict"].keys()
        assert all(torch.equal(tensor, expected["state_dict"][key]) for key, tensor in tensors.items())
        assert {**content, "state_dict": 0} == {**expected, "state_dict": 0}


PLAN = Plan(
    dataset="x",
    channels=(ChannelPlan(name="CT", normalisation="fixed", low=0, high=3000),),
    labels={1: "liver", 2: "tumour"},
)


def make_cache(folder: Path) -> None:
    for part, volume in (("images", Volume(voxels(), AFFINE)), ("labels", make_label())):
        (folder / part).mkdir()
        volume.write(folder / part / "a.nii.gz")
        os.utime(folder / part / "a.nii.gz", (1e9, 1e9))
    read_cache(folder)


def read_cache(folder: Path) -> tuple[Any, ...]:
    """What training takes from the cache."""
    (case,) = build_cache(read_dataset(folder), PLAN, folder / "cache", workers=0)
    held = {k: slices.tolist() for k, slices in case.class_slices.items()}
    return case.num_slices, held, case.annotated_slices, np.array(case.image), np.array(case.label)


def check_cache(folder: Path, found: tuple[Any, ...], whole: tuple[Any, ...]) -> None:
    """Whatever was damaged is made anew."""
    assert found[:3] == whole[:3]
    for array, expected in zip(found[3:], whole[3:], strict=True):
        assert array.dtype == expected.dtype
        assert np.array_equal(array, expected)


def make_features(folder: Path) -> None:
    make_cache(folder)
    read_features(folder)


def read_features(folder: Path) -> torch.Tensor:
    (case,) = build_cache(read_dataset(folder), PLAN, folder / "cache", workers=0)
    augmentation = SlabAugmentation(AugmentationConfig(), 64)
    slabs = SlabDataset([case], slab_slices=3, augmentation=augmentation, foreground_fraction=0, seed=0)
    views = ViewDataset(slabs, num_views=1, refresh=None)
    config = FeatureCacheConfig(views=1, budget_gb=0, folder=str(folder / "features"))
    (batch,) = collate([views[SampleKey(0, 0)]])
    return FeatureCache(_encoder(), views, config, folder)(batch).z


@cache
def _encoder() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_network(NetworkConfig(size="nano", image_size=64), 1).encoder
    encoder.freeze()
    return encoder


def check_features(folder: Path, found: torch.Tensor, whole: torch.Tensor) -> None:
    """Whatever was damaged is computed anew."""
    assert torch.equal(found, whole)


def manifest_of(folder: Path) -> tuple[Manifest, list[Input]]:
    inputs = [Input(name, (folder / f"{name}.nii.gz",)) for name in ("a", "b")]
    return Manifest(folder / "out", "run", "checksum", {"tta": True, "name": "é"}), inputs


def make_manifest(folder: Path) -> None:
    manifest, inputs = manifest_of(folder)
    (folder / "out").mkdir()
    for item in inputs:
        item.files[0].write_bytes(b"scan")
        os.utime(item.files[0], (1e9, 1e9))
        output = folder / "out" / f"{item.name}.nii.gz"
        output.write_bytes(f"mask of {item.name}".encode())
        manifest.note(item, manifest.decisive(item), [output], 1.0)
    fixed = {"worker": "here:1", "finished": "2020-01-01T00:00:00+00:00", "version": "1"}
    lines = [json.dumps(line | fixed, ensure_ascii=False) + "\n" for line in manifest.lines()]
    (folder / "out" / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")


def read_manifest(folder: Path) -> tuple[list[bool], list[str]]:
    manifest, inputs = manifest_of(folder)
    text = (folder / "out" / "manifest.jsonl").read_text(encoding="utf-8", errors="replace")
    return manifest.finished(inputs), text.split("\n")


def check_manifest(folder: Path, found: tuple[list[bool], list[str]], whole: tuple[list[bool], list[str]]) -> None:
    """An input is finished if its line is as it was; and only if some line is about it and its output."""
    manifest, inputs = manifest_of(folder)
    finished, lines = found
    for item, before, is_finished in zip(inputs, whole[1], finished, strict=False):
        assert is_finished or before not in lines, f"{item.name} is predicted again"
        if is_finished:
            decisive = manifest.decisive(item).items()
            entries = [entry for entry in map(_object, lines) if entry.get("name") == item.name]
            assert any(decisive <= entry.items() and _are_whole(folder, entry["outputs"]) for entry in entries)


def _object(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _are_whole(folder: Path, outputs: dict[str, str]) -> bool:
    files = {folder / "out" / name: sha for name, sha in outputs.items()}
    return bool(files) and all(hashlib.sha256(file.read_bytes()).hexdigest() == sha for file, sha in files.items())


ONNX = OnnxRecord(
    part="slab",
    format=1,
    version="7",
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


def make_onnx(folder: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("z", "segmentation")]
    graph = helper.make_graph([helper.make_node("Identity", ["z"], ["segmentation"])], "slab", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, ONNX.properties())
    (folder / "slab_3.onnx").write_bytes(model.SerializeToString())


def read_onnx(folder: Path) -> OnnxRecord:
    file = folder / "slab_3.onnx"
    return read_record(open_session(file), file)


def check_onnx(folder: Path, found: OnnxRecord, whole: OnnxRecord) -> None:
    """As onnx reads the properties; of a key that is there twice, the last."""
    properties = {entry.key: entry.value for entry in onnx.load(folder / "slab_3.onnx").metadata_props}
    for key, value in found.properties().items():
        given = properties[key]
        assert value == given or json.loads(value) == json.loads(given)


KINDS = {
    "weights": Kind(
        "model.safetensors",
        make_weights,
        lambda folder: read_weights(folder / "model.safetensors"),
        check_weights,
    ),
    "weights-folder": Kind("model.safetensors", make_folder_of_weights, read_sam2, check_folder_of_weights),
    "weights-meta": Kind("weights.pt", make_meta, lambda folder: read_sam2(folder / "weights.pt"), check_meta, "zip"),
    "checkpoint": Kind("step-00000002.ckpt", make_states, read_states, check_states, "zip"),
    "cache-index": Kind("cache/a.json", make_cache, read_cache, check_cache, "json"),
    "cache-image": Kind("cache/a.image.npy", make_cache, read_cache, check_cache),
    "cache-label": Kind("cache/a.label.npy", make_cache, read_cache, check_cache),
    "feature-cache": Kind("features/*/*/1", make_features, read_features, check_features),
    "manifest": Kind("out/manifest.jsonl", make_manifest, read_manifest, check_manifest, "json lines"),
    "onnx": Kind("slab_3.onnx", make_onnx, read_onnx, check_onnx),
}
