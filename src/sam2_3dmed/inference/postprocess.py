"""What may be done to a mask after the network."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def largest_component(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """For each class its largest connected component (face, edge or corner neighbours); the rest becomes background.

    labels: (X, Y, Z), 0 background. Returns: a new array of the same dtype.
    """
    kept = np.zeros_like(labels)
    everywhere = np.ones((3, 3, 3), dtype=bool)
    for value in np.unique(labels[labels > 0]):
        components, count = ndimage.label(labels == value, structure=everywhere)
        if count:
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            kept[components == sizes.argmax()] = value
    return kept
