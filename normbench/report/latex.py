"""A table as LaTeX (booktabs), to be included in a paper: ``\\input{table.tex}``.

Only ASCII leaves this module, so that any engine takes it: letters with accents and the signs of the tables become
commands, what has none reads ``[U+1F600]``. Nothing a user's names or reasons hold is left to be a command.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from normbench.report.table import Table

HEAD = """\
% made by normbench from the sweep's cells; it will be made again: write around it, not into it
% needs \\usepackage{booktabs}; \\input{table.tex} stands alone or in a table environment with a caption
"""
# Points: the width of the text of LaTeX's article, of a digit in its \\footnotesize, and between columns.
WIDTH, DIGIT, BETWEEN = 345, 4.3, 8
SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    # Brackets and stars could be taken for an argument of the command before them.
    "[": "{[}", "]": "{]}", "*": "{*}", "`": "{`}", '"': r"\char34{}",
    "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "≈": r"$\approx$", "≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$",
    "·": r"$\cdot$", "•": r"$\bullet$", "○": r"$\circ$", "●": r"$\bullet$", "▲": r"$\bigtriangleup$",
    "△": r"$\bigtriangleup$", "▼": r"$\bigtriangledown$", "▽": r"$\bigtriangledown$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "→": r"$\rightarrow$", "←": r"$\leftarrow$", "∞": r"$\infty$", "–": "{--}", "—": "{---}",
    "…": r"\dots{}", "†": r"\dag{}", "‡": r"\ddag{}", "§": r"\S{}", "¶": r"\P{}", "°": r"$^\circ$", "√": r"$\surd$",
    "²": "$^2$", "³": "$^3$", "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ł": r"\l{}",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "Δ": r"$\Delta$", "ε": r"$\varepsilon$",
    "χ": r"$\chi$", "ρ": r"$\rho$", "ν": r"$\nu$", "Φ": r"$\Phi$", "½": r"$\frac12$",
    "λ": r"$\lambda$", "μ": r"$\mu$", "µ": r"$\mu$", "σ": r"$\sigma$", "“": "``", "”": "''", "‘": "`", "’": "'",
    "\u00a0": "~", "\u2009": r"\,", "\u202f": r"\,",
}  # fmt: skip
NOTHING = "\u2060"  # Unicode's word joiner
SIGNS[NOTHING] = "{}"
_TWINS = re.compile(r"([-,'])(?=\1)")  # two of them would be set as one sign
ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c", "\u0328": "k",
}  # fmt: skip


def latex(table: Table) -> str:
    """Title, table and notes; the table in several, each with some of the batches, where it is wider than a page."""
    lines = [rf"\noindent\textbf{{{escaped(table.title)}}}\par\smallskip"]
    for columns in _parts(table):
        lines += [*_tabular(table, columns), r"\par\smallskip"]
    lines += [rf"\noindent {escaped(note)}\par" for note in table.notes]
    body = "\n".join(lines)
    return f"{HEAD}\\begingroup\\footnotesize\\setlength{{\\tabcolsep}}{{{BETWEEN / 2:g}pt}}\n{body}\n\\endgroup\n"


def _tabular(table: Table, columns: list[int]) -> Iterator[str]:
    yield rf"\noindent\begin{{tabular}}{{@{{}}l{'r' * len(columns)}@{{}}}}"
    yield r"\toprule"
    yield _row(r"norm \textbackslash{} batch", [str(table.batches[k]) for k in columns])
    for name, lines in table.blocks:
        yield r"\midrule"
        if name:
            yield rf"\multicolumn{{{len(columns) + 1}}}{{@{{}}l@{{}}}}{{\textit{{{escaped(name)}}}}} \\"
        for label, cells in lines:
            yield _row(escaped(label), [_cell(*cells[k]) for k in columns])
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _row(label: str, cells: list[str]) -> str:
    return " & ".join([label, *cells]) + r" \\"


def _cell(text: str, best: bool) -> str:
    return rf"\textbf{{{escaped(text)}}}" if best else escaped(text)


def _parts(table: Table) -> list[list[int]]:
    """As few sets of columns as fit the page, as far as the number of letters tells."""
    lines = [line for _, lines in table.blocks for line in lines]
    room = WIDTH - DIGIT * max((len(label) for label, _ in lines), default=0)
    parts: list[list[int]] = []
    left = 0.0
    for k, batch in enumerate(table.batches):
        width = BETWEEN + DIGIT * max([len(str(batch)), *(len(cells[k][0]) for _, cells in lines)])
        if not parts or width > left:
            parts.append([])
            left = room
        parts[-1].append(k)
        left -= width
    return parts


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(map(_sign, _TWINS.sub("\\1" + NOTHING, text)))


def _sign(letter: str) -> str:
    if letter in SIGNS:
        return SIGNS[letter]
    if letter.isspace():
        return " "
    if letter.isascii() and letter.isprintable():
        return letter
    parts = unicodedata.normalize("NFD", letter)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in ACCENTS:
        return rf"\{ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"{{[}}U+{ord(letter):04X}{{]}}"
