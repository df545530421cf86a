"""Mutations of a file's content. A generator decides all of them, so that its seed says everything."""

import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable
from copy import deepcopy
from io import BytesIO
from random import Random
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import yaml
from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement, RawDataElement

Mutator = Callable[[bytes, Random], bytes]

_BYTES = b"\x00\x01\x7f\x80\xff \n\r\t\"'{}[]()<>,:;%$#&*!|\\/-+=._09eE~"
_PIECES = [b"", b"\0" * 8, b"\xff" * 8, b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b"../", b"%s%n", b"\x1f\x8b", b"PK\3\4"]
_NUMBERS = (
    *(
        "0",
        "-1",
        "1",
        "2",
        "3",
        "-0",
        "0.5",
        "1.5",
        "127",
        "128",
        "255",
        "256",
        "32768",
        "65535",
        "65536",
        "2147483647",
    ),
    *(
        "2147483648",
        "-2147483648",
        "4294967296",
        "9223372036854775807",
        "9223372036854775808",
        "9" * 30,
        "1" + "0" * 120,
    ),
    *("1e308", "-1e308", "1e309", "1e-320", "nan", "NaN", "inf", "-inf", "Infinity", "1_0", "0x10", "1e5", "١"),
)
_WORDS = (
    *(
        "null",
        "true",
        "false",
        "None",
        "yes",
        "~",
        "{}",
        "[]",
        '""',
        '"x"',
        "''",
        "[[]]",
        "[1, 2]",
        '{"a": 1}',
        "..",
        "/",
    ),
    *(
        '"\\u0000"',
        '"\\ud800"',
        '"' + "x" * 300 + '"',
        "&a",
        "*a",
        "!!python/name:os",
        "2023-02-31",
        "é",
        "\u202e",
        "²",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 3, 5, -1, 0.5, 65535, 65536, 2**31, 2**63, 10**90, 1e308, -1e308, 5e-324),
    *(float("inf"), float("-inf"), float("nan"), "", "0", "1", "-1", "1.0", "1e5", "nan", "a", "x" * 300, "a\0b"),
    *("../..", "/", ".", "$\\frac$", "\ud800", "\u202e", "²", "none", [], [[]], [0], [1, 2], ["x"], {}, {"a": 1}, [{}]),
)
_FORMATS = ("b", "<h", ">h", "<i", ">i", "<q", ">q", "<f", ">f", "<d", ">d")
_WHOLE = (
    0,
    1,
    -1,
    2,
    3,
    4,
    5,
    7,
    8,
    16,
    64,
    127,
    255,
    512,
    2**15 - 1,
    -(2**15),
    2**16,
    2**31 - 1,
    -(2**31),
    2**40,
    2**63 - 1,
)
_REAL = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, -1e30, 3e38, 1e300, float("inf"), float("-inf"), float("nan"))
_TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\w+|\s+|[^\w\s]')
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_HEADER = 512


def mutated(content: bytes, packing: str, rng: Random) -> bytes:
    """Another content. packing: what the file is, of `PACKINGS`; most mutations are of what is packed in it."""
    mutate = PACKINGS[packing] if rng.random() < 0.8 else _bytes
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = mutate(content, rng)
    return content


def _bytes(content: bytes, rng: Random) -> bytes:
    return rng.choice(_OF_BYTES)(content, rng)


def _text(content: bytes, rng: Random) -> bytes:
    return rng.choice(_OF_TEXT)(content, rng)


def _json(content: bytes, rng: Random) -> bytes:
    """Of a value, a key or a list; else of the text."""
    if rng.random() < 0.4:
        return _text(content, rng)
    try:
        return json.dumps(_changed(json.loads(content), rng)).encode()
    except (ValueError, RecursionError):  # an earlier mutation was of the text
        return _text(content, rng)


def _json_lines(content: bytes, rng: Random) -> bytes:
    """Of the JSON in one line; else of the text."""
    lines = content.split(b"\n")
    if rng.random() < 0.4:
        return _text(content, rng)
    at = rng.randrange(len(lines))
    lines[at] = _json(lines[at], rng)
    return b"\n".join(lines)


