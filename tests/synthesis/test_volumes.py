"""Made-up volumes: the same from the same seed, with structures that drift, branch and end, and looks that vary."""

import numpy as np
import pytest
from scipy import ndimage

from sam2_3dmed.synthesis.structures import Grid, draw_structures
from sam2_3dmed.synthesis.volumes import MAX_THICKNESS, synthesise

SEEDS = range(12)


@pytest.fixture(scope="module")
def slabs():
    return [synthesise(seed, 16, 64) for seed in SEEDS]


def test_the_same_arguments_give_the_same_slab(slabs) -> None:
    again = synthesise(SEEDS[3], 16, 64)
    assert np.array_equal(again.image, slabs[3].image)
    assert np.array_equal(again.labels, slabs[3].labels)
    assert again.thickness == slabs[3].thickness


def test_images_fill_0_to_1_and_labels_are_structures(slabs) -> None:
    for slab in slabs:
        assert slab.image.shape == slab.labels.shape == (16, 64, 64)
        assert slab.image.dtype == np.float32
        assert 0 <= slab.image.min() < 0.2
        assert 0.8 < slab.image.max() <= 1
        assert slab.image.std() > 0.02
        assert slab.labels.min() >= 0
        assert len(np.unique(slab.labels)) >= 3
        assert 1 <= slab.thickness <= MAX_THICKNESS


def test_the_image_shows_the_structures(slabs) -> None:
    """The labels explain much of the variance of an image, and nothing of that of another one."""

    def explained(image, labels):
        values, index = np.unique(labels, return_inverse=True)
        means = ndimage.mean(image, labels, values)
        return 1 - np.var(image - means[index].reshape(image.shape)) / np.var(image)

    own = [explained(slab.image, slab.labels) for slab in slabs]
    other = [explained(slab.image, slabs[i - 1].labels) for i, slab in enumerate(slabs)]
    assert np.median(own) > 0.5
    assert np.mean(own) > np.mean(other) + 0.2


def test_structures_drift_end_and_branch_along_the_slices(slabs) -> None:
    drifts, ends, branches = [], 0, 0
    for slab in slabs:
        for value in range(1, slab.labels.max() + 1):
            mask = slab.labels == value
            shown = np.flatnonzero(mask.any(axis=(1, 2)))
            if len(shown) < 3:
                continue
            ends += len(shown) < len(mask)
            centres = np.array([ndimage.center_of_mass(mask[k]) for k in shown])
            drifts.append(np.linalg.norm(np.diff(centres, axis=0), axis=1).mean())
            parts = [ndimage.label(mask[k])[1] for k in shown]
            branches += ndimage.label(mask)[1] == 1 and max(parts) > min(parts)
    assert ends > 10
    assert branches > 5
    assert 0.2 < np.median(drifts) < 8  # pixels a slice


def test_thin_slices_are_more_alike_than_thick_ones() -> None:
    def alike(thickness: float) -> float:
        grid = Grid((8, 64, 64), thickness)
        drawn = [draw_structures(np.random.default_rng(seed), grid)[0] for seed in range(8)]
        return float(np.mean([(labels[1:] == labels[:-1]).mean() for labels in drawn]))

    assert alike(1.0) > alike(2.5) > alike(6.0)
