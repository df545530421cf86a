"""CSV: what is written is read again, a spreadsheet runs nothing of it, and every kind of damage is one line."""

import csv
import io
from pathlib import Path

import pytest

from sam2_3dmed.errors import DataError
from sam2_3dmed.files.tables import csv_text, read_csv
from sam2_3dmed.processes.atomic import write_csv

FORMULAS = ["=1+1", "+1+1", "-1+1|cmd", "@SUM(A1)", "\t=1", "\n=1", "＝1", '=HYPERLINK("x","y")', "'=1", "''@"]
TEXTS = ["", "case 1", "it's", "'quoted'", "a,b", 'say "x"', "two\nlines", "Ödem", "1-2", "a=b"]
NUMBERS = ["-1", "+2.5", "-.5e-3", "-inf", "nan", "-0"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_spreadsheet_runs_nothing(text: str) -> None:
    ((cell,),) = csv.reader(io.StringIO(csv_text([[text]]), newline=""))
    assert cell == f"'{text}"


@pytest.mark.parametrize("text", [*TEXTS[1:], *NUMBERS])
def test_other_cells_stay_as_they_are(text: str) -> None:
    ((cell,),) = csv.reader(io.StringIO(csv_text([[text]]), newline=""))
    assert cell == text


@pytest.mark.parametrize("text", [*FORMULAS, *TEXTS, *NUMBERS])
def test_what_is_written_is_read_again(text: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"name": text, text or "other": "x"}, {"name": "y"}])
    found = read_csv(tmp_path / "a.csv", ["name"])
    assert found.columns == ("name", text or "other")
    assert [cells for _, cells in found.lines] == [
        {"name": text, text or "other": "x"},
        {"name": "y", text or "other": ""},
    ]


def test_a_carriage_return_is_a_line_end() -> None:
    assert csv_text([["\r=1", "a\r\nb"]]) == '"\'\n=1","a\nb"\n'


def test_numbers_stay_numbers() -> None:
    assert csv_text([[-1, -0.5, None, True]]) == "-1,-0.5,,True\n"


def test_lines_have_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfa, b\r\n"two\r\nlines", 1\r\n\r\nshort\r\n')
    assert read_csv(tmp_path / "a.csv").lines == [(3, {"a": "two\r\nlines", "b": "1"}), (5, {"a": "short", "b": ""})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "its first line must name the columns a and b; no a, b"),
        ("a;b\n1;2\n", "its first line must name the columns a and b; no a, b"),
        ("a,b,b\n", "its first line names the column 'b' twice"),
        ("a,b\n1,2,3\n", "line 2 has 3 cells, and there are 2 columns"),
        ('a,b\n1,"2\n3,4\n', "cannot be read as CSV: line 3: "),
        (f"a,b\n{'x' * 200_000},1\n", "cannot be read as CSV: line 2: field larger than field limit"),
        ("a,b\n\0,1\n", "cannot be read: it is not text in UTF-8 (it holds null bytes)"),
    ],
)
def test_broken_tables(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(content)
    with pytest.raises(DataError) as caught:
        read_csv(file, ["a", "b"])
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


def test_empty_cells_beyond_the_last_column_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2,,\n")
    assert read_csv(tmp_path / "a.csv").lines == [(2, {"a": "1", "b": "2"})]
