"""A mask on a DICOM series with difficult parts: a hole, touching corners, an empty slice, an absent class."""

import numpy as np
import pytest

from sam2_3dmed.dicom.series import choose_series
from sam2_3dmed.volume.volume import Volume

LABELS = {1: "left kidney", 3: "tumour", 7: "spleen"}


@pytest.fixture
def labels():
    return dict(LABELS)


@pytest.fixture
def series(tmp_path, write_series, stored_voxels):
    """Oblique, so that a mix-up of axes cannot go unseen."""
    turned = np.linalg.qr(np.array([[2.0, 1, 0.3], [-0.4, 1, 0.5], [0.1, 0.7, 1]]))[0][:2]
    write_series(tmp_path / "series", stored_voxels((12, 10, 6)), directions=turned)
    return choose_series(tmp_path / "series")


@pytest.fixture
def mask(series):
    array = np.zeros(series.shape, np.uint8)
    array[1:7, 2:8, 1:4] = 1
    array[3:5, 4:6, 2] = 0
    array[8:11, 8:10, 5] = 3
    array[0, 0, 0] = array[1, 1, 0] = 3
    return Volume(array, series.affine)
