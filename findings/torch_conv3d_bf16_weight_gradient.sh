#!/usr/bin/env bash
# torch 2.13.0, CPU: in bf16, a 3D convolution over a stack of 2 slices has a weight gradient that is partly not filled.
#
# The convolution: kernel 3 x 3 x 3, padding 1, stride 1, one group. The input: 2 slices of any height and width. Such
# are the deepest levels of every 3D U-Net whose patch of 32 slices is halved four times. oneDNN's backward pass writes
# one of the kernel's three planes; the other two hold whatever was in that memory. The output and the gradient of the
# input are right; 1 slice or 3 slices are right; so are 2 slices that F.pad pads before a convolution without padding.
# Training then stops at a gradient that is not finite, or goes on with random numbers, in one run and not in the next.
# Larger kernels do the same for stacks shorter than the kernel; there a process was seen to end by a damaged heap.
#
# It needs a processor with instructions for bf16 (avx512_bf16 or amx_bf16 in /proc/cpuinfo).
#
# Seen: largest error of each plane of the kernel, in parts of the largest gradient: 2 slices: 1.129 nan 0.003;
# 3 slices: 0.003 0.003 0.003; 2 slices, padded before: 0.003 0.004 0.003.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
grep -q 'avx512_bf16\|amx_bf16' /proc/cpuinfo || { echo "this processor has no instructions for bf16"; exit 1; }
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F

CHANNELS = 32
print("torch", torch.__version__)


def gradient(depth: int, dtype: torch.dtype, padded_before: bool) -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.randn(1, CHANNELS, depth, 8, 8).to(dtype)
    kernel = torch.randn(CHANNELS, CHANNELS, 3, 3, 3).to(dtype).requires_grad_()
    y = F.conv3d(F.pad(x, [1] * 6), kernel) if padded_before else F.conv3d(x, kernel, padding=1)
    return torch.autograd.grad(y, kernel, torch.randn(y.shape).to(dtype))[0].float()


def errors(depth: int, padded_before: bool = False) -> list[float]:
    """The largest error of each plane of the kernel; nan if a number is not finite."""
    right = gradient(depth, torch.float32, padded_before)
    marked = [torch.full((size,), float("nan")) for size in (100, 10_000, 30_000, 100_000, 1_000_000)]
    del marked  # so that memory that is not filled shows
    wrong = (gradient(depth, torch.bfloat16, padded_before) - right).abs() / right.abs().max()
    return [round(float(plane.max()), 3) for plane in wrong.unbind(2)]


two, three, padded = errors(2), errors(3), errors(2, padded_before=True)
print("2 slices:", *two)
print("3 slices:", *three)
print("2 slices, padded before:", *padded)
assert max(three + padded) < 0.02, "torch behaves otherwise now"
assert not max(two[:2]) < 0.02 and two[2] < 0.02, "torch behaves otherwise now"
PYTHON
