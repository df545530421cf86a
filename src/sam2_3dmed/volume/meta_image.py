"""Checks of a MetaImage before ITK reads it.

ITK ignores the checksum of compressed voxels, gives memory that it has not written for some headers, and for others it
crashes or never ends.
"""

import math
import re
import zlib
from pathlib import Path

from sam2_3dmed.errors import VolumeError, shown

_HEADER_BYTES = 1 << 16
_MAX_AXES = 10  # MetaIO has no room for more
_CHUNK = 1 << 20
_DATA = "ElementDataFile"
_PLACE = ("TransformMatrix", "Rotation", "Orientation", "Offset", "Origin", "Position", "ElementSpacing", "ElementSize")
_FARTHEST = 1e30
_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4, "DOUBLE": 8}
_HEADER = re.compile(rb"(?:(?!ElementDataFile)[^\n]*\n)*?ElementDataFile *[=:] *([^\r\n]+)\r?(?:\n|$)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_PATTERN = re.compile(r"[^%]*%0?\d{0,2}d[^%]*")


def require_sound(path: Path) -> None:
    """Raise VolumeError unless the header of `.mha` or `.mhd` can be used, and the voxels are those it describes."""
    with path.open("rb") as file:
        found = _HEADER.match(file.read(_HEADER_BYTES))
    if found is None:
        raise VolumeError(f"this is not a MetaImage: it has no {_DATA}")
    fields: dict[str, str] = {}
    for line in found[0].decode("latin-1").splitlines():
        key, separator, value = re.match(r"\s*(.*?)\s*([=:]|$)\s*(.*?)\s*$", line).groups()  # type: ignore[union-attr]
        if key and (not separator or key in fields):
            raise VolumeError(f"its header cannot be read: {shown(line.strip())}")
        fields[key] = value
    axes = _whole_numbers(fields, "NDims", 1)[0]
    if not 1 <= axes <= _MAX_AXES:
        raise VolumeError(f"a volume is 3D; this image has {axes} axes")
    for key in _PLACE:
        words = fields.get(key, "").split()
        if not all(_NUMBER.fullmatch(word) and abs(float(word)) < _FARTHEST for word in words):
            raise VolumeError(f"{key} of its header cannot be {shown(fields[key])}")
    size = math.prod(_whole_numbers(fields, "DimSize", axes)) * _whole_numbers(fields, "ElementNumberOfChannels", 1)[0]
    name = fields[_DATA]
    if "%" in name and not _PATTERN.fullmatch(name):
        raise VolumeError(f"{shown(name)} cannot be the names of its files")
    if "%" in name or name.upper().startswith("LIST"):
        return
    local = name.upper() == "LOCAL"
    data = path if local else path.parent / name
    if not data.is_file():
        raise VolumeError(f"its file {shown(name)} is missing")
    _require_voxels(data, found.end() if local else 0, size, fields)


def _whole_numbers(fields: dict[str, str], key: str, count: int) -> list[int]:
    """The numbers of a field, 1 where it is left out and may be."""
    text = fields.get(key, "1" if key == "ElementNumberOfChannels" else "")
    words = text.split()
    if len(words) != count or not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise VolumeError(f"{key} of its header cannot be {shown(text)}")
    return [int(word) for word in words]


def _require_voxels(data: Path, start: int, size: int, fields: dict[str, str]) -> None:
    """Raise VolumeError unless a file has the voxels, whole, from this byte on."""
    kind = _BYTES.get(fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY"))
    expected = None if kind is None else size * kind
    stored = data.stat().st_size - start
    if fields.get("CompressedData", "")[:1] in ("T", "t", "1"):
        wanted = fields.get("CompressedDataSize", "" if start else str(stored))
        if not (wanted.isascii() and wanted.isdigit()) or len(wanted) > 18 or int(wanted) > stored:
            raise VolumeError(f"the file is truncated: {stored} bytes of compressed voxels, not {shown(wanted)}")
        found = _decompressed_bytes(data, start, int(wanted))
        if expected not in (None, found):
            raise VolumeError(f"{found} bytes of voxels, but its header describes {expected}")
    elif expected is not None and expected > stored and fields.get("BinaryData", "")[:1] in ("T", "t", "1"):
        raise VolumeError(f"the file is truncated: {stored} of {expected} bytes of voxels")


def _decompressed_bytes(data: Path, start: int, stored: int) -> int:
    """How many bytes a zlib stream holds. Raises VolumeError if it is damaged."""
    stream, count = zlib.decompressobj(), 0
    try:
        with data.open("rb") as file:
            file.seek(start)
            while stored > 0 and (chunk := file.read(min(_CHUNK, stored))):
                stored -= len(chunk)
                while chunk:
                    count += len(stream.decompress(chunk, _CHUNK))
                    chunk = stream.unconsumed_tail
            count += len(stream.flush())
    except zlib.error:
        raise VolumeError("the compressed data is damaged") from None
    if not stream.eof:
        raise VolumeError("the file is truncated")
    return count
