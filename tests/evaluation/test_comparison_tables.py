import csv
import io
import re

import pytest

from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.compare import (
    compare_runs,
    comparison_csv,
    latex,
    markdown,
    ranking_csv,
    write_comparison,
)
from sam2_3dmed.evaluation.text_tables import escape_latex, escape_markdown

METRICS = {"dice": "higher", "hd95_mm": {"definition": "h", "unit": "mm", "better": "lower"}}
BASE = {"dice": [0.5, 0.25, 0.75, 0.5, 0.625, 0.375], "hd95_mm": [4, 5, 6, None, 8, 9]}
OURS = {"dice": [value + 0.125 for value in BASE["dice"]], "hd95_mm": [5, 6, 7, 8, 9, 10]}

MARKDOWN = """\
# Comparison of 2 runs on 6 cases

Baseline: base. Difference: mean over cases of run minus baseline, with its 95% bootstrap interval (10000 draws of \
cases, seed 0). p: Wilcoxon signed-rank, two-sided; p (Holm): adjusted for all comparisons of the metric. Best mean in \
bold.

## dice (higher is better)

| class  | run    |      mean | difference |     95% interval | win/tie/loss |     p | p (Holm) |
| ------ | ------ | --------: | ---------: | ---------------: | -----------: | ----: | -------: |
| organ  | base   |     0.500 |   baseline |                  |              |       |          |
|        | our\\|s | **0.625** |     +0.125 | [+0.125, +0.125] |        6/0/0 | 0.031 |    0.062 |
| tumour | base   | **0.500** |   baseline |                  |              |       |          |
|        | our\\|s | **0.500** |     +0.000 | [+0.000, +0.000] |        0/6/0 | 1.000 |    1.000 |

Fewer than 6 untied pairs, so that p < 0.05 cannot be reached, whatever the data: tumour, our\\|s: 0.

## hd95_mm (lower is better)

| class  | run    |     mean | difference |   95% interval | win/tie/loss |     p | p (Holm) |
| ------ | ------ | -------: | ---------: | -------------: | -----------: | ----: | -------: |
| organ  | base   | **6.40** |   baseline |                |              |       |          |
|        | our\\|s |     7.40 |      +1.00 | [+1.00, +1.00] |        0/0/5 | 0.062 |    0.125 |
| tumour | base   | **6.40** |   baseline |                |              |       |          |
|        | our\\|s | **6.40** |      +0.00 | [+0.00, +0.00] |        0/5/0 | 1.000 |    1.000 |

Pairs left out of 6, undefined in the run or the baseline: organ, our\\|s: 1; tumour, our\\|s: 1.

Fewer than 6 untied pairs, so that p < 0.05 cannot be reached, whatever the data: organ, our\\|s: 5; tumour, our\\|s: 0.

## Ranking

Within a metric and a class, runs are ranked by how many others each beats significantly (Wilcoxon signed-rank, \
one-sided, 0.05, not adjusted), as in the Medical Segmentation Decathlon; over all, by the mean of those ranks. \
Stability: 1000 draws of cases, seed 0; Kendall's tau is that of a redrawn ranking with the one shown.

| run    | rank | mean rank | 95% interval of rank | first in |
| ------ | ---: | --------: | -------------------: | -------: |
"""

LATEX = r"""% Needs \usepackage{booktabs}.
\begin{table}
\centering
\caption{Means over 6 cases, best in bold.
$^{*}$: differs from base
(Wilcoxon signed-rank test, Holm-adjusted $p < 0.05$).}
\begin{tabular}{llr}
\toprule
Class & Run & dice $\uparrow$ \\
\midrule
organ & base & 0.500 \\
 & our\_s & \textbf{0.625}$^{*}$ \\
\bottomrule
\end{tabular}
\end{table}

\begin{table}
\centering
\caption{Significance ranking over all metrics and classes;
intervals and shares of first places from 1000 bootstrap draws of the cases.}
\begin{tabular}{lrrrr}
\toprule
Run & Rank & Mean rank & 95\% interval & First \\
\midrule
our\_s & 1 & 1.00 & 1 to 1 & 100\% \\
base & 2 & 2.00 & 2 to 2 & 0\% \\
\bottomrule
\end{tabular}
\end{table}
"""


@pytest.fixture
def comparison(tmp_path, write_scores):
    runs = {"base": {"organ": BASE, "tumour": BASE}, "our|s": {"organ": OURS, "tumour": BASE}}
    return compare_runs([write_scores(tmp_path / name, values, METRICS) for name, values in runs.items()])


