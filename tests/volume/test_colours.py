from itertools import pairwise

import numpy as np

from sam2_3dmed.volume.colours import colour_of


def test_colours_of_117_classes_differ_and_neighbours_do_so_clearly():
    colours = [colour_of(number) for number in range(1, 118)]
    assert len(set(colours)) == 117
    assert all(0 <= part <= 255 for colour in colours for part in colour)
    assert min(np.abs(np.subtract(a, b)).max() for a, b in pairwise(colours)) > 60
