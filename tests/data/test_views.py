"""Views: one draw for a whole case, the same slice in any slab and process, and swaps at fixed epochs."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sam2_3dmed.config import AugmentationConfig
from sam2_3dmed.data.augment import SlabAugmentation
from sam2_3dmed.data.cache import CachedCase
from sam2_3dmed.data.slabs import SampleKey, SlabDataset, View, ViewDataset, ViewSlabs, collate

SIZE = 16
DEPTH = 9
PLAIN = AugmentationConfig(horizontal_flip=0, affine=0, noise=0, blur=0, mosaic=0, reverse=0)
EVERYTHING = AugmentationConfig(scale=0.2, noise=1, blur=1, mosaic=0.5, intensity=0.3)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    """Three cases whose labels are where the image is bright."""
    folder = tmp_path_factory.mktemp("cases")
    rng = np.random.default_rng(0)
    made = []
    for number in range(3):
        image = rng.random((DEPTH, 1, 4, 4)).repeat(5, -1).repeat(5, -2).astype(np.float16)
        np.save(folder / f"case{number}.image.npy", image)
        np.save(folder / f"case{number}.label.npy", (image[:, 0] > 0.5).astype(np.uint8))
        made.append(CachedCase(f"case{number}", folder, DEPTH, {1: np.arange(DEPTH)}))
    return made


def build(cases: list[CachedCase], config=PLAIN, *, num_views=2, refresh=None, seed=0) -> ViewDataset:
    slabs = SlabDataset(
        cases,
        slab_slices=4,
        augmentation=SlabAugmentation(config, SIZE),
        foreground_fraction=0.5,
        seed=seed,
    )
    return ViewDataset(slabs, num_views=num_views, refresh=refresh)


def view_of(slabs: ViewSlabs) -> View:
    return View(*slabs.views[0].tolist())


def slices_of(dataset: ViewDataset, slabs: ViewSlabs) -> torch.Tensor:
    """(D, C, H, W), in the order of the slab."""
    return torch.stack([dataset.slice(view_of(slabs), index) for index in slabs.positions[0].tolist()])


def test_without_augmentation_a_view_is_the_case(cases: list[CachedCase]) -> None:
    plain, dataset = build(cases)._slabs, build(cases)
    key = SampleKey(0, 0)
    ours, theirs = dataset[key], plain[key]
    assert torch.equal(slices_of(dataset, ours), theirs.slices[0])
    assert torch.equal(ours.labels, theirs.labels)
    assert torch.equal(ours.positions, theirs.positions)


@pytest.mark.parametrize("epoch", [0, 3])
def test_case_slices_and_direction_are_drawn_as_without_views(cases: list[CachedCase], epoch: int) -> None:
    dataset = build(cases, EVERYTHING)
    for number in range(10):
        key = SampleKey(epoch, number)
        case, start, length = dataset._slabs.draw(key, np.random.default_rng([0, *key]), dataset.slab_slices)
        slabs = dataset[key]
        assert dataset.cases[view_of(slabs).case] is case
        assert sorted(slabs.positions[0].tolist()) == list(range(start, start + length))
    directions = Counter(dataset[SampleKey(epoch, n)].positions[0].diff()[0].item() for n in range(100))
    assert set(directions) == {1, -1}
    assert min(directions.values()) > 30


def test_labels_move_with_the_slices(cases: list[CachedCase]) -> None:
    dataset = build(cases, AugmentationConfig(noise=0, blur=0, scale=0.2))
    agreement = []
    for number in range(20):
        slabs = dataset[SampleKey(0, number)]
        agreement.append(((slices_of(dataset, slabs)[:, 0] > 0.5) == (slabs.labels[0] > 0)).float().mean())
    assert np.mean(agreement) > 0.93


def test_every_slice_of_a_view_has_the_same_parameters_and_noise_of_its_own(cases: list[CachedCase]) -> None:
    """Two slices of equal voxels differ by their noise alone, which has the drawn deviation."""
    case = cases[0]
    np.save(case.folder / "flat.image.npy", np.full((DEPTH, 1, 64, 64), 0.5, dtype=np.float16))
    np.save(case.folder / "flat.label.npy", np.zeros((DEPTH, 64, 64), dtype=np.uint8))
    flat = [CachedCase("flat", case.folder, DEPTH, {1: np.arange(0)})]
    dataset = build(flat, PLAIN.model_copy(update={"noise": 1.0}), num_views=20)
    deviations = []
    for slot in range(20):
        one, other = (dataset.slice(View(0, slot, 0), index) - 0.5 for index in (2, 5))
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.25
        assert one.std() == pytest.approx(other.std().item(), rel=0.25)
        deviations.append(one.std().item())
    assert min(deviations) < 0.03
    assert 0.07 < max(deviations) < 0.12


def test_a_slice_is_the_same_in_every_slab_and_dataset(cases: list[CachedCase]) -> None:
    one, other = build(cases, EVERYTHING), build(cases, EVERYTHING)
    view = View(1, 0, 0)
    assert torch.equal(one.slice(view, 4), other.slice(view, 4))
    for changed in (view._replace(slot=1), view._replace(generation=1), view._replace(case=2)):
        assert not torch.equal(one.slice(view, 4), one.slice(changed, 4))
    assert not torch.equal(one.slice(view, 4), build(cases, EVERYTHING, seed=1).slice(view, 4))


@pytest.mark.gpu
def test_a_gpu_makes_the_same_slice(cases: list[CachedCase]) -> None:
    dataset = build(cases, EVERYTHING)
    for number in range(3):
        here, there = (dataset.slice(View(number, 0, 0), 4, device) for device in ("cpu", "cuda"))
        assert there.is_cuda
        torch.testing.assert_close(here, there.cpu(), atol=1e-4, rtol=1e-4)


def test_a_view_goes_by_the_cases_name(cases: list[CachedCase]) -> None:
    """In another fold a case has another number, and the same views."""
    fold = cases[1:]
    ours, theirs = build(cases, EVERYTHING), build(fold, EVERYTHING)
    assert torch.equal(ours.slice(View(2, 1, 0), 0), theirs.slice(View(1, 1, 0), 0))


def test_the_same_key_is_the_same_slab_in_another_process(cases: list[CachedCase], tmp_path: Path) -> None:
    """A worker shares only the files with this process, and hashes strings in its own way."""
    dataset = build(cases, EVERYTHING, refresh=2)
    torch.save(dataset, tmp_path / "dataset.pt")
    script = (
        "import sys, torch\n"
        "from sam2_3dmed.data.slabs import View\n"
        "from sam2_3dmed.data.slabs import SampleKey\n"
        "dataset = torch.load(sys.argv[1], weights_only=False)\n"
        "slab = dataset[SampleKey(3, 1)]\n"
        "parts = [*slab, dataset.slice(View(*slab.views[0].tolist()), 3), *dataset._slabs[SampleKey(3, 1)][:3]]\n"
        "torch.save(parts, sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "dataset.pt", tmp_path / "slab.pt"], check=True)
    slabs = dataset[SampleKey(3, 1)]
    ours = [*slabs, dataset.slice(view_of(slabs), 3), *dataset._slabs[SampleKey(3, 1)][:3]]
    assert all(torch.equal(a, b) for a, b in zip(ours, torch.load(tmp_path / "slab.pt"), strict=True))


class TestSwaps:
    def generations(self, dataset: ViewDataset, epochs: int) -> dict[int, list[set[int]]]:
        """For each slot, the generations drawn in each epoch."""
        drawn = [[view_of(dataset[SampleKey(epoch, n)]) for n in range(40)] for epoch in range(epochs)]
        slots = {view.slot for views in drawn for view in views}
        return {s: [{view.generation for view in views if view.slot == s} for views in drawn] for s in sorted(slots)}

    def test_never(self, cases: list[CachedCase]) -> None:
        dataset = build(cases, num_views=3)
        assert self.generations(dataset, 3) == {slot: [{0}] * 3 for slot in range(3)}
        assert dataset.num_generations(100) == 3

    def test_slots_take_turns(self, cases: list[CachedCase]) -> None:
        """Two views that live for four epochs: one is swapped every second epoch."""
        dataset = build(cases, num_views=2, refresh=4)
        first, second = self.generations(dataset, 8).values()
        assert first == [{0}] * 4 + [{1}] * 4
        assert second == [{0}] * 2 + [{1}] * 4 + [{2}] * 2
        assert [dataset.num_generations(epochs) for epochs in (1, 2, 3, 5, 8)] == [2, 2, 3, 4, 5]


def test_slabs_of_views_as_a_batch_and_as_single_slices(cases: list[CachedCase]) -> None:
    dataset = build(cases)
    (batch,) = collate([dataset[SampleKey(0, n)] for n in range(3)])
    assert isinstance(batch, ViewSlabs)
    assert [tuple(part.shape) for part in batch] == [(3, 3), (3, 4, SIZE, SIZE), (3, 4)]
    single = batch.single_slices()
    assert [tuple(part.shape) for part in single] == [(12, 3), (12, 1, SIZE, SIZE), (12, 1)]
    for row in range(12):
        slab, place = divmod(row, 4)
        assert torch.equal(single.views[row], batch.views[slab])
        assert torch.equal(single.labels[row, 0], batch.labels[slab, place])
        assert single.positions[row, 0] == batch.positions[slab, place]
