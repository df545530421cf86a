"""Volumes of made-up anatomy, each from one seed: an image and its structures."""

import math
from typing import NamedTuple

import numpy as np

from sam2_3dmed.data.anatomy import Field
from sam2_3dmed.synthesis.appearance import draw_image
from sam2_3dmed.synthesis.structures import Grid, Labels, draw_structures

MAX_THICKNESS = 6.0
"""Slices lie 1 to so many pixels apart."""


class SyntheticSlab(NamedTuple):
    """Consecutive slices of a made-up scan."""

    image: Field  # (D, H, W) float32 in [0, 1]
    labels: Labels  # (D, H, W) int16, a number for each structure; 0 is the outside
    thickness: float  # the distance of two slices in pixels


def synthesise(seed: int | list[int], num_slices: int, size: int) -> SyntheticSlab:
    """Draw a slab of D = `num_slices` and H = W = `size` pixels. The same arguments give the same slab.

    The structures and their look are random, so that a network meets many kinds of anatomy and of scanners. Source: the
    idea of SynthSeg (Billot et al. 2023) and of randomised shapes (SynthMorph, Hoffmann et al. 2022).
    """
    rng = np.random.default_rng(seed)
    grid = Grid((num_slices, size, size), math.exp(rng.uniform(0, math.log(MAX_THICKNESS))))
    labels, number = draw_structures(rng, grid)
    return SyntheticSlab(draw_image(rng, grid, labels, number), labels, grid.thickness)