def _yaml(content: bytes, rng: Random) -> bytes:
    """As `_json`."""
    if rng.random() < 0.4:
        return _text(content, rng)
    try:
        return yaml.safe_dump(_changed(yaml.safe_load(content), rng), sort_keys=False).encode()
    except Exception:  # as in `_json`
        return _text(content, rng)


def _changed(content: Any, rng: Random) -> Any:
    """A copy with one change, at any depth."""
    copy = deepcopy(content)
    places = [
        (owner, key) for owner in _owners(copy) for key in (owner if isinstance(owner, dict) else range(len(owner)))
    ]
    if not places:
        return rng.choice(VALUES)
    (owner, key), (other, place) = rng.choice(places), rng.choice(places)
    how = rng.randrange(8)
    if how == 0:
        del owner[key]
    elif how == 1 and isinstance(owner, dict):
        name = rng.choice(("", "x" * 300, f"{key}2", str(place)))
        owner[name] = owner.pop(key)
    elif how == 1:
        owner.append(deepcopy(owner[key]))
    elif how == 2:
        owner[key] = deepcopy(other[place])
    elif how == 3:
        owner[key] = [owner[key]] if rng.random() < 0.5 else {"a": owner[key]}
    elif how == 4:
        owner[key] = str(owner[key])
    elif how == 5 and isinstance(owner[key], int | float):
        owner[key] = rng.choice((owner[key] + 1, owner[key] - 1, -owner[key], owner[key] * 1000, owner[key] + 0.5))
    else:
        owner[key] = rng.choice(VALUES)
    return copy


def _owners(content: Any) -> list[Any]:
    """All lists and mappings in each other."""
    if not isinstance(content, dict | list):
        return []
    inner = content.values() if isinstance(content, dict) else content
    return [content, *(owner for value in inner for owner in _owners(value))]


def _gzip(content: bytes, rng: Random) -> bytes:
    try:
        plain = gzip.decompress(content)
    except (
        OSError,
        EOFError,
        ValueError,
        struct.error,
        zlib.error,
    ):  # an earlier mutation was of the packed bytes
        return _bytes(content, rng)
    return gzip.compress(_bytes(plain, rng), 1, mtime=0)


def _header_and_gzip(content: bytes, rng: Random) -> bytes:
    """Of a text up to an empty line with a gzip stream behind it."""
    head, gap, packed = content.partition(b"\n\n")
    return _text(head, rng) + gap + packed if rng.random() < 0.6 else head + gap + _gzip(packed, rng)


def _header_and_bytes(content: bytes, rng: Random) -> bytes:
    """Of a text with voxels behind it."""
    found = re.search(rb"\n\n|LOCAL\n", content)
    end = found.end() if found else len(content)
    if rng.random() < 0.8:
        return _text(content[:end], rng) + content[end:]
    return content[:end] + _bytes(content[end:], rng)


def _zip(content: bytes, rng: Random) -> bytes:
    """Of one member, whose checksum is right again; or of the list of members."""
    try:
        with ZipFile(BytesIO(content)) as archive:
            members = [(info, archive.read(info)) for info in archive.infolist()]
    except Exception:  # as for gzip
        return _bytes(content, rng)
    if not members:
        return content
    number = rng.randrange(len(members))
    info, inside = members[number]
    how = rng.randrange(10)
    if how == 0:
        del members[number]
    elif how == 1:
        members.append((members[rng.randrange(len(members))][0], inside))
    else:
        members[number] = info, _bytes(inside, rng)
    packed = BytesIO()
    with ZipFile(packed, "w") as archive:
        for info, inside in members:
            again = ZipInfo(info.filename)
            again.compress_type = info.compress_type if how else ZIP_DEFLATED
            if again.filename not in archive.namelist():
                archive.writestr(again, inside)
    return packed.getvalue()


