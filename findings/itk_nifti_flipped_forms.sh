#!/usr/bin/env bash
# SimpleITK 2.5.7 (ITK 5.4): a NIfTI image whose sform and qform are mirror images of each other is read by the sform.
#
# ITK takes the qform where an sform is not a scanner's (code 2, "aligned") and says something else. To find out, it
# compares the two matrices by singular value decomposition, and looks at one of the two orthogonal factors only. Flips
# of axes go into the other factor, so forms that turn the image by half a turn count as "very similar" as long as their
# origins agree. Move one origin by 0.001 mm, and ITK takes the other form: the image turns by half a turn. nibabel
# reads the sform either way. So the same mask overlays the scan in ITK-SNAP and 3D Slicer or lies mirrored, by a
# thousandth of a millimetre.
#
# Seen: the first column of the direction: equal origins: sform (-1, 0, 0); 0.001 mm apart: qform (1, 0, 0).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  SimpleITK==2.5.7 nibabel==5.4.2 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

print("SimpleITK", sitk.Version.VersionString(), "nibabel", nib.__version__)


def first_column(origin_mm: float) -> tuple[float, ...]:
    """Of the direction, in ITK's LPS, of an image whose sform begins `origin_mm` from its qform."""
    sform, qform = np.diag([1.0, 1, 2, 1]), np.diag([-1.0, -1, 2, 1])
    sform[0, 3] = origin_mm
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), None)
    image.set_qform(qform, code=1)
    image.set_sform(sform, code=2)
    path = Path(sys.argv[1]) / "image.nii"
    nib.save(image, path)
    assert np.array_equal(nib.load(path).affine[:3, 0], (1, 0, 0)), "nibabel reads the sform"
    return sitk.ReadImage(str(path)).GetDirection()[::3]


equal, apart = first_column(0), first_column(0.001)
print("equal origins:", equal)
print("0.001 mm apart:", apart)
assert equal == (-1, 0, 0), "ITK takes the qform now"
assert apart == (1, 0, 0), "ITK takes the sform now"
PYTHON
