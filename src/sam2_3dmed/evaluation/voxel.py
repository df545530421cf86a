"""The definition `voxel`: the border voxels of a mask, every one of the same weight.

A voxel of the mask is on its border if one of the six voxels that share a face with it is background, or lies outside
the array. This is the definition of MONAI and of Metrics Reloaded (Maier-Hein et al. 2024, doi
10.1038/s41592-023-02151-z). It counts voxels, so that a finely sampled direction weighs more than a coarse one.
"""

from collections.abc import Iterable

import numpy as np

from sam2_3dmed.evaluation.grid import Mask


def border_voxels(mask: Mask, axes: Iterable[int] = (0, 1, 2)) -> Mask:
    """(X, Y, Z) bool -> (X, Y, Z) bool: the voxels of the mask with a neighbour along `axes` that is not in it."""
    inside = mask.copy()
    for axis in axes:
        kept, whole = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        kept[1:] &= whole[:-1]
        kept[:-1] &= whole[1:]
        kept[:1] = kept[-1:] = False
    return mask & ~inside