def _dicom(content: bytes, rng: Random) -> bytes:
    """Of one element, at any depth: its value becomes another of the same type, or it is gone."""
    try:
        dataset = dcmread(BytesIO(content))
        elements = [place for place in _elements(dataset) if place[1].tag.group != 2]
        owner, element = rng.choice(elements)
        how = rng.randrange(8)
        if how == 0 or element.VR == "SQ":
            del owner[element.tag]
        else:
            value = _value(element, rng)
            owner[element.tag] = RawDataElement(element.tag, element.VR, len(value), value, 0, False, True)
        written = BytesIO()
        dataset.save_as(written)
    except Exception:  # an earlier mutation was of the bytes
        return _bytes(content, rng)
    return written.getvalue()


def _elements(dataset: Dataset) -> list[tuple[Dataset, DataElement]]:
    found = []
    for element in dataset:
        found.append((dataset, element))
        if element.VR == "SQ":
            found += [place for item in element.value for place in _elements(item)]
    return found


def _value(element: DataElement, rng: Random) -> bytes:
    """A value in bytes, of even length."""
    if element.VR in ("US", "SS", "UL", "SL", "FD", "FL", "OB", "OW", "OB or OW", "OF", "AT"):
        form = {"US": "<H", "SS": "<h", "UL": "<L", "SL": "<l", "FD": "<d", "FL": "<f"}.get(element.VR, "<H")
        numbers = (
            _REAL if form in ("<d", "<f") else [n for n in _WHOLE if n == _as(form, n)] + [9, 10, 12, 15, 32, 2**14]
        )
        many = rng.choice((1, 1, 1, 0, 2, 3))
        return b"".join(struct.pack(form, _as(form, rng.choice(numbers))) for _ in range(many))
    before = element.value
    texts = [str(part) for part in ([before] if isinstance(before, str) or not hasattr(before, "__len__") else before)]
    how = rng.randrange(4)
    if how == 0 or not texts:
        texts = [rng.choice(_NUMBERS)] * rng.choice((1, 1, 2, 3, 6))
    elif how == 1:
        texts[rng.randrange(len(texts))] = rng.choice(_NUMBERS)
    elif how == 2:
        texts = rng.choice(([], texts[:-1], texts * 2, [*texts, "x"], texts[::-1]))
    else:
        texts = _bytes("\\".join(texts).encode(), rng).decode("latin-1").split("\\")
    value = "\\".join(texts).encode("latin-1", "replace")
    return value + b" " * (len(value) % 2)


def _as(form: str, number: float) -> float:
    """A number as a format can hold it."""
    if form[-1] in "fd":
        return (
            float(number)
            if form[-1] == "d" or abs(number) < 3.4e38 or number in (float("inf"), -float("inf"))
            else 3e38
        )
    bits = 8 * struct.calcsize(form)
    low = 0 if form[-1].isupper() else -(2 ** (bits - 1))
    return low + (int(number) - low) % 2**bits


def _place(content: bytes, rng: Random) -> int:
    """An index, half of the time near the beginning, where headers are."""
    if not content:
        return 0
    return rng.randrange(min(len(content), _HEADER) if rng.random() < 0.5 else len(content))


def _range(content: bytes, rng: Random) -> tuple[int, int]:
    start = _place(content, rng)
    return start, min(len(content), start + rng.choice((1, 2, 4, 8, 16, 64, 512)))


def _flip_a_bit(content: bytes, rng: Random) -> bytes:
    at, bit = _place(content, rng), rng.randrange(8)
    return content[:at] + bytes(byte ^ (1 << bit) for byte in content[at : at + 1]) + content[at + 1 :]


def _overwrite(content: bytes, rng: Random) -> bytes:
    start, stop = _range(content, rng)
    return content[:start] + bytes([rng.choice(_BYTES)]) * (stop - start) + content[stop:]


def _delete(content: bytes, rng: Random) -> bytes:
    start, stop = _range(content, rng)
    return content[:start] + content[stop:]