@pytest.fixture
def one_metric(tmp_path, write_scores):
    runs = {"base": {"organ": BASE}, "our_s": {"organ": OURS}}
    paths = [write_scores(tmp_path / name, values, METRICS) for name, values in runs.items()]
    return compare_runs(paths, ["dice"])


def test_markdown_to_the_letter(comparison):
    text = markdown(comparison)
    assert text.startswith(MARKDOWN)
    rest = text.removeprefix(MARKDOWN)
    assert "| dice    | organ  |    2 |      1 |" in rest
    assert re.search(r"\| dice +\| tumour +\| +1 \| +1 \| +undefined \|", rest)
    assert rest.splitlines()[-1].startswith("| all ")


def test_columns_of_markdown_line_up(comparison):
    for table in re.findall(r"(?:^\|.*\n)+", markdown(comparison), re.MULTILINE):
        assert len({len(line) for line in table.splitlines()}) == 1


def test_latex_to_the_letter(one_metric):
    assert latex(one_metric) == LATEX


def test_latex_is_balanced_and_has_as_many_cells_as_columns(comparison):
    text = latex(comparison)
    assert text.count(r"\begin{") == text.count(r"\end{") == 4
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}
    assert r"our\textbar{}s & \textbf{0.625} & 7.40 \\" in text  # 0.062 after Holm: no star
    assert text.count(r"\midrule") == 3


def test_latex_of_magnitudes_and_of_what_is_undefined(tmp_path, write_scores):
    values = {"organ": {"volume_error_ml": [None, None]}}
    paths = [write_scores(tmp_path / name, values, {"volume_error_ml": "zero"}) for name in "ab"]
    text = latex(compare_runs(paths))
    assert r"Class & Run & $|$volume\_error\_ml$|$ $\downarrow$ \\" in text
    assert r"organ & a & -- \\" in text
    assert "## volume_error_ml (magnitude; lower is better)" in markdown(compare_runs(paths))


def test_csv_holds_every_number(comparison):
    lines = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    assert len(lines) == 2 * 2 * 2
    assert lines[0] == {
        **dict.fromkeys(lines[0], ""),
        **{"metric": "dice", "kind": "class", "class": "organ", "run": "base", "baseline": "base"},
        **{"cases": "6", "defined": "6", "mean": "0.5"},
    }
    expected = "dice,class,organ,our|s,base,6,6,0.625,6,0,0.125,0.125,0.125,6,0,0,0.03125,0.0625"
    assert ",".join(lines[1].values()) == expected
    assert (lines[5]["pairs"], lines[5]["left_out"], lines[5]["p_holm"]) == ("5", "1", "0.125")


def test_ranking_csv(comparison):
    lines = list(csv.DictReader(io.StringIO(ranking_csv(comparison))))
    assert [(line["metric"], line["class"]) for line in lines[::2]] == [
        ("dice", "organ"),
        ("dice", "tumour"),
        ("hd95_mm", "organ"),
        ("hd95_mm", "tumour"),
        ("", ""),
    ]
    assert ",".join(lines[1].values()) == "dice,organ,our|s,1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0,0.0"
    assert (lines[2]["kendall_tau"], lines[2]["tau_undefined"]) == ("", "1.0")
    assert lines[9]["mean_rank"] == "1.25"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b", "a_b"),
        ("_a_", r"\_a\_"),
        ("__a", r"\_\_a"),
        ("a|b*c`d<e>f[g]\\", r"a\|b\*c\`d\<e\>f\[g\]" + "\\\\"),
        ("two\nlines", "two lines"),
    ],
)
def test_escaped_for_markdown(text, expected):
    assert escape_markdown(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50%_of & #1", r"50\%\_of \& \#1"),
        ("a{b}$c", r"a\{b\}\$c"),
        ("\\^~", r"\textbackslash{}\textasciicircum{}\textasciitilde{}"),
        ("a<b>c|d", r"a\textless{}b\textgreater{}c\textbar{}d"),
        ("two\nlines", "two lines"),
    ],
)
def test_escaped_for_latex(text, expected):
    assert escape_latex(text) == expected


def test_files(one_metric, tmp_path):
    write_comparison(one_metric, tmp_path / "new" / "folder")
    written = {path.name: path.read_text() for path in (tmp_path / "new" / "folder").iterdir()}
    assert written == {
        "comparison.md": markdown(one_metric),
        "comparison.csv": comparison_csv(one_metric),
        "ranking.csv": ranking_csv(one_metric),
        "comparison.tex": latex(one_metric),
    }
    with pytest.raises(DataError, match="cannot be written"):
        write_comparison(one_metric, tmp_path / "base" / "cases.csv")
