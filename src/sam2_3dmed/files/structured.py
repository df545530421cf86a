"""The one reader for JSON and the one for YAML: whatever is wrong with a file is one line that names it.

What they return is safe to walk, to compare and to print: depth, size and numbers are bounded.
"""

import codecs
import json
import re
from pathlib import Path
from typing import Any

import yaml

from sam2_3dmed.errors import ConfigError, DataError, UserError

MAX_BYTES = 2**28
"""Of a text file."""
MAX_YAML_BYTES = 2**23
"""Of a YAML file, whose parser is slow."""
MAX_DEPTH = 64
"""Of lists and mappings in each other."""
MAX_VALUES = 2**22
"""Of a file, counted as often as aliases repeat them."""
_MAX_BITS = 332  # of a whole number, 100 digits
# Halves of characters, which no file can hold; those from dc80 to dcff stand for bytes of file names.
_HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def read_text(path: Path, kind: type[UserError] = DataError, max_bytes: int = MAX_BYTES) -> str:
    """The text of a file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        UserError: of this kind, if the file cannot be read, is larger than `max_bytes`, or is no text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # a ValueError: the path holds a null byte
        raise kind(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > max_bytes:
        raise kind(f"{path}: cannot be read: it is larger than {max_bytes >> 20} MiB")
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise kind(f"{path}: cannot be read: it is not text in UTF-8 (see byte {error.start})") from None
    if "\0" in text:
        raise kind(f"{path}: cannot be read: it is not text in UTF-8 (it holds null bytes)")
    return text


def parse_json(text: str, source: object, kind: type[UserError] = DataError) -> Any:
    """The content of a JSON text. Raises UserError of this kind, which `source` begins, if it is none."""
    try:
        content = json.loads(text)
        _require_bounded(content)
    except (ValueError, RecursionError) as error:
        raise kind(f"{source}: broken JSON: {_reason(error)}") from None
    return content


def read_json(path: Path, kind: type[UserError] = DataError) -> Any:
    """The content of a JSON file. Raises UserError of this kind, as `read_text` and `parse_json`."""
    return parse_json(read_text(path, kind), path, kind)


def read_object(path: Path, kind: type[UserError] = DataError) -> dict[str, Any]:
    """The content of a JSON file that holds an object. Raises UserError as `read_json`, or for another content."""
    content = read_json(path, kind)
    if not isinstance(content, dict):
        raise kind(f"{path}: an object is expected, not a {type(content).__name__}")
    return content


def parse_yaml(text: str, source: object) -> Any:
    """The content of a YAML text; a ConfigError if it is none."""
    try:
        content = yaml.safe_load(text)
        _require_bounded(content)
    except Exception as error:  # PyYAML raises errors of many kinds for values that are not what they seem
        raise ConfigError(f"{source}: not valid YAML: {_reason(error)}") from None
    return content


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; a ConfigError if it cannot be read or is no YAML."""
    return parse_yaml(read_text(path, ConfigError, MAX_YAML_BYTES), path)


def _require_bounded(content: Any) -> None:
    """Raise ValueError for content that is too deep or too large to walk, or has values that cannot be printed."""
    level = [content]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list | tuple | set):
                below += item
            elif isinstance(item, int) and item.bit_length() > _MAX_BITS:
                raise ValueError("a number has more than 100 digits")
            elif isinstance(item, str) and not item.isascii() and _HALVES.search(item):
                raise ValueError("a text holds half of a character")
            if len(below) > MAX_VALUES:
                raise ValueError(f"it has more than {MAX_VALUES} values")
        if not below:
            return
        level = below
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _reason(error: Exception) -> str:
    """Why a parser failed, in one short line."""
    if isinstance(error, RecursionError):
        return f"it is nested more than {MAX_DEPTH} deep"
    if isinstance(error, ValueError | yaml.YAMLError):
        text = " ".join(str(error).split())
        return "a number has more than 100 digits" if "integer string conversion" in text else text[:200]
    return "a value is not of the type that it is marked as"
