"""Which lesions were found: the connected pieces of a mask, each counted once whatever its size.

A lesion is a connected component of a mask; voxels that share a face, an edge or a corner belong together
(26-connectivity). A lesion of the truth is found if the prediction holds at least one of its voxels. A lesion of the
prediction is invented if it holds no voxel of the truth. So one piece may find several lesions, and several pieces may
find one; neither counts as an error, only as little overlap in Dice.
"""

from dataclasses import dataclass

import numpy as np

from sam2_3dmed.evaluation.grid import Mask, bounding_box, check_masks

_CONNECTIVITY = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class LesionCounts:
    """truth: lesions there are; found: those of them that the prediction touches; invented: those it made up."""

    truth: int
    found: int
    invented: int

    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN if there are no lesions on either side."""
        total = self.found + self.truth + self.invented
        return 2 * self.found / total if total else float("nan")


def count_lesions(prediction: Mask, truth: Mask) -> LesionCounts:
    """The lesions of two (X, Y, Z) bool masks.

    Raises: VolumeError if a mask is not boolean and 3D, or the shapes differ.
    """
    check_masks(prediction, truth)
    num_truth, num_found = _touched(truth, prediction)
    num_predicted, num_right = _touched(prediction, truth)
    return LesionCounts(truth=num_truth, found=num_found, invented=num_predicted - num_right)


def _touched(mask: Mask, other: Mask) -> tuple[int, int]:
    """The number of components of `mask`, and of those that `other` touches."""
    from scipy.ndimage import label  # here: it takes half a second to import

    box = bounding_box(mask)
    components, count = label(mask[box], structure=_CONNECTIVITY)
    touched = np.zeros(count + 1, dtype=bool)
    touched[components[other[box]]] = True
    return int(count), int(np.count_nonzero(touched[1:]))
