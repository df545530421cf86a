"""Equal to torch's own interpolation, forwards and backwards, in any mode."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from sam2_3dmed.model.mask_decoder import upsample


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 3, 6, 6), (24, 24)), ((1, 5, 7), (20, 11)), ((4, 1, 3), (1, 9)), ((2, 6, 4), (6, 4))]
)
def test_equals_interpolate(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    planes = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = (planes.clone().requires_grad_() for _ in range(2))
    made = upsample(ours, size)
    wanted = F.interpolate(theirs.flatten(0, -3).unsqueeze(1), size, mode="bilinear", align_corners=False)
    wanted = wanted.view(*shape[:-2], *size)
    torch.testing.assert_close(made, wanted, atol=1e-6, rtol=1e-6)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    (made * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_autocast_and_bf16_leave_it_in_float32() -> None:
    planes = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(upsample(planes, (16, 16)), upsample(planes, (16, 16)).float())
        made = upsample(planes, (16, 16))
    assert torch.equal(made, upsample(planes, (16, 16)))
    assert upsample(planes.bfloat16(), (16, 16)).dtype == torch.float32


def test_what_inference_made_first_can_train() -> None:
    with torch.inference_mode():
        upsample(torch.zeros(1, 5, 5), (35, 35))  # sizes that no other test has
    planes = torch.zeros(1, 5, 5, requires_grad=True)
    upsample(planes, (35, 35)).sum().backward()
    assert planes.grad is not None
    assert planes.grad.sum().item() == pytest.approx(35 * 35)


def test_what_was_made_without_content_first_can_be_computed_with() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        upsample(torch.empty(1, 5, 5), (45, 45))
    assert upsample(torch.ones(1, 5, 5), (45, 45)).sum().item() == pytest.approx(45 * 45)
