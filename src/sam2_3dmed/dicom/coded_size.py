"""The size of a picture in its compressed data. pydicom takes the header's, and cuts what decodes to more pixels."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.uid import UID

_JPEG_2000_SIZE = b"\xff\x4f\xff\x51"
_NO_JPEG_SIZES = {0xC4, 0xC8, 0xCC}  # tables, among the markers of a picture


def coded_pixels(data: bytes, syntax: UID) -> tuple[int, int] | int | None:
    """Columns and rows of a compressed picture; for RLE, which has no size, the number of pixels; None if unknown."""
    from pydicom.uid import RLELossless

    if syntax == RLELossless:
        return _rle_pixels(data)
    if (start := data.find(_JPEG_2000_SIZE)) >= 0 and len(data) >= start + 24:
        right, bottom, left, top = struct.unpack(">4I", data[start + 8 : start + 24])
        return right - left, bottom - top
    return _jpeg_size(data)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """From the first header of a picture in JPEG (markers C0 to CF) or JPEG-LS (F7)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in _NO_JPEG_SIZES):
            rows, columns = struct.unpack(">2H", data[at + 5 : at + 9])
            return columns, rows
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _rle_pixels(data: bytes) -> int | None:
    """The bytes of the first segment, which has one for each pixel."""
    if len(data) < 64:
        return None
    count, first, second = struct.unpack("<3I", data[:12])
    segment = data[first : second if count > 1 else len(data)]
    at = pixels = 0
    while at + 1 < len(segment):
        head = segment[at]
        if head < 128:
            pixels, at = pixels + head + 1, at + head + 2
        else:
            pixels, at = pixels + (257 - head if head > 128 else 0), at + (2 if head > 128 else 1)
    return pixels