def _insert(content: bytes, rng: Random) -> bytes:
    at = _place(content, rng)
    piece = rng.choice(
        (rng.choice(_PIECES), bytes([rng.choice(_BYTES)]) * rng.choice((1, 2, 8, 300)), rng.randbytes(8))
    )
    return content[:at] + piece + content[at:]


def _duplicate(content: bytes, rng: Random) -> bytes:
    start, stop = _range(content, rng)
    at = _place(content, rng)
    return content[:at] + content[start:stop] + content[at:]


def _swap(content: bytes, rng: Random) -> bytes:
    (start, stop), (later, end) = sorted((_range(content, rng), _range(content, rng)))
    stop = min(stop, later)
    return content[:start] + content[later:end] + content[stop:later] + content[start:stop] + content[end:]


def _cut_short(content: bytes, rng: Random) -> bytes:
    return content[: _place(content, rng)] if rng.random() < 0.5 else content[: -rng.choice((1, 2, 4, 8, 16))]


def _change_a_number(content: bytes, rng: Random) -> bytes:
    form = rng.choice(_FORMATS)
    size = struct.calcsize(form)
    at = _place(content, rng)
    at -= at % rng.choice((1, 2, size))
    number = _as(form, rng.choice(_REAL if form[-1] in "fd" else _WHOLE))
    return content[:at] + struct.pack(form, number) + content[at + size :]


def _change_digits(content: bytes, rng: Random) -> bytes:
    """A number that is written out becomes another of the same length."""
    found = list(_NUMBER.finditer(content))
    if not found:
        return _change_a_number(content, rng)
    place = rng.choice(found)
    size = place.end() - place.start()
    number = rng.choice(_NUMBERS).encode()[:size]
    return content[: place.start()] + number.rjust(size, rng.choice((b" ", b"0"))) + content[place.end() :]


def _change_a_token(content: bytes, rng: Random) -> bytes:
    tokens = _TOKEN.findall(content)
    solid = [number for number, token in enumerate(tokens) if token.strip()]
    if not solid:
        return _insert(content, rng)
    at, other = rng.choice(solid), rng.choice(solid)
    how = rng.randrange(5)
    if how == 0:
        tokens[at] = rng.choice(_WORDS).encode()
    elif how == 1:
        tokens[at] = b""
    elif how == 2:
        tokens[at] = tokens[other]
    elif how == 3:
        tokens[at], tokens[other] = tokens[other], tokens[at]
    else:
        tokens[at] += rng.choice((b"", b" ")) + tokens[at]
    return b"".join(tokens)


def _change_a_written_number(content: bytes, rng: Random) -> bytes:
    found = list(_NUMBER.finditer(content))
    if not found:
        return _change_a_token(content, rng)
    place = rng.choice(found)
    number = rng.choice(_NUMBERS).encode()
    return content[: place.start()] + number + content[place.end() :]


def _change_lines(content: bytes, rng: Random) -> bytes:
    lines = content.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(4)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(other, lines[at])
    elif how == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines[at] = rng.choice((b" ", b"\t", b"- ", b"# ", b'"', b"'")) + lines[at]
    return b"\n".join(lines)


_OF_BYTES: tuple[Mutator, ...] = (
    *(_flip_a_bit, _overwrite, _delete, _insert, _duplicate, _swap, _cut_short),
    *(_change_a_number, _change_a_number, _change_digits),
)
_OF_TEXT: tuple[Mutator, ...] = (
    *(_change_a_token, _change_a_token, _change_a_written_number, _change_a_written_number, _change_lines),
    *(_flip_a_bit, _overwrite, _delete, _insert, _duplicate, _cut_short),
)
PACKINGS: dict[str, Mutator] = {
    "bytes": _bytes,
    "text": _text,
    "json": _json,
    "json lines": _json_lines,
    "yaml": _yaml,
    "gzip": _gzip,
    "header and gzip": _header_and_gzip,
    "header and bytes": _header_and_bytes,
    "zip": _zip,
    "dicom": _dicom,
}
