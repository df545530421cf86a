"""The tables as text."""

import csv
import io
from dataclasses import replace

import pytest

from sam2_3dmed.evaluation.statistics import paired_difference
from sam2_3dmed.experiments.planning import METRICS, Task, paper_table
from sam2_3dmed.experiments.tables import Cell, TaskRow, TaskTable, latex, markdown, table_csv

COST = dict.fromkeys(
    ["prediction_memory_mb", "training_memory_mb", "prediction_gpu_memory_mb", "training_gpu_memory_mb"]
) | dict.fromkeys(["training_energy_kj", "prediction_energy_kj", "gflop", "prediction_seconds"])


@pytest.fixture
def table(tmp_path) -> TaskTable:
    cost = {**COST, "parameters": 38_900_000.0, "training_seconds": 5400.0, "gflop": 1234.5}
    full = dict.fromkeys(METRICS, Cell(0.7627, 0.81234, (0.79, 0.83), best=True, paper_best=True))
    found = paired_difference([0.1, 0.2, 0.3], [0.2, 0.3, 0.5])
    other = dict.fromkeys(METRICS, Cell(0.7535, 0.7, (0.6, 0.8), against_full=found, p_holm=0.01))
    rows = (
        TaskRow("without_srpp", "w/o SRPP", other, 2, 3, "seed 2: not run yet", cost),
        TaskRow("full", "SAM2-3dMed", full, 3, 3, "", cost),
    )
    columns = {"dice": "dice", "iou": "iou", "hd95": "hd95_mm", "nsd": "nsd_2mm"}
    return TaskTable(Task("lung", tmp_path, "lung"), rows, "full", 13, columns)


def test_markdown(table):
    text = markdown(paper_table(4), [table])
    assert text.startswith("# Table 4: Ablation of SRPP\n")
    assert "13 test cases; HD95 in mm, NSD at 2 mm; compared with SAM2-3dMed." in text
    assert "**0.7627** · **0.8123** [0.7900, 0.8300] · +0.0496" in text
    assert "0.7535 · 0.7000\\* [0.6000, 0.8000] · -0.0535" in text
    assert "w/o SRPP (2 of 3 seeds)" in text
    assert "- w/o SRPP: seed 2: not run yet" in text
    assert "0.7535 · 0.70\\* [" not in text.split("|")[2]
    line = next(line for line in text.splitlines() if line.startswith("| SAM2-3dMed") and "38.9" in line)
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["SAM2-3dMed", "38.9", "1234", "–", "–", "1.5", "–"]


def test_a_picture_stands_below_the_costs_of_its_data_set(table):
    other = replace(table, task=replace(table.task, name="my *own* data"))
    files = {"my *own* data": "accuracy_and_cost_my *own* data.png"}
    text = markdown(paper_table(4), [table, other], files)
    assert text.count("![") == 1
    lines = text.rstrip().splitlines()
    alt = r"my \*own\* data: mean Dice against GFLOP a volume"
    assert lines[-1] == f"![{alt}](accuracy_and_cost_my%20%2Aown%2A%20data.png)"
    assert lines[-2] == ""
    assert lines[-3].startswith("| SAM2-3dMed")
    assert "![" not in markdown(paper_table(4), [table])


def test_distances_have_two_decimals(table):
    line = next(line for line in markdown(paper_table(4), [table]).splitlines() if line.startswith("| w/o SRPP"))
    assert line.split("|")[4].strip() == "0.75 · 0.70\\* [0.60, 0.80] · -0.05"


def test_every_line_of_a_markdown_table_has_as_many_cells(table):
    lines = [line for line in markdown(paper_table(4), [table]).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {6, 8}


def test_energy_and_gpus_are_columns_where_they_are_known(table):
    assert "kJ" not in markdown(paper_table(4), [table])
    for row in table.rows:
        row.cost["training_energy_kj"] = 12.0
    assert "training [kJ]" in markdown(paper_table(4), [table])


def test_nothing_measured_yet(table, tmp_path):
    rows = tuple(
        TaskRow(row.method, row.title, dict.fromkeys(METRICS, Cell(0.7)), 0, 1, "not run", COST) for row in table.rows
    )
    text = markdown(paper_table(4), [TaskTable(table.task, rows, None, 0, {})])
    assert "Nothing is measured yet." in text
    assert "0.7000 · – · –" in text
    assert "Cost" not in text


def test_csv_reads_back(table):
    lines = list(csv.DictReader(io.StringIO(table_csv(paper_table(4), [table]))))
    assert len(lines) == 2 * 4
    first = lines[0]
    assert (first["task"], first["method"], first["metric"], first["column"]) == (
        "lung",
        "without_srpp",
        "dice",
        "dice",
    )
    assert (first["reported"], first["measured"], first["significant"], first["best"]) == ("0.7535", "0.7", "1", "0")
    assert float(first["minus_full"]) == pytest.approx(-0.4 / 3)
    assert float(first["difference"]) == pytest.approx(0.7 - 0.7535)
    assert first["parameters"] == "38900000.0"
    assert lines[4]["p_holm"] == ""


def test_latex(table):
    text = latex(paper_table(4), [table])
    assert r"SAM2-3dMed & reported & \textbf{0.7627} & \textbf{0.7627} & \textbf{0.76} & \textbf{0.7627} \\" in text
    assert r" & measured & 0.7000$^{*}$ {\small [0.6000, 0.8000]} & " in text
    assert r" & difference & +0.0496 & " in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert "w/o SRPP: seed 2: not run yet.}" in text
    assert r"\parbox" not in latex(paper_table(4), [replace(table, rows=table.rows[1:])])
    assert "–" not in text
