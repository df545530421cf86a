"""JSON, YAML and text: every kind of damage is one short line, and what comes back can be walked and printed."""

import codecs
import json
from pathlib import Path

import pytest

from sam2_3dmed.errors import ConfigError, DataError, UserError, shown
from sam2_3dmed.files.structured import MAX_DEPTH, parse_json, parse_yaml, read_json, read_object, read_text, read_yaml


def line(function, *arguments: object, kind: type[UserError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


DIGITS = "9" * 5000
JSON = {
    "cut short": '{"a": [1, 2',
    "empty": "",
    "two contents": "{} {}",
    "a whole number of thousands of digits": f'{{"a": [{DIGITS}]}}',
    "its negative": f'{{"a": -{DIGITS}}}',
    "a number of 200 digits": '{"a": %s}' % ("9" * 200),
    "nested beyond the parser": "[" * 100_000,
    "nested": "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    "half a character": r'{"a": "\ud800"}',
    "half a character in a key": r'{"a\udfff": 1}',
}
YAML = {
    "an impossible date": "a: 2023-02-31",
    "an impossible time": "a: 2001-12-14t21:59:43.10-99:99",
    "a whole number of thousands of digits": f"a: {DIGITS}",
    "a hexadecimal number of thousands of digits": "a: 0x" + "f" * 5000,
    "a tag that does not fit": "a: !!timestamp soon",
    "another": "a: !!int ''",
    "a third": "a: !!bool perhaps",
    "nested beyond the parser": "[" * 100_000,
    "nested": "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    "aliases that double": "\n".join(
        ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    ),
    "an alias of itself": "a: &a [*a]",
    "a key that is a list": "? [1, 2]\n: 3",
    "a tag of Python": "!!python/object/apply:os.getcwd []",
    "a control character": "a: \x07",
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_broken_json(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    assert line(read_json, file).startswith(f"{file}: broken JSON: ")


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_broken_yaml(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert line(read_yaml, file, kind=ConfigError).startswith(f"{file}: not valid YAML: ")


def test_the_longest_that_is_taken() -> None:
    deep = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert json.dumps(parse_json(deep, "a")) == json.dumps(parse_yaml(deep, "a")) == deep
    assert parse_json("9" * 99, "a") == parse_yaml("9" * 99, "a") == 10**99 - 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks(encoding: str, tmp_path: Path) -> None:
    """Windows' tools write them; the content is the same."""
    file = tmp_path / "a"
    file.write_bytes('{"labels": "Ödem"}'.encode(encoding))
    assert read_json(file) == read_yaml(file) == {"labels": "Ödem"}


@pytest.mark.parametrize("content", [b"\xff", b"a\0b", codecs.BOM_UTF16_LE + b"a", "Ödem".encode("latin-1")])
def test_what_is_no_text(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(content)
    assert line(read_text, file).startswith(f"{file}: cannot be read: it is not text in UTF-8")


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    assert line(read_json, tmp_path).endswith(": cannot be read: Is a directory")
    assert line(read_json, tmp_path / "gone").endswith(": cannot be read: No such file or directory")
    with pytest.raises(DataError, match=r"File name too long$"):
        read_json(tmp_path / ("a" * 300))
    assert "null byte" in line(read_json, tmp_path / "a\0b")


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"a" * (2**20 + 1))
    assert line(read_text, file, DataError, 2**20) == f"{file}: cannot be read: it is larger than 1 MiB"


@pytest.mark.parametrize(("text", "found"), [("[]", "list"), ("5", "int"), ('"a"', "str"), ("null", "NoneType")])
def test_an_object_is_expected(text: str, found: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    assert line(read_object, file) == f"{file}: an object is expected, not a {found}"


def test_bytes_of_file_names_may_stand_in_json() -> None:
    """A name that is not UTF-8 is written in this way, and names the file again."""
    assert parse_json(r'"\udcff"', "a") == "\udcff"


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, list(range(10**6)), 16**10_000, {"a": {"b": {"c": [[[[]]]]}}}, "a\nb", ValueError("x" * 10**6)],
    ids=["text", "list", "number", "nested", "lines", "error"],
)
def test_values_are_cut_before_they_are_formatted(value: object) -> None:
    text = shown(value)
    assert len(text) <= 160
    assert "\n" not in text


def test_short_values_are_shown_as_they_are() -> None:
    assert [shown(value) for value in ("a", 5, None, [1, "b"])] == ["'a'", "5", "None", "[1, 'b']"]
