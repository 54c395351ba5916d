"""What a table and a plot say in words: the title, the caption, the settings that stand in no label, the failures."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from normbench.report import sureness, tuned
from normbench.report.frame import SOURCE, TUNE, Spot, configuration, named, shown, word

REASON = 100  # characters of a reason; the rest stands in results.csv
FAILURES = 12  # lines of failures; likewise
FLIPS, FLIPPED = 3, 0.001  # pictures, and the share of them, that may change with the evaluation batch unsaid
WHO = 12  # lines of the table named in one of them; likewise
TITLE = ("arch", "data", "epochs")  # what the title says where it is the same for all
NO_SETTINGS = ("norm", "batch", "seed", TUNE, *TITLE)


def notes(frame: pd.DataFrame, spots: list[Spot]) -> list[str]:
    """The lines below a table."""
    said = [*sureness.notes(spots), *_flips(frame), *settings(frame), *_told(frame)]
    return [*_caption(frame, spots), *said, *_failures(frame)]


def title(name: str, frame: pd.DataFrame) -> str:
    """``first: resnet8 on digits, 10 epochs``: the sweep and what its cells share."""
    same = {c: value for c in TITLE if c in frame and (value := _constant(frame[c].dropna()))}
    where = " on ".join(same[c].rpartition("/")[2] for c in ("arch", "data") if c in same)
    length = f"{same['epochs']} epoch{'' if same['epochs'] == '1' else 's'}" if "epochs" in same else ""
    what = ", ".join(part for part in (where, length) if part)
    return f"{name}: {what}" if what else name


def settings(frame: pd.DataFrame) -> list[str]:
    """What was chosen and is the same for all, or for all cells of a norm.

    ``throughout: workers 8, recipe adamw``; ``gn: num_groups 4``.
    """
    whole = frame[frame["line"] != ""]
    several = whole["norm"].nunique() > 1
    shared = {column: value for column, value in _constants(whole).items() if several or not _of_norm(column)}
    said = tuned.notes(whole)
    said += [f"throughout: {_listed(shared)}"] if shared else []
    for norm, cells in whole.groupby(named(whole, "norm"), sort=False):
        own = {c: v for c, v in _constants(cells).items() if _of_norm(c) and c not in shared}
        said += [f"{norm}: {_listed({c.removeprefix('norm.'): v for c, v in own.items()})}"] if own else []
    return said


def _constants(cells: pd.DataFrame) -> dict[str, str]:
    """The settings that have one value in all these cells; a single worker is what everybody expects."""
    columns = [c for c in configuration(cells) if c not in NO_SETTINGS and not c.endswith(SOURCE)]
    values = {column: _constant(cells[column]) for column in sorted(columns, key=lambda column: "." in column)}
    return {c: value for c, value in values.items() if value and (c, value) != ("workers", "1")}


def _constant(values: pd.Series) -> str:
    """The one value there is, as a word; "" if there are several or none. Exact: two rates may read alike."""
    found = values.map(repr).nunique()
    return word(values.iloc[0]) if found == 1 else ""


def _of_norm(column: str) -> bool:
    return column.startswith("norm.")


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _caption(frame: pd.DataFrame, spots: list[Spot]) -> list[str]:
    spread = ", mean ± s.d. over seeds (n)" if any(spot.n > 1 for spot in spots) else ""
    alike = " among lines that differ in the norm alone" if _several_contests(spots) else ""
    bold = f"; bold: best of its batch{alike}" if any(spot.best for spot in spots) else ""
    caption = f"top-1 (%){_seen(frame)}, last epoch{spread}{bold}"
    twins = any(" #" in line for line in frame["line"])
    told = "lines marked #2, #3 … have the configuration of the first, but other data or another file of the user's"
    return [caption, told] if twins else [caption]


def _seen(frame: pd.DataFrame) -> str:
    """On which pictures, and how many where that is one number: ``, test split (359 pictures)``."""
    splits = sorted({str(split) for split in frame.get("split", pd.Series(dtype=object)).dropna() if split})
    counts = {int(count) for count in frame.get("eval_count", pd.Series(dtype=object)).dropna()}
    many = f" ({counts.pop()} pictures)" if len(counts) == 1 and len(splits) == 1 else ""
    return f", {' and '.join(splits)} split{many}" if splits else ""


def _several_contests(spots: Iterable[Spot]) -> bool:
    met: dict[tuple[str, int], str] = {}
    return any(met.setdefault((spot.block, spot.batch), spot.contest) != spot.contest for spot in spots)


def _told(frame: pd.DataFrame) -> list[str]:
    """What varies but stands in no label, as it follows the batch or the norm: ``lr 0.01, 0.04 at batch 2, 8``."""
    whole = frame[frame["line"] != ""]
    blocks = {str(line): set(cells["block"]) for line, cells in whole.groupby("line", sort=False)}
    said: dict[str, dict[str, set[str]]] = {}
    for column, norms in shown(whole).items():
        settled = {norm for norm, cells in whole.groupby("norm") if _of_norm(column) and _constant(cells[column])}
        rest = whole[~whole["norm"].isin(norms | settled)]
        for (block, line), cells in rest.groupby(["block", "line"], sort=False):
            values = _values_by_batch(column.removeprefix("norm."), cells.set_index("batch")[column])
            if values:
                said.setdefault(values, {}).setdefault(str(line), set()).add(str(block))
    return [_whose(lines, blocks) + values for values, lines in said.items()]


def _whose(lines: dict[str, set[str]], blocks: dict[str, set[str]]) -> str:
    """Whom a note is about: nobody's name if it is about all, no block's where it holds in all of a line's blocks."""
    if lines == blocks:
        return ""
    names = [
        f"{block} {line}".strip()
        for line, where in lines.items()
        for block in ([""] if where == blocks[line] else sorted(where))
    ]
    return f"{', '.join(names)}: "


