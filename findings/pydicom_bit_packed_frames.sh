#!/usr/bin/env bash
# pydicom 3.0.2: a single frame of a bit-packed segmentation cannot always be read, and no frames means all frames.
#
# DICOM packs the frames of a binary SEG without gaps (PS3.5, 8.1.1), so a frame of 3 x 5 pixels begins within a byte.
# `pixel_array(dataset)` reads all frames right. `pixel_array(dataset, index=1)` and `iter_pixels(dataset)` cut the
# bytes of a frame from its first byte by the frame's size in bytes, which is one byte too few where the frame crosses
# into one more, and end with "cannot reshape array". Whether it happens depends on rows, columns and frame: 3 x 5 and
# 7 x 9 fail from the second frame on, 5 x 5 and 6 x 6 never do. `iter_pixels(dataset, indices=[])` yields every frame.
#
# Seen: whole True, by index [True, 'ValueError', 'ValueError', 'ValueError'] for 3 x 5; no failure for 5 x 5;
# 4 frames for no indices. A reader that wants a few frames of such a file should unpack them itself, or read all.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
from io import BytesIO

import numpy as np
import pydicom
from pydicom import Dataset, dcmread
from pydicom.pixels import iter_pixels, pack_bits, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage, generate_uid


def written(frames: np.ndarray) -> bytes:
    """A binary segmentation with these frames, (N, rows, columns) of 0 and 1, as a file."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = SegmentationStorage, generate_uid()
    made.NumberOfFrames, made.Rows, made.Columns = frames.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 1
    made.HighBit = made.PixelRepresentation = 0
    made.PixelData = pack_bits(frames)
    made["PixelData"].VR = "OB"
    made.ensure_file_meta()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def outcome(read):
    try:
        return bool(read())
    except ValueError as error:
        assert "cannot reshape array" in str(error), error
        return "ValueError"


print("pydicom", pydicom.__version__)
seen = {}
for rows, columns in ((3, 5), (5, 5)):
    frames = np.random.default_rng(0).integers(0, 2, (4, rows, columns), dtype=np.uint8)
    file = written(frames)
    whole = outcome(lambda: (pixel_array(dcmread(BytesIO(file))) == frames).all())
    single = [
        outcome(lambda k=k: (pixel_array(dcmread(BytesIO(file)), index=k) == frames[k]).all()) for k in range(4)
    ]
    seen[rows, columns] = (whole, single)
    print(f"{rows} x {columns}: whole {whole}, by index {single}")
of_none = len(list(iter_pixels(dcmread(BytesIO(file)), indices=[])))
print("frames for indices=[]:", of_none)
fails = ["ValueError"] * 3
assert seen == {(3, 5): (True, [True, *fails]), (5, 5): (True, [True] * 4)}, "pydicom behaves otherwise now"
assert of_none == 4, "pydicom behaves otherwise now"
PYTHON
