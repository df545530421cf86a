"""The definition `surfel`: surface elements that weigh the area they stand for.

A surface element ("surfel") sits wherever a 2 x 2 x 2 neighbourhood of voxels holds both mask and background,
and weighs the area, in mm^2, of the marching-cubes triangles inside that neighbourhood. Elements therefore
count by the surface they stand for and not by how finely a scanner sampled it. This is the definition of
DeepMind's surface-distance (Nikolov et al. 2021, doi 10.2196/26151).
"""

import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np

from sam2_3dmed.evaluation.grid import Floats, Mask, check_spacing

# The marching cubes, up to rotation, mirroring and swapping mask with background: the neighbourhood's code,
# and its triangles' area vectors (absolute values along the three axes, in eighths of a voxel's face). Corner
# (x, y, z) of the neighbourhood is the bit 128 >> (4x + 2y + z) of the code.
_BASE_CUBES: dict[int, tuple[tuple[int, int, int], ...]] = {
    0b00000001: ((1, 1, 1),),
    0b00000011: ((2, 2, 0), (2, 2, 0)),
    0b00000110: ((1, 1, 1), (1, 1, 1)),
    0b00000111: ((4, 0, 0), (2, 2, 2), (1, 1, 1)),
    0b00001111: ((4, 0, 0), (4, 0, 0)),
    0b00010110: ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    0b00010111: ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    0b00011000: ((1, 1, 1), (1, 1, 1)),
    0b00011001: ((0, 2, 2), (0, 2, 2), (1, 1, 1)),
    0b00011011: ((3, 3, 3), (2, 0, 2), (0, 2, 2), (1, 1, 1)),
    0b00011110: ((4, 0, 0), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    0b00111100: ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0)),
    0b01101001: ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
}
_FULL = 0b11111111


def surfels(mask: Mask, spacing_mm: Sequence[float]) -> tuple[Mask, Floats]:
    """Where the surface elements of a mask lie, and how much each weighs.

    mask: (X, Y, Z) bool. What lies outside the array is background.
    Returns: (X + 1, Y + 1, Z + 1) bool, on the corners of the voxels; and the areas in mm^2 of its elements, in
        the array's order.
    """
    codes = np.pad(mask, 1).view(np.uint8)
    for axis, bits in ((2, 1), (1, 2), (0, 4)):  # neighbours along an axis become one number of twice the bits
        before, after = (np.moveaxis(codes, axis, 0)[side] for side in (slice(None, -1), slice(1, None)))
        codes = np.moveaxis((before << np.uint8(bits)) | after, 0, axis)
    codes = np.ascontiguousarray(codes)
    surface = (codes != 0) & (codes != _FULL)
    return surface, surface_areas_mm2(spacing_mm)[codes[surface]]


def surface_areas_mm2(spacing_mm: Sequence[float]) -> Floats:
    """The area of the surface inside a neighbourhood of 2 x 2 x 2 voxels, for each of its 256 codes.

    spacing_mm: three voxel sizes in the array's axis order.
    Returns: (256,) float64 in mm^2; 0 for the codes 0 and 255, which hold no surface.
    Raises: VolumeError if spacing_mm is not three positive finite numbers.
    """
    x, y, z = check_spacing(spacing_mm)
    areas: Floats = np.linalg.norm(_area_vectors() * np.array([y * z, x * z, x * y]), axis=-1).sum(axis=-1)
    return areas


@cache
def _area_vectors() -> Floats:
    """(256, 4, 3): the area vectors of each code's triangles, in voxel faces; zeros after the last one."""
    vectors = np.zeros((256, 4, 3))
    for base, triangles in _BASE_CUBES.items():
        corners = np.array([base >> (7 - bit) & 1 for bit in range(8)], dtype=np.uint8).reshape(2, 2, 2)
        for axes in itertools.permutations(range(3)):
            eighths = np.array(triangles)[:, axes]
            for steps in itertools.product((1, -1), repeat=3):
                turned = corners.transpose(axes)[:: steps[0], :: steps[1], :: steps[2]]
                code = int(np.packbits(turned.ravel())[0])
                for same_surface in (code, _FULL - code):
                    vectors[same_surface, : len(triangles)] = eighths / 8
    return vectors
