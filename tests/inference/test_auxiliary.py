"""Boundary maps and relative positions: what the network said, on the grid of the input, and files that keep it."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam2_3dmed.config import InferenceConfig, NetworkConfig
from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.inference.interface import Auxiliary, SlabPositions, boundary_file, positions_file
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.build import build_network
from sam2_3dmed.volume.preprocess import Normalisation, Preprocessing
from sam2_3dmed.volume.volume import Volume

LAS = np.diag([-1.0, 1.0, 2.0, 1.0])


def predictor(network, **options) -> Predictor:
    config = InferenceConfig(**{"direction": "forward", "precision": "32", **options})
    preprocessing = Preprocessing("axial", (Normalisation("fixed", 0, 1),))
    return Predictor(network, preprocessing=preprocessing, labels={1: "a", 2: "b"}, slab_slices=3, config=config)


@pytest.fixture(scope="module")
def volume() -> Volume:
    return Volume(np.random.default_rng(0).random((10, 12, 3)).astype(np.float32), LAS)


def test_the_mask_is_the_same_and_the_map_what_the_network_said(network, volume: Volume) -> None:
    model = predictor(network)
    mask, auxiliary = model.with_auxiliary(volume)
    assert np.array_equal(mask.array, model(volume).array)
    slices = torch.from_numpy(volume.array[::-1].transpose(2, 1, 0).copy())[None, :, None]
    with torch.inference_mode():
        said = network(slices)
    logits = F.interpolate(said.boundary[0].transpose(0, 1), (12, 10), mode="bilinear", align_corners=False)
    expected = 255 * logits.amax(dim=1).sigmoid().numpy().transpose(2, 1, 0)[::-1]
    assert auxiliary.boundary.array.dtype == np.uint8
    assert np.array_equal(auxiliary.boundary.affine, volume.affine)
    assert np.abs(auxiliary.boundary.array - expected).max() < 0.6
    (slab,) = auxiliary.positions
    assert slab.slices == (0, 1, 2)
    assert slab.relative_position == pytest.approx(said.relative_position[0].numpy(), abs=1e-5)


def test_every_slab_has_its_positions(network) -> None:
    volume = Volume(np.zeros((8, 8, 5), dtype=np.float32), LAS)
    _, auxiliary = predictor(network, direction="both", overlap=0.0).with_auxiliary(volume)
    assert [slab.slices for slab in auxiliary.positions] == [(0, 1, 2), (2, 1, 0), (2, 3, 4), (4, 3, 2)]


def test_a_network_without_the_parts_says_nothing(volume: Volume) -> None:
    bare = build_network(NetworkConfig(size="nano", image_size=64, srpp=False, boundary=False), 2).eval()
    mask, auxiliary = predictor(bare).with_auxiliary(volume)
    assert mask.shape == volume.shape
    assert auxiliary == Auxiliary(None, ())


def test_files_keep_it(tmp_path) -> None:
    boundary = Volume(np.arange(24, dtype=np.uint8).reshape(2, 3, 4) * 10, LAS)
    slab = SlabPositions((2, 1, 0), np.array([[0, -1.25, 0.3333333]] * 3, dtype=np.float32))
    Auxiliary(boundary, (slab,)).write(tmp_path / "new", "case")
    found = Auxiliary.read(tmp_path / "new", "case")
    assert np.array_equal(found.boundary.array, boundary.array)
    assert found.positions[0].slices == (2, 1, 0)
    assert found.positions[0].relative_position == pytest.approx(slab.relative_position, abs=1e-4)
    content = json.loads(positions_file(tmp_path / "new", "case").read_text())
    assert content["unit"] == "slices"
    assert content["slabs"][0]["relative_position"][0] == [0, -1.25, 0.3333]


def test_what_was_never_written_is_none_and_no_map_is_no_file(tmp_path) -> None:
    assert Auxiliary.read(tmp_path, "case") is None
    Auxiliary(None, ()).write(tmp_path, "case")
    assert not boundary_file(tmp_path, "case").exists()
    assert Auxiliary.read(tmp_path, "case") == Auxiliary(None, ())


@pytest.mark.parametrize("text", ["{", "[]", '{"slabs": [{"slices": [0]}]}', '{"slabs": 3}'])
def test_broken_files_are_named(tmp_path, text: str) -> None:
    positions_file(tmp_path, "case").write_text(text)
    with pytest.raises(DataError, match=r"case_positions\.json: (cannot be read|broken JSON|an object is expected)"):
        Auxiliary.read(tmp_path, "case")


def test_a_broken_map_is_named(tmp_path) -> None:
    Auxiliary(None, ()).write(tmp_path, "case")
    boundary_file(tmp_path, "case").write_bytes(b"broken")
    with pytest.raises(VolumeError, match="case_boundary"):
        Auxiliary.read(tmp_path, "case")


def test_a_folder_that_cannot_be_made(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: cannot be made"):
        Auxiliary(None, ()).write(tmp_path / "file", "case")
