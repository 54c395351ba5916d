"""table.tex: it compiles whatever the names hold, and says what the table says."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from normbench import report
from normbench.report.latex import ACCENTS, SIGNS, escaped, latex
from normbench.report.table import Table

NASTY = (
    r"\input{/etc/passwd}", "100% of $x_1^2$ & {more", "#~^\\", "}{}{", "[htbp]", "*", "--flag", "a\nb\r\tc", "😀 中文",
    "é ü ñ ø ß Å ő", "<b>&amp;</b>", "`quoted' ''twice'' \"thrice\"", "≈ ▲ ▼ – — ± × … ∞ √", "\u202e\x00\x1b[31m", "|",
    "@{}", "%", "\\", "\\\\", "", "?` !`", "α β γ μ σ Δ", "₂ ⅔ Ж",
)  # fmt: skip


def table(names: tuple[str, ...] = ("bn",), batches: tuple[int, ...] = (2, 8), notes: tuple[str, ...] = ()) -> Table:
    lines = [(name, [("98.1 ± 0.2 (3)", k == 0) for k in range(len(batches))]) for name in names]
    return Table("first: resnet8 on digits", list(batches), [("", lines)], list(notes))


def nasty() -> Table:
    lines = [(name, [("98.1 ± 0.2 (3)", False), (name or "–", True)]) for name in NASTY]
    return Table("".join(NASTY), [2, 8], [(name, lines[k : k + 3]) for k, name in enumerate(NASTY)], list(NASTY))


def commands(text: str) -> set[str]:
    return set(re.findall(r"\\([a-zA-Z]+|.)", text))


def body(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("%")]


def test_a_table_as_it_is_written(sweep, cell):
    grid = [cell(98.1, seed=0), cell(97.9, seed=1), cell(95.2, norm="gn", norm__num_groups=4, batch=2, seed=0)]
    folder = sweep([*grid, cell(status="diverged", reason="loss is nan", norm="gn", batch=8, norm__num_groups=4)])
    report.write(folder)
    assert body((folder / "table.tex").read_text()) == [
        r"\begingroup\footnotesize\setlength{\tabcolsep}{4pt}",
        r"\noindent\textbf{first: resnet8 on digits, 10 epochs}\par\smallskip",
        r"\noindent\begin{tabular}{@{}lrr@{}}",
        r"\toprule",
        r"norm \textbackslash{} batch & 2 & 8 \\",
        r"\midrule",
        r"bn & {--} & 98.0 $\pm$ 0.1 (2) \\",
        r"gn & 95.2 & diverged \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip",
        *(r"\noindent " + line + r"\par" for line in [
            r"top-1 (\%), test split, last epoch, mean $\pm$ s.d. over seeds (n)",
            "no verdict where a seed, the entry's or the baseline's, ended diverged, oom, timeout or error",
            "throughout: lr 0.1",
            r"gn: num\_groups 4", "diverged: gn at batch 8 (loss is nan)",
        ]),
        r"\endgroup",
    ]  # fmt: skip


def test_the_best_are_bold_and_the_head_says_what_it_needs():
    text = latex(table())
    assert r"bn & \textbf{98.1 $\pm$ 0.2 (3)} & 98.1 $\pm$ 0.2 (3) \\" in text
    assert text.startswith("% made by normbench")
    assert r"\usepackage{booktabs}" in text


@pytest.mark.parametrize("text", NASTY)
def test_nothing_of_a_users_is_a_command(text):
    made = escaped(text)
    assert made.isascii()
    assert made.isprintable()
    known = commands("".join([*SIGNS.values(), *(rf"\{accent}" for accent in ACCENTS.values())]))
    assert commands(made) <= known
    plain = re.sub(r"\\.", "", made)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert not set("#%&_~") & set(plain.replace("~", "") if "\u00a0" in text else plain)


def test_every_row_has_all_columns_and_every_brace_its_other():
    text = latex(nasty())
    rows = [
        re.sub(r"\\[&#%$_{}]", "", line) for line in body(text) if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert len(rows) == 1 + sum(len(lines) for _, lines in nasty().blocks)
    assert {row.count("&") for row in rows} == {2}
    depth = 0
    for sign in re.sub(r"\\[&#%$_{}]", "", "\n".join(body(text))):
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0


def test_signs_that_run_together_are_kept_apart():
    assert escaped("--a ''b,,") == "-{}-a '{}'b,{},"


def test_a_wide_table_is_broken_by_batch():
    wide = table(("bn", "gn num_groups=16"), tuple(2**k for k in range(1, 11)))
    text = latex(wide)
    heads = [line.split(" & ")[1:] for line in body(text) if line.startswith("norm ")]
    assert len(heads) > 1
    assert [batch.removesuffix(r" \\") for head in heads for batch in head] == [str(2**k) for k in range(1, 11)]
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == len(heads)


def test_a_sweep_without_a_result_has_a_table_too(sweep, cell):
    folder = sweep([cell(status="oom", reason="out of memory")])
    report.write(folder)
    assert r"bn & oom \\" in (folder / "table.tex").read_text()


DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\begin{document}
\input{table.tex}
\begin{table}\centering\caption{Once more.}\input{table.tex}\end{table}
\end{document}
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs Debian's texlive-latex-recommended")
def test_latex_takes_it(tmp_path):
    wide = table(("bn", "gn num_groups=16"), tuple(2**k for k in range(1, 11)), ("a note " * 40,))
    for name, made in {"nasty": nasty(), "wide": wide, "plain": table()}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "table.tex").write_text(latex(made))
        (folder / "paper.tex").write_text(DOCUMENT)
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Output written on paper.pdf" in done.stdout
        overfull = [float(width) for width in re.findall(r"Overfull \\hbox \(([\d.]+)pt", done.stdout)]
        assert name == "nasty" or not overfull, "a table is wider than the page"
