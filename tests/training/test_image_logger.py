"""Pictures show what they say: white dashes for the truth, colour for the prediction, where the classes are."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sam2_3dmed.training.loggers import Slice, draw_slice


def drawn(truth: NDArray[np.integer], predicted: NDArray[np.integer]) -> NDArray[np.int64]:
    image = np.full((1, *truth.shape), 0.25)
    return draw_slice(Slice(image, truth, predicted), ["liver", "tumour"], "epoch 1").astype(int)


def saturated(pixels: NDArray[np.int64]) -> NDArray[np.bool_]:
    return pixels.max(axis=-1) - pixels.min(axis=-1) > 60


@pytest.fixture
def classes() -> NDArray[np.integer]:
    classes = np.zeros((40, 40), int)
    classes[:10, :10] = 1
    classes[25:35, 20:40] = 2  # reaches the border
    return classes


def test_the_left_half_is_the_plain_slice(classes: NDArray[np.integer]) -> None:
    pixels = drawn(classes, classes)
    height, width, _ = pixels.shape
    assert not saturated(pixels[: height - 60, : width // 2]).any()
    assert saturated(pixels[: height - 60, width // 2 :]).any()


def test_a_prediction_moves_its_outline_and_not_the_truths(classes: NDArray[np.integer]) -> None:
    nothing = np.zeros_like(classes)
    right, wrong, missed = (drawn(classes, p)[:-60] for p in (classes, np.roll(classes, 6, axis=0), nothing))
    assert not saturated(missed).any()
    white = (missed > 240).all(axis=-1)
    assert white.any()  # the truth is there in any case
    assert (saturated(right) != saturated(wrong)).any()
    assert np.argwhere(saturated(wrong))[:, 0].max() > np.argwhere(saturated(right))[:, 0].max()
