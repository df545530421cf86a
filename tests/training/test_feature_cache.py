"""Kept features are the encoder's, with its gradients, wherever they are computed, and never out of date."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sam2_3dmed.config import AugmentationConfig, FeatureCacheConfig, LossConfig, NetworkConfig, TrainingConfig
from sam2_3dmed.data.augment import SlabAugmentation
from sam2_3dmed.data.cache import CachedCase
from sam2_3dmed.data.slabs import SampleKey, SlabDataset, View, ViewDataset, ViewSlabs, collate
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.training.feature_cache import FeatureCache, require_frozen
from sam2_3dmed.training.losses import TotalLoss, class_masks

SIZE, DEPTH = 64, 7
PER_SLICE = 4 * 4 * 64 + 8 * 8 * 48 + 16 * 16 * 24  # numbers: nano's C, and the widths of its first two stages


@pytest.fixture(scope="module")
def network() -> SAM2For3dMed:
    torch.manual_seed(0)
    made = build_network(NetworkConfig(size="nano", image_size=SIZE), 1)
    for parameter in made.boundary_to_segmentation.parameters():  # starts at zero and would hide half of the network
        torch.nn.init.normal_(parameter, std=0.2)
    made.encoder.freeze()
    return made


@pytest.fixture
def cases(tmp_path: Path) -> list[CachedCase]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(2):
        image = rng.random((DEPTH, 1, 8, 8)).repeat(6, -1).repeat(5, -2).astype(np.float16)
        np.save(tmp_path / f"case{number}.image.npy", image)
        np.save(tmp_path / f"case{number}.label.npy", (image[:, 0] > 0.5).astype(np.uint8))
        (tmp_path / f"case{number}.json").write_text(json.dumps({"key": f"key{number}"}))
        made.append(CachedCase(f"case{number}", tmp_path, DEPTH, {1: np.arange(DEPTH)}))
    return made


def build_views(
    cases: list[CachedCase], *, refresh: int | None = None, seed: int = 0, **augmentation: float
) -> ViewDataset:
    slabs = SlabDataset(
        cases,
        slab_slices=3,
        augmentation=SlabAugmentation(AugmentationConfig(**augmentation), SIZE),
        foreground_fraction=0,
        seed=seed,
    )
    return ViewDataset(slabs, num_views=2, refresh=refresh)


def build_cache_of(network: SAM2For3dMed, views: ViewDataset, own: Path, **options: object) -> FeatureCache:
    return FeatureCache(network.encoder, views, FeatureCacheConfig(views=2, **options), own)


def batch_of(views: ViewDataset, count: int = 2, epoch: int = 0) -> ViewSlabs:
    (batch,) = collate([views[SampleKey(epoch, number)] for number in range(count)])
    return batch


def pixels(views: ViewDataset, batch: ViewSlabs) -> Tensor:
    """(B, D, C, H, W), what a network without a cache would be given."""
    rows = zip(batch.views.tolist(), batch.positions.tolist(), strict=True)
    return torch.stack([torch.stack([views.slice(View(*view), i) for i in indices]) for view, indices in rows])


def gradients(network: SAM2For3dMed, batch: ViewSlabs, predict: Callable[[], object]) -> dict[str, Tensor]:
    network.zero_grad()
    loss = TotalLoss(LossConfig(terms={"dice": 1, "bce": 1, "relative_position": 0.01, "boundary": 0.1}))
    loss(predict(), class_masks(batch.labels, 1), batch.positions)["total"].backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all gradients together, relative to their length."""
    assert found.keys() == expected.keys()
    apart = sum((found[name] - expected[name]).square().sum() for name in expected)
    return (apart / sum(gradient.square().sum() for gradient in expected.values())).sqrt().item()