def _values_by_batch(name: str, values: pd.Series) -> str:
    missing = "none" if name == "lr" else "default"  # trials may choose none
    texts = {batch: word(value) or missing for batch, value in values.sort_index().items()}
    if set(texts.values()) == {missing}:
        return ""
    if len(set(texts.values())) == 1:
        return f"{name} {next(iter(texts.values()))}"
    return f"{name} {', '.join(texts.values())} at batch {', '.join(map(str, texts))}"


def _flips(frame: pd.DataFrame) -> list[str]:
    """Lines whose accuracy is in part that of the evaluation batch; a few pictures may flip by rounding alone."""
    if not {"eval_flips", "eval_count"} <= set(frame.columns):
        return []
    cells = frame[frame["line"] != ""]
    flips, count = (pd.to_numeric(cells[name], errors="coerce") for name in ("eval_flips", "eval_count"))
    found = cells[(flips >= FLIPS) & (flips > FLIPPED * count)].assign(flips=flips, count=count)
    said = []
    for (block, line), some in found.groupby(["block", "line"], sort=False):
        number, of = max(zip(some["flips"], some["count"], strict=True))
        what = f"{number:.0f} of {of:.0f} pictures are right or wrong by the evaluation batch they are in"
        said.append(f"{block} {line}".strip() + f": {what} (data.eval_batch)")
    return said


def _failures(frame: pd.DataFrame) -> list[str]:
    """Who has no result, and why: cells with the same status and reason share a line.

    What has no place in the table is told with the store's problems (``records.read``).
    """
    failed = frame[(frame["status"] != "ok") & (frame["line"] != "")]
    causes = failed.groupby(["status", failed["reason"].map(_shortened)], sort=False)
    said = [f"{status}: {_who(cells, frame)}" + (f" ({why})" if why else "") for (status, why), cells in causes]
    more = len(said) - FAILURES
    return said if more <= 0 else [*said[:FAILURES], f"… and {more} more reasons: see results.csv"]


def _shortened(reason: object) -> str:
    words = " ".join(word(reason).split())
    return words if len(words) <= REASON else words[: REASON - 1].rstrip() + "…"


def _who(cells: pd.DataFrame, frame: pd.DataFrame) -> str:
    """``bn at batch 2, 4; frn at batch 128 (seeds 0, 2)``; seeds only where not all of them failed alike."""
    said = []
    for (block, line), part in cells.groupby(["block", "line"], sort=False):
        whole = frame[(frame["block"] == block) & (frame["line"] == line)]
        places: dict[str, list[str]] = {}
        for batch, seeds in part.groupby("batch", sort=False)["seed"]:
            some = len(seeds) < (whole["batch"] == batch).sum()
            which = f" (seed{'s'[: len(seeds) > 1]} {', '.join(map(str, seeds))})" if some else ""
            places.setdefault(which, []).append(str(batch))
        where = "; ".join(f"{', '.join(batches)}{which}" for which, batches in places.items())
        said.append(f"{block} {line}".strip() + f" at batch {where}")
    return "; ".join(said[:WHO]) + (f"; and {len(said) - WHO} more" if len(said) > WHO else "")
