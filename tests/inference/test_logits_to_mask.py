"""From logits to classes and probabilities: class by class as all at once."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sam2_3dmed.inference.logits_to_mask import argmax_mask, as_bytes, boundary_map, resize


def decide_plainly(logits, height, width):
    """With all classes at native size at once."""
    resized = F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0]
    highest, index = resized.max(dim=0)
    return torch.where(highest > 0, index + 1, 0)


@given(
    num_classes=st.integers(1, 9),
    shape=st.tuples(*[st.integers(1, 12)] * 4),
    seed=st.integers(0, 1000),
    shift=st.sampled_from([-4.0, -2.0, 0.0, 2.0]),
    coarse=st.booleans(),
)
def test_it_is_the_plain_computation(num_classes, shape, seed, shift, coarse):
    h, w, height, width = shape
    logits = torch.randn(num_classes, h, w, generator=torch.Generator().manual_seed(seed)) * 2 + shift
    if coarse:  # ties between classes, and zeros
        logits = logits.round()
    assert torch.equal(argmax_mask(logits, height, width).long(), decide_plainly(logits, height, width))


@pytest.mark.parametrize(("num_classes", "dtype"), [(117, torch.uint8), (255, torch.uint8), (256, torch.int32)])
def test_many_classes(num_classes, dtype):
    logits = torch.randn(num_classes, 8, 8, generator=torch.Generator().manual_seed(0)) - 1.5
    logits[3:90] = logits[3:90].clamp(max=0)  # absent from this slice
    found = argmax_mask(logits, 30, 30)
    assert found.dtype == dtype
    assert torch.equal(found.long(), decide_plainly(logits, 30, 30))
    assert found.max() > 90


@pytest.mark.parametrize(("values", "dtype"), [((3, 200), torch.uint8), ((1, 65535), torch.int32)])
def test_values_stand_for_classes(values, dtype):
    logits = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    found = argmax_mask(logits, 20, 30, values)
    assert found.dtype == dtype
    assert torch.equal(found.long(), torch.tensor([0, *values])[decide_plainly(logits, 20, 30)])


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 2),
    factors=st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 2),
    seed=st.integers(0, 1000),
    shift=st.sampled_from([-4.0, -3.0, -1.0]),
)
def test_boxes_of_classes_change_nothing(shape, factors, seed, shift):
    """Where the ratio is a power of two, only the box of what is positive is resized."""
    (h, w), (height, width) = shape, (shape[0] * factors[0], shape[1] * factors[1])
    logits = torch.randn(4, h, w, generator=torch.Generator().manual_seed(seed)) * 2 + shift
    assert torch.equal(argmax_mask(logits, height, width).long(), decide_plainly(logits, height, width))


@pytest.mark.parametrize(("h", "height"), [(128, 512), (64, 512), (128, 1024), (256, 512)])
def test_boxes_of_classes_at_full_size(h, height):
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, h)] * 2, indexing="ij")
    circles = [r - (y - a).hypot(x - b) for r, a, b in ((0.3, 0.1, 0.2), (0.2, -0.9, 0.5), (0.5, 0.3, 0.3))]
    logits = torch.stack(circles) * 7.3 + torch.randn(3, h, h, generator=torch.Generator().manual_seed(0)) * 0.1
    assert torch.equal(argmax_mask(logits, height, height).long(), decide_plainly(logits, height, height))


def test_absent_classes_are_never_resized(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "sam2_3dmed.inference.logits_to_mask.resize", lambda one, *size: sizes.append(size) or resize(one, *size)
    )
    logits = torch.full((117, 4, 4), -1.0)
    logits[[7, 50], 2, 2] = 1.0
    assert argmax_mask(logits, 8, 8).unique().tolist() == [0, 8]
    assert sizes == [(6, 6)] * 2  # of the classes that are there, what is within a pixel


def test_by_hand():
    logits = torch.tensor([[[1.0, -1.0], [2.0, 0.0]], [[0.5, -0.5], [3.0, -1.0]]])
    assert argmax_mask(logits, 2, 2).tolist() == [[1, 0], [2, 0]]


def test_one_class_is_a_threshold_at_zero():
    logits = torch.linspace(-1, 1, 16).view(1, 4, 4)
    assert torch.equal(argmax_mask(logits, 4, 4), (logits[0] > 0).byte())


def test_logits_are_resized_not_classes():
    """Between a pixel of 3 and one of -1 the border lies nearer to the second."""
    assert argmax_mask(torch.tensor([[[3.0, -1.0]]]), 1, 8).tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]


def test_probabilities_as_bytes():
    logits = torch.tensor([-100.0, 0.0, 100.0, float(torch.logit(torch.tensor(0.2)))])
    assert as_bytes(logits).tolist() == [0, 128, 255, 51]


def test_the_boundary_map_takes_the_largest_class():
    logits = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(logits[None], (9, 20), mode="bilinear", align_corners=False)[0]
    assert torch.equal(boundary_map(logits, 9, 20), as_bytes(resized.amax(dim=0)))
