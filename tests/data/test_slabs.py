"""Slabs: the draws, their frequencies, and that a key alone decides them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sam2_3dmed.config import AugmentationConfig
from sam2_3dmed.data.augment import SlabAugmentation
from sam2_3dmed.data.cache import CachedCase
from sam2_3dmed.data.slabs import SampleKey, SlabDataset, Slabs, collate

SIZE = 8
PLAIN = AugmentationConfig(horizontal_flip=0, affine=0, noise=0, blur=0, mosaic=0, reverse=0)


def cached_case(folder: Path, number: int, depth: int, foreground: dict[int, list[int]]) -> CachedCase:
    """Voxels hold the case's number, the first voxel of a slice the slice's; `foreground`: slices by class."""
    name = f"case{number:02d}"
    image = np.full((depth, 1, SIZE, SIZE), number, dtype=np.float16)
    image[:, 0, 0, 0] = np.arange(depth)
    label = np.zeros((depth, SIZE, SIZE), dtype=np.uint8)
    for k, slices in foreground.items():
        label[slices, k, :] = k
    np.save(folder / f"{name}.image.npy", image)
    np.save(folder / f"{name}.label.npy", label)
    return CachedCase(name, folder, depth, {k: np.array(s, dtype=np.int64) for k, s in foreground.items()})


def build(
    cases, *, slab_slices=4, foreground_fraction=0.5, seed=0, config=PLAIN, single_slice_epochs=0, weak_views=False
) -> SlabDataset:
    return SlabDataset(
        cases,
        slab_slices=slab_slices,
        augmentation=SlabAugmentation(config, SIZE),
        foreground_fraction=foreground_fraction,
        seed=seed,
        single_slice_epochs=single_slice_epochs,
        weak_views=weak_views,
    )


def drawn(slabs: Slabs) -> tuple[int, list[int]]:
    """The case and the slices, read from the voxels of a slab."""
    first = slabs.slices[0, :, 0, 0, 0]
    return int(slabs.slices[0, 0, 0, -1, -1]), [int(value) for value in first]


@pytest.fixture
def twenty(tmp_path: Path):
    """Twenty cases of 30 slices: class 1 in all of them, class 2 in one."""
    return [cached_case(tmp_path, n, 30, {1: [20, 21, 22], 2: [5] if n == 7 else []}) for n in range(20)]


def test_shapes_types_and_positions(twenty):
    slabs = build(twenty)[SampleKey(0, 0)]
    assert slabs.slices.shape == (1, 4, 1, SIZE, SIZE)
    assert slabs.labels.shape == (1, 4, SIZE, SIZE)
    assert slabs.positions.shape == (1, 4)
    assert slabs.slices.dtype == torch.float32
    assert not slabs.labels.is_floating_point()
    assert drawn(slabs)[1] == slabs.positions[0].tolist()


@pytest.mark.parametrize("foreground_fraction", [0.0, 0.5, 1.0])
def test_slabs_are_consecutive_slices_of_one_case_with_their_labels(twenty, foreground_fraction):
    dataset = build(twenty, foreground_fraction=foreground_fraction)
    starts = set()
    for number in range(200):
        slabs = dataset[SampleKey(0, number)]
        case, slices = drawn(slabs)
        start = slices[0]
        starts.add(start)
        assert slices == list(range(start, start + 4))
        assert 0 <= start <= 26
        expected = np.load(twenty[case].folder / f"case{case:02d}.label.npy")[start : start + 4]
        assert np.array_equal(slabs.labels[0].numpy(), expected)
    assert len(starts) > (20 if foreground_fraction < 1 else 1)


class TestForeground:
    @pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
    def test_its_share_is_what_is_asked_and_what_chance_adds(self, twenty, fraction):
        dataset = build(twenty, foreground_fraction=fraction)
        hits = np.mean([bool(dataset[SampleKey(0, n)].labels.any()) for n in range(300)])
        by_chance = 6 / 27  # starts 17 to 22 of 0 to 26 hold a slice of class 1; class 2 adds 4 / 27 in one case of 20
        assert hits == pytest.approx(fraction + (1 - fraction) * (by_chance + 4 / 27 / 20), abs=0.06)

    def test_a_rare_class_comes_as_often_as_a_common_one(self, twenty):
        dataset = build(twenty, foreground_fraction=1.0)
        seen = Counter(k for n in range(400) for k in dataset[SampleKey(0, n)].labels.unique().tolist() if k)
        assert seen[1] + seen[2] == 400
        assert 0.42 < seen[2] / 400 < 0.58

    def test_cases_that_have_the_class_come_equally_often(self, tmp_path):
        dataset = build([cached_case(tmp_path, n, 30, {1: [12]}) for n in range(20)], foreground_fraction=1)
        cases = Counter(dataset.draw(SampleKey(0, n), np.random.default_rng(n), 4)[0].name for n in range(800))
        assert len(cases) == 20
        assert max(cases.values()) < 4 * min(cases.values())

    @pytest.mark.parametrize("slab_slices", [1, 4, 5])
    def test_slabs_are_centred_on_it(self, tmp_path, slab_slices):
        dataset = build([cached_case(tmp_path, 0, 30, {1: [12]})], slab_slices=slab_slices, foreground_fraction=1)
        assert {drawn(dataset[SampleKey(0, n)])[1][slab_slices // 2] for n in range(20)} == {12}

    @pytest.mark.parametrize(("place", "start"), [(0, 0), (1, 0), (28, 26), (29, 26)])
    def test_slabs_stay_inside_where_it_is_at_an_end(self, tmp_path, place, start):
        dataset = build([cached_case(tmp_path, 0, 30, {1: [place]})], foreground_fraction=1)
        assert drawn(dataset[SampleKey(0, 0)])[1] == list(range(start, start + 4))

    def test_without_any_every_draw_is_random(self, tmp_path):
        dataset = build([cached_case(tmp_path, n, 10, {1: []}) for n in range(3)], foreground_fraction=1)
        assert Counter(drawn(dataset[SampleKey(0, n)])[0] for n in range(3)) == Counter(range(3))


class TestEpoch:
    @pytest.mark.parametrize("epoch", [0, 1, 7])
    def test_an_epoch_has_every_case_once(self, twenty, epoch):
        dataset = build(twenty, foreground_fraction=0)
        keys = [SampleKey(epoch, number) for number in range(20)]
        assert sorted(drawn(dataset[key])[0] for key in keys) == list(range(20))

    def test_a_longer_epoch_goes_round_again_in_another_order(self, twenty):
        dataset = build(twenty, foreground_fraction=0)
        order = [drawn(dataset[SampleKey(0, number)])[0] for number in range(50)]
        assert sorted(order[:20]) == sorted(order[20:40]) == list(range(20))
        assert order[:20] != order[20:40]
        assert len(set(order[40:])) == 10

    def test_epochs_and_seeds_differ(self, twenty):
        def orders(seed, epoch):
            dataset = build(twenty, foreground_fraction=0, seed=seed)
            return [drawn(dataset[SampleKey(epoch, number)]) for number in range(20)]

        assert len({str(orders(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


class TestKeys:
    def test_the_same_key_is_the_same_slab_in_any_order(self, twenty):
        config = AugmentationConfig()
        keys = [SampleKey(epoch, number) for epoch in (0, 3) for number in range(10)]
        first, second = build(twenty, config=config, weak_views=True), build(twenty, config=config, weak_views=True)
        forward = {key: first[key] for key in keys}
        for key in reversed(keys):
            assert all(torch.equal(a, b) for a, b in zip(forward[key], second[key], strict=True))


class TestReverse:
    def test_positions_descend_and_slices_and_labels_follow(self, twenty):
        config = PLAIN.model_copy(update={"reverse": 1.0})
        for number in range(30):
            slabs = build(twenty, config=config, weak_views=True)[SampleKey(0, number)]
            plain = build(twenty, weak_views=True)[SampleKey(0, number)]
            assert (slabs.positions[0].diff() == -1).all()
            assert drawn(slabs)[1] == slabs.positions[0].tolist()
            assert all(torch.equal(a, b.flip(1)) for a, b in zip(slabs, plain, strict=True))

    def test_half_of_the_slabs(self, twenty):
        dataset = build(twenty, config=PLAIN.model_copy(update={"reverse": 0.5}))
        backward = [bool(dataset[SampleKey(0, n)].positions[0].diff()[0] < 0) for n in range(200)]
        assert 0.4 < np.mean(backward) < 0.6


class TestShortVolumes:
    @pytest.mark.parametrize("foreground_fraction", [0.0, 1.0])
    @pytest.mark.parametrize("depth", [1, 3])
    def test_give_all_their_slices_and_nothing_else(self, tmp_path, depth, foreground_fraction):
        case = cached_case(tmp_path, 0, depth, {1: [depth - 1]})
        slabs = build([case], foreground_fraction=foreground_fraction)[SampleKey(0, 0)]
        assert slabs.positions.tolist() == [list(range(depth))]
        assert slabs.slices.shape[1] == slabs.labels.shape[1] == depth

    def test_become_a_batch_of_their_own(self, tmp_path):
        cases = [cached_case(tmp_path, n, depth, {1: []}) for n, depth in enumerate([9, 2, 9, 3, 2])]
        dataset = build(cases, foreground_fraction=0)
        batches = collate([dataset[SampleKey(0, n)] for n in range(5)])
        assert [tuple(b.slices.shape[:2]) for b in batches] == [(2, 2), (1, 3), (2, 4)]
        assert sum(b.labels.shape[0] for b in batches) == 5
        for batch in batches:
            assert batch.slices.shape[:2] == batch.labels.shape[:2] == batch.positions.shape
            for row in range(len(batch.slices)):
                one = batch.each(lambda part, row=row: part[row : row + 1])
                assert drawn(one)[1] == one.positions[0].tolist()

    def test_equal_lengths_are_one_batch_in_their_order(self, twenty):
        dataset = build(twenty)
        slabs = [dataset[SampleKey(0, n)] for n in range(4)]
        (batch,) = collate(slabs)
        assert torch.equal(batch.positions, torch.cat([w.positions for w in slabs]))


def test_in_epochs_of_single_slices_each_is_drawn_on_its_own(twenty):
    """Cases, slices and flips differ within a slab, half of the draws hold foreground, and then slabs come."""
    config = PLAIN.model_copy(update={"horizontal_flip": 0.5})
    dataset = build(twenty, single_slice_epochs=1, config=config)
    slabs = [dataset[SampleKey(0, n)] for n in range(50)]
    assert all(w.slices.shape == (1, 4, 1, SIZE, SIZE) and w.labels.shape == (1, 4, SIZE, SIZE) for w in slabs)
    cases = [[int(c) for c in w.slices[0, :, 0, -1, 3]] for w in slabs]
    assert sum(len(set(four)) == 4 for four in cases) > 25
    assert len({case for four in cases for case in four}) == 20
    for slab in slabs:
        for image, position in zip(slab.slices[0, :, 0], slab.positions[0], strict=True):
            assert position in (image[0, 0], image[0, -1])  # flipped
    flipped = [float(image[0, -1] != image[-1, -1]) for w in slabs for image in w.slices[0, :, 0]]
    assert 0.3 < np.mean(flipped) < 0.7
    with_foreground = np.mean([bool(slice_.any()) for w in slabs for slice_ in w.labels[0]])
    assert 0.45 < with_foreground < 0.7
    assert torch.equal(dataset[SampleKey(0, 3)].slices, slabs[3].slices)
    _, slices = drawn(build(twenty, single_slice_epochs=1)[SampleKey(1, 0)])
    assert np.ptp(slices) == 3


def test_single_slices_come_from_volumes_shorter_than_a_slab_too(tmp_path):
    dataset = build([cached_case(tmp_path, 0, 2, {1: [1]})], single_slice_epochs=1)
    assert dataset[SampleKey(0, 0)].positions.shape == (1, 4)