class TestGradients:
    @pytest.mark.parametrize(("dtype", "rounding"), [("fp32", 2**-24), ("fp16", 2**-11), ("bf16", 2**-8)])
    @pytest.mark.parametrize("single", [False, True])
    def test_are_those_of_the_encoder_at_work_but_for_rounding(
        self, network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path, dtype: str, rounding: float, single: bool
    ) -> None:
        views = build_views(cases)
        batch = batch_of(views)
        batch = batch.single_slices() if single else batch
        features = build_cache_of(network, views, tmp_path / "features", dtype=dtype)
        expected = gradients(network, batch, lambda: network(pixels(views, batch)))
        found = gradients(network, batch, lambda: network.decode(features(batch), pre_fpn=True))
        assert "segmentation.mask_decoder.conv_s0.weight" in found
        assert "boundary.decoder.mask_decoder.conv_s1.bias" in found
        assert not any(name.startswith("encoder.") for name in found)
        assert difference(found, expected) < 8 * max(rounding, 1e-6)
        if dtype != "fp32":
            assert difference(found, expected) > rounding / 100, "was anything rounded at all?"

    def test_the_second_time_they_are_the_same_to_the_last_digit(
        self, network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path
    ) -> None:
        views = build_views(cases)
        batch = batch_of(views)
        features = build_cache_of(network, views, tmp_path / "features")
        first, second = (
            gradients(network, batch, lambda: network.decode(features(batch), pre_fpn=True)) for _ in range(2)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert features._num_made < features._num_asked


class TestKeeping:
    def test_a_slice_is_computed_once(self, network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path) -> None:
        views = build_views(cases)
        features = build_cache_of(network, views, tmp_path / "features")
        drawn = set()
        for epoch in range(6):
            batch = batch_of(views, epoch=epoch)
            features(batch)
            for view, indices in zip(batch.views.tolist(), batch.positions.tolist(), strict=True):
                drawn |= {(*view, index) for index in indices}
        assert features._num_made == len(drawn) < 6 * 2 * 3

    def test_memory_files_and_any_order_give_the_same(
        self, network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path
    ) -> None:
        """In memory, on disk, half and half; computed alone or among others; read by another process's cache."""
        views = build_views(cases)
        batches = [batch_of(views, epoch=epoch) for epoch in range(3)]
        in_memory = build_cache_of(network, views, tmp_path / "none")
        expected = [in_memory(batch) for batch in batches]
        assert not (tmp_path / "none").exists()
        for gigabytes in (0, 3.5 * PER_SLICE * 2 / 1e9):
            folder = tmp_path / str(gigabytes)
            first = build_cache_of(network, views, folder, budget_gb=gigabytes)
            second = build_cache_of(network, views, folder, budget_gb=gigabytes)
            for cache in (first, first, second):
                for batch, levels in reversed(list(zip(batches, expected, strict=True))):
                    assert all(torch.equal(a, b) for a, b in zip(cache(batch), levels, strict=True))
            kept = int(gigabytes > 0) * 3
            assert len(first._memory) == kept
            assert second._num_made == kept
            assert {file.stat().st_size for file in folder.rglob("*") if file.is_file()} == {PER_SLICE * 2 + 4}

    def test_bytes_per_slice(self, network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path) -> None:
        views = build_views(cases)
        assert build_cache_of(network, views, tmp_path).bytes_per_slice == 2 * PER_SLICE
        assert build_cache_of(network, views, tmp_path, dtype="fp32").bytes_per_slice == 4 * PER_SLICE

    @pytest.mark.parametrize("gigabytes", [0, 1])
    def test_swapped_views_make_room(
        self, network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path, gigabytes: int
    ) -> None:
        folder = tmp_path / "features"
        views = build_views(cases, refresh=1)  # both slots change with every epoch but the first
        features = build_cache_of(network, views, folder, budget_gb=gigabytes)
        for epoch in range(3):
            for number in range(9):
                features(collate([views[SampleKey(epoch, number)]])[0])
            kept = 2 * 2 * DEPTH  # at most: views, cases, slices
            assert len(features._memory) * features.bytes_per_slice <= kept * PER_SLICE * 2
            assert len([file for file in folder.rglob("*") if file.is_file()]) <= kept
            if gigabytes == 0:
                assert {path.name for path in folder.iterdir()} == {f"{slot}-{epoch}" for slot in (0, 1)}
        features.close()
        assert not folder.exists()

    def test_a_shared_folder_stays(self, network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path) -> None:
        views = build_views(cases)
        options = {"budget_gb": 0, "folder": str(tmp_path / "shared")}
        batch = batch_of(views)
        one = build_cache_of(network, views, tmp_path / "own", **options)
        one(batch)
        one.close()
        assert not (tmp_path / "own").exists()
        another = build_cache_of(network, views, tmp_path / "own", **options)
        another(batch)
        assert another._num_made == 0


class TestNeverOutOfDate:
    def made_by(self, network: SAM2For3dMed, views: ViewDataset, folder: Path, **options: object) -> int:
        cache = build_cache_of(network, views, folder, budget_gb=0, **options)
        cache(batch_of(views))
        return cache._num_made

    def test_whatever_a_feature_depends_on_is_in_the_name_of_its_file(
        self, network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path
    ) -> None:
        folder = tmp_path / "features"
        assert self.made_by(network, build_views(cases), folder) > 0
        assert self.made_by(network, build_views(cases), folder) == 0
        assert self.made_by(network, build_views(cases, reverse=0.25), folder) == 0, "the direction is no part of it"
        assert self.made_by(network, build_views(cases, rotation_degrees=3), folder) > 0
        assert self.made_by(network, build_views(cases, seed=1), folder) > 0
        assert self.made_by(network, build_views(cases), folder, dtype="fp16") > 0
        with torch.autocast("cpu", torch.bfloat16):
            assert self.made_by(network, build_views(cases), folder) > 0

    def test_other_weights_and_another_case_of_the_same_name(
        self, network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path
    ) -> None:
        folder = tmp_path / "features"
        self.made_by(network, build_views(cases), folder)
        torch.manual_seed(0)
        other = build_network(NetworkConfig(size="nano", image_size=SIZE), 1)
        other.encoder.load_state_dict(network.encoder.state_dict())
        other.encoder.freeze()
        assert self.made_by(other, build_views(cases), folder) == 0
        with torch.no_grad():
            other.encoder.vision_encoder.neck.convs[0].bias[3] += 1e-6
        assert self.made_by(other, build_views(cases), folder) > 0
        for number in range(2):
            (cases[number].folder / f"case{number}.json").write_text(json.dumps({"key": "prepared anew"}))
        assert self.made_by(network, build_views(cases), folder) > 0

    def test_a_file_that_is_not_whole_is_made_anew(
        self, network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path
    ) -> None:
        views = build_views(cases)
        made = self.made_by(network, views, tmp_path / "features")
        for damage in (lambda content: b"", lambda content: content[:9] + bytes([content[9] ^ 1]) + content[10:]):
            for file in filter(Path.is_file, (tmp_path / "features").rglob("*")):
                file.write_bytes(damage(file.read_bytes()))
            assert self.made_by(network, views, tmp_path / "features") == made
            assert self.made_by(network, views, tmp_path / "features") == 0


def test_an_encoder_that_trains_is_refused(network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path) -> None:
    trained = build_network(NetworkConfig(size="nano", image_size=SIZE), 1)
    with pytest.raises(ConfigError, match=r"^feature_cache.views: .*frozen encoder.*training.encoder=frozen.*$"):
        build_cache_of(trained, build_views(cases), tmp_path)
    trained.encoder.freeze()
    require_frozen(trained.encoder)
    next(trained.encoder.parameters()).requires_grad_()  # as an adapter would be
    with pytest.raises(ConfigError):
        require_frozen(trained.encoder)


def test_what_fp16_cannot_hold(network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path) -> None:
    views = build_views(cases)
    torch.manual_seed(0)
    loud = build_network(NetworkConfig(size="nano", image_size=SIZE), 1)
    loud.encoder.freeze()
    loud.encoder.vision_encoder.neck.convs[0].bias.fill_(1e5)
    with pytest.raises(ConfigError, match=r"feature_cache.dtype: .*fp16.*bf16"):
        build_cache_of(loud, views, tmp_path, dtype="fp16")(batch_of(views))
    assert build_cache_of(loud, views, tmp_path)(batch_of(views)).z.isfinite().all()


def test_what_to_expect_is_said(
    network: SAM2For3dMed, cases: list[CachedCase], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """14 slices, two views: 28 to compute. 7 epochs of 2 slabs of 3 slices: 42 drawn; of 20 slabs: 420."""
    features = build_cache_of(network, build_views(cases), tmp_path)
    with caplog.at_level(logging.INFO):
        features.describe(TrainingConfig(epochs=7))
        assert "seen about 1.5 times, so the encoder computes 52%" in caplog.text
        assert "saves little" in caplog.text
        caplog.clear()
        features.describe(TrainingConfig(epochs=7, samples_per_epoch=20))
        assert "seen about 15.0 times, so the encoder computes 7%" in caplog.text
        assert "saves little" not in caplog.text
