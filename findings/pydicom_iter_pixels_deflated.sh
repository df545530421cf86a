#!/usr/bin/env bash
# pydicom 3.0.2: iter_pixels and pixel_array(path) find no pixels in a file that dcmread reads.
#
# A file of the transfer syntax Deflated Explicit VR Little Endian is a zlib stream after its file meta information.
# dcmread(path).pixel_array gives its pixels. iter_pixels(path) and pydicom.pixels.pixel_array(path), which read from
# the file without loading all of it, look for the pixels in the compressed bytes, and say that there is no 'Pixel
# Data'. Given the dataset instead of the path, both work.
#
# Seen: dataset: 12 pixels; iter_pixels of the path and pixel_array of the path: AttributeError "... has no 'Pixel Data'
# ...".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import iter_pixels, pixel_array
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, generate_uid

print("pydicom", pydicom.__version__)
file = Path(sys.argv[1]) / "slice.dcm"
stored = np.arange(12, dtype=np.uint16).reshape(3, 4)
dataset = pydicom.Dataset()
dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
dataset.Rows, dataset.Columns = stored.shape
dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
dataset.PixelData = stored.tobytes()
dataset.ensure_file_meta()
dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
dataset.save_as(file, enforce_file_format=True)

read = pydicom.dcmread(file)
whole = read.pixel_array
print("dcmread and pixel_array:", whole.size, "pixels")
assert np.array_equal(whole, stored)
assert np.array_equal(next(iter_pixels(read)), stored)
for name, call in (("iter_pixels", lambda: next(iter_pixels(file))), ("pixel_array", lambda: pixel_array(file))):
    try:
        found = call()
    except AttributeError as error:
        print(f"{name} of the path: AttributeError: {error}")
        assert "Pixel Data" in str(error)
    else:
        sys.exit(f"{name} of the path gives {found.size} pixels now")
PYTHON
