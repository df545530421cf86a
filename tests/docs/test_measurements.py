"""Each figure has one home, docs/measurements.yaml; README.md and benchmarks/RESULTS.md quote it as it is there."""

import re
from pathlib import Path

import pytest
from measurements import Measurements, filled_files, read_measurements

ROOT = Path(__file__).resolve().parents[2]
TABLES = read_measurements().tables
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e-?\d+)?%?")


@pytest.fixture
def measurements(tmp_path: Path) -> Measurements:
    file = tmp_path / "measurements.yaml"
    file.write_text(
        """
machines: {quiet: two cores}
tables:
  speed:
    title: Speed
    part: Prediction
    command: python benchmarks/speed.py
    machine: quiet
    commit: abc1234
    date: "2026-01-01"
    columns: {seconds: seconds, ratio: times theirs}
    rows: {ours: [ours, 0.50, 2], theirs: [theirs, 1.0, 1]}
    remarks: "![A picture](images/speed.png)"
quotes:
  short: {corner: who, columns: {s: seconds}, rows: {a: [we, speed.ours.seconds], b: [they, "-"]}}
"""
    )
    return read_measurements(file)


def test_a_figure_keeps_its_digits(measurements: Measurements) -> None:
    assert measurements.fill("It takes {{ speed.ours.seconds }} s.", docs="") == "It takes 0.50 s."


def test_a_table_is_filled_in(measurements: Measurements) -> None:
    table = "|  | seconds | times theirs |\n| --- | --- | --- |\n| ours | 0.50 | 2 |\n| theirs | 1.0 | 1 |"
    assert measurements.fill("<!-- measured: speed -->", docs="") == table


def test_a_quoting_table_has_the_figures_of_others(measurements: Measurements) -> None:
    table = "| who | seconds |\n| --- | --- |\n| we | 0.50 |\n| they | - |"
    assert measurements.fill("<!-- measured: short -->", docs="") == table


def test_a_filled_page_can_be_filled_again(measurements: Measurements) -> None:
    page = (
        "a\n\n<!-- measured: speed -->\n\nb <!-- = speed.ours.ratio -->7<!-- / --> c\n\n<!-- measured: all -->\n\nd\n"
    )
    filled = measurements.fill(page, docs="", keep_markers=True)
    assert "| ours | 0.50 | 2 |" in filled
    assert "b <!-- = speed.ours.ratio -->2<!-- / --> c" in filled
    assert measurements.fill(filled, docs="", keep_markers=True) == filled
    assert filled.endswith("<!-- /measured -->\n\nd\n")


def test_pictures_are_found_from_the_pages_folder(measurements: Measurements) -> None:
    assert "(../docs/images/speed.png)" in measurements.fill("<!-- measured: all -->", docs="../docs/")


@pytest.mark.parametrize("text", ["{{ no.ours.ratio }}", "{{ speed.no.ratio }}", "{{ speed.ours.no }}"])
def test_a_figure_that_does_not_exist_is_an_error(measurements: Measurements, text: str) -> None:
    with pytest.raises(KeyError, match=r"has no (table|row|column) no"):
        measurements.fill(text, docs="")


def test_a_row_of_another_length_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "measurements.yaml"
    text = (ROOT / "docs" / "measurements.yaml").read_text(encoding="utf-8")
    file.write_text(re.sub(r"(\[anterior, [\d.]+),[^\]]*\]", r"\1]", text))
    with pytest.raises(ValueError, match="hippocampus: row anterior"):
        read_measurements(file)


@pytest.mark.parametrize("file", [ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md"], ids=lambda file: file.name)
def test_the_filled_file_has_the_figures_of_the_data(file: Path) -> None:
    stale = f"{file.name} differs from docs/measurements.yaml; run `python docs/_ext/measurements.py`"
    assert file.read_text(encoding="utf-8") == filled_files()[file], stale


def test_no_line_of_the_readme_begins_with_a_figures_marker() -> None:
    """A comment at the start of a line would end the paragraph."""
    assert not re.search(r"^<!-- = ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", TABLES)
def test_each_table_says_where_it_comes_from(name: str) -> None:
    table = TABLES[name]
    assert re.fullmatch(r"[0-9a-f]{7}", table.commit)
    assert table.machine in read_measurements().machines
    assert table.beside or table.machine == "none"
    assert table.command


@pytest.mark.parametrize("name", TABLES)
def test_each_table_has_figures(name: str) -> None:
    cells = [cell for row in TABLES[name].rows.values() for cell in row[1:]]
    assert any(NUMBER.match(cell) for cell in cells)


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if "benchmarks/" in table.command])
def test_each_benchmark_command_exists(name: str) -> None:
    command = TABLES[name].command
    (file,) = re.findall(r"benchmarks/\w+\.py", command)
    source = (ROOT / file).read_text(encoding="utf-8")
    assert not [option for option in re.findall(r"--[a-z0-9-]+", command) if f'"{option}"' not in source]
