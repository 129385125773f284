import math
import re
from dataclasses import replace

import pytest
from matplotlib.mathtext import MathTextParser
from records import NAMES, flip, made, pair, train

from relusym.findings import declared
from relusym.findings.layout import human_table, mean_and_std, number, page, write_table


@pytest.mark.parametrize("value, digits, plain, latex", [
    (0.901, 3, "0.901", "0.901"), (0.9, 3, "0.900", "0.900"), (0.9996, 3, "1.00", "1.00"),
    (0.09996, 3, "0.100", "0.100"), (0.04, 3, "4.00e-2", r"4.00 \cdot 10^{-2}"),
    (-0.00123, 2, "-1.2e-3", r"-1.2 \cdot 10^{-3}"), (1.34e-6, 3, "1.34e-6", r"1.34 \cdot 10^{-6}"),
    (12.34, 3, "12.3", "12.3"), (99.6, 2, "1.0e2", r"1.0 \cdot 10^{2}"), (0.0, 3, "0", "0"),
])  # fmt: skip
def test_numbers_are_written_as_in_the_paper(value, digits, plain, latex):
    assert number(value, digits) == plain and number(value, digits, latex=True) == latex


def test_cells_of_many_one_and_no_net():
    assert mean_and_std(0.901, 2.1e-3) == "0.901 ± 2.1e-3"
    assert mean_and_std(0.04, 4.9e-3, latex=True) == r"$4.00 \cdot 10^{-2} \pm 4.9 \cdot 10^{-3}$"
    assert mean_and_std(0.901, math.nan) == "0.901" and mean_and_std(math.nan, math.nan) == ""


@pytest.mark.parametrize("numbered", [1, 2, 4])
def test_markdown_and_latex_are_whole_tables(tmp_path, numbered):
    trains = [train("cnn", 0), train("cnn", 1, 0.8), train("pgcnn", 0, None, status="diverged")]
    flips = [flip("cnn", 0), flip("cnn", 1, 0.1), flip("pgcnn", 0, status="left_out")]
    table = declared()[f"table{numbered}"].load()
    frame = made(table, train=trains, flip_merge=flips, pair_merge=[pair("cnn", 0, "cnn", 1)])
    layout = replace(table.LAYOUT, title=f"Table {numbered}: 50% of cnn_inv")
    notes = ["data: a|b_c, 3 & 4", "width 0.25"]
    write_table(frame, tmp_path / "table", layout, notes, NAMES, ["md", "tex"])
    markdown = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert markdown.startswith(f"# Table {numbered}: 50% of cnn_inv\n\n|")
    assert markdown.endswith("\n\n- data: a|b_c, 3 & 4\n- width 0.25\n")
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(frame) and len({line.count("|") for line in lines}) == 1
    assert "nan" not in markdown.lower() and "<NA>" not in markdown
    latex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    unescaped = re.sub(r"\\.", "", latex)
    assert unescaped.count("{") == unescaped.count("}") and unescaped.count("$") % 2 == 0
    assert sorted(re.findall(r"\\begin{(\w+)}", latex)) == sorted(re.findall(r"\\end{(\w+)}", latex))
    assert rf"\caption{{Table {numbered}: 50\% of cnn\_inv}}" in latex
    assert r"data: a|b\_c, 3 \& 4" in latex
    # none but the comment and cell marks
    assert not re.search(r"[_#%&]", re.sub(r"^%.*|\s&\s", " ", unescaped))
    assert "nan" not in latex.lower()
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(frame)
    columns = len(human_table(frame, layout, NAMES).columns)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {columns - 1}
    formulas = re.findall(r"(?<!\\)\$[^$]*\$", latex)
    if numbered == 2:
        assert r"$0.901 \pm 2.1 \cdot 10^{-3}$" in formulas
    for formula in formulas:
        MathTextParser("path").parse(formula)  # raises where LaTeX's mathematics would


def test_the_page_of_a_table_has_the_cells_and_notes_of_its_markdown():
    html = page("# A < B\n\n| x   |   y |\n|:----|----:|\n| a\\|b |   1 |\n\n- 3 & 4\n")
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", html)
    assert cells == ["x", "y", "a|b", "1"] and html.count("<tr>") == 2
    assert "<h1>A &lt; B</h1>" in html and "<li>3 &amp; 4</li>" in html
    assert "nth-child(2) { text-align: right }" in html
