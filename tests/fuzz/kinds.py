"""What a kind of file is for the fuzzing: how it is made and read, and what must hold of a result."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        file: the one that is mutated, below the folder that `make` fills; a pattern takes the first.
        make: writes the same bytes each time, but for the folder's path. It gets the folder, and `write_series` if it
            `needs_series`.
        read: by the project's own reader. A UserError is an answer, too.
        check: raises AssertionError for a result that must be wrong. It gets the folder, the result of the mutated file
            and that of the whole one.
        packing: of `mutations.PACKINGS`.
    """

    file: str
    make: Callable[..., object]
    read: Callable[[Path], Any]
    check: Callable[[Path, Any, Any], None]
    packing: str = "bytes"
    needs_series: bool = False


def text_of(file: Path) -> str:
    """As a file in UTF-8, with or without a mark, or in UTF-16 with one."""
    content = file.read_bytes()
    return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


def json_of(file: Path) -> Any:
    return json.loads(text_of(file))


def yaml_of(file: Path) -> Any:
    return yaml.safe_load(text_of(file))


def same(found: Any, given: Any) -> bool:
    """Whether a value is the one in the file: a number may be written as text, a list may be a tuple."""
    if isinstance(found, dict) and isinstance(given, dict):
        keys = {str(key): value for key, value in given.items()}
        return {str(key) for key in found} == set(keys) and all(same(found[key], keys[str(key)]) for key in found)
    if isinstance(found, list | tuple) and isinstance(given, list | tuple):
        return len(found) == len(given) and all(map(same, found, given))
    if isinstance(found, bool) or isinstance(given, bool):
        words = (found, str(given).lower())
        return str(found).lower() == words[1] or found == given or words in _WORDS_FOR_BOOL
    if isinstance(found, int | float) and isinstance(given, int | float | str):
        return found == given or float(found) == float(given) or (math.isnan(found) and math.isnan(float(given)))
    return bool(found == given)


_WORDS_FOR_BOOL = {(True, word) for word in ("1", "1.0", "on", "yes", "t", "y")}
_WORDS_FOR_BOOL |= {(False, word) for word in ("0", "0.0", "-0.0", "off", "no", "f", "n")}


def holds_all_of(found: dict[str, Any], given: Any, where: str = "") -> None:
    """Each key of a file has its value in what was read; keys that the file lacks have some value."""
    found = {str(key): value for key, value in found.items()}
    for key, value in ((str(key), value) for key, value in given.items()):
        assert key in found, f"{where}{key}"
        if (
            isinstance(value, dict)
            and isinstance(found[key], dict)
            and set(map(str, value)) <= set(map(str, found[key]))
        ):
            holds_all_of(found[key], value, f"{where}{key}.")
        else:
            assert same(found[key], value), f"{where}{key}: {found[key]!r:.200} is read from {value!r:.200}"
