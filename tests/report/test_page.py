"""The page of a sweep as a file: well formed, nothing from outside, everything escaped, the same bytes every time."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from normbench import records, report
from normbench.report import epochs, frame, page, table
from normbench.report.page import cells as page_cells
from normbench.report.page import failures, markup, provenance

NASTY = "<img src=x onerror=alert(1)>\"'&amp;"
BREAKOUT = "</script><script>alert(2)</script><!-- \u2028 </style>"
VOID = {"meta", "link", "img", "input", "br"}


class Parsed(HTMLParser):
    """Elements with their attributes, and their text; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.inside = [], [], []
        self.feed(text)
        self.close()
        assert self.inside == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes)
        if tag not in VOID:
            self.inside.append(tag)

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, text):
        self.texts.append((self.inside[-1] if self.inside else "", text))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return "".join(text for tag, text in self.texts if tag not in ("script", "style"))

    def data(self, name):
        scripts = [text for tag, text in self.texts if tag == "script"]
        place = [attributes.get("id") for attributes in self.all("script")].index(name)
        return json.loads(scripts[place])


def made(folder, pictures=None):
    cells = frame.read(folder)
    spots = frame.spots(cells)
    shown = table.make(folder.name, cells, spots)
    return page.make(folder, cells, spots, shown, pictures or {}, epochs.read(folder)[0])


def rows(folder, *values):
    """Rows of a cell: (epoch, top1, train_loss) each."""
    lines = [{"epoch": e, "top1": a, "train_loss": b} for e, a, b in values]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def folders(folder):
    return sorted(path.parent for path in folder.glob("*/config.yaml"))


@pytest.fixture
def nasty(sweep, cell):
    """Everything a user or an error could say, said badly."""
    cells = [
        cell(90.5, norm="bn", recipe__note=BREAKOUT), cell(91.5, norm="bn", seed=1, recipe__note="b"),
        cell(92.5, norm=NASTY, recipe__note="a\x1b[31mred\x00"), cell(norm="gn", status="error", reason=BREAKOUT),
        cell(norm="ln", status="diverged", reason=NASTY),
    ]  # fmt: skip
    folder = sweep(cells, name="a&b<i>")
    for one in folders(folder):
        (one / "provenance.json").write_text(json.dumps({"torch": BREAKOUT, "command": ["python", NASTY]}))
    return folder


def test_the_page_is_well_formed_and_asks_for_nothing(nasty):
    parsed = Parsed(made(nasty, {"plot.svg": b"<svg/>"}))
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for reference in ("for", "aria-labelledby", "aria-describedby"):
        assert {attributes[reference] for _, attributes in parsed.elements if reference in attributes} <= set(ids)
    assert parsed.all("html") == [{"lang": "en"}]
    addresses = [a[key] for _, a in parsed.elements for key in ("src", "href", "srcset", "action") if key in a]
    assert len(addresses) > 5
    assert all(address.startswith(("data:", "#")) for address in addresses)
    parts = {address[1:] for address in addresses if address.startswith("#") and "=" not in address}
    assert parts <= set(ids)


def test_no_word_becomes_markup(nasty):
    text = made(nasty)
    parsed = Parsed(text)
    assert len(parsed.all("script")) == 3
    assert not [a for _, a in parsed.elements if any(key.startswith("on") for key in a)]
    assert not [a for _, a in parsed.elements if "style" in a]
    assert parsed.all("img") == []
    for word in (NASTY, BREAKOUT):
        assert word in parsed.text
    assert "a&b<i>: resnet8 on digits" in parsed.text
    assert "<!--" not in text
    columns = {column["key"]: column for column in parsed.data("cell-data")["columns"]}
    assert NASTY in columns["norm"]["words"]
    noted = columns["recipe.note"]["words"]
    assert BREAKOUT in noted
    assert any("red" in word and word.isprintable() for word in noted)
    assert "\x1b" not in text
    assert "\x00" not in text


def test_the_policy_allows_its_own_script_and_style_alone(nasty):
    parsed = Parsed(made(nasty))
    (policy,) = [a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    for tag in ("script", "style"):
        own = [text for name, text in parsed.texts if name == tag][-1]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_a_letter_that_cannot_be_written_is_replaced(sweep, cell):
    folder = sweep([cell(90.0), cell(norm="gn", status="error", reason="half \ud800 a letter")])
    assert "half � a letter" in made(folder).encode().decode()


def test_the_same_store_gives_the_same_bytes(sweep, cell):
    folder = sweep([cell(90.0), cell(norm=NASTY, status="error", reason=BREAKOUT)])
    rows(folders(folder)[0], (1, 10.0, 2.0))
    report.write(folder)
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    report.write(folder)
    assert (folder / "report.html").read_bytes() == before
    assert before.count(b"data:image/svg+xml") == len(list(folder.glob("*.svg")))


def test_the_summary_says_what_the_terminal_says(sweep, cell):
    cells = [cell(90 + seed, norm=norm, seed=seed) for norm in ("bn", "gn") for seed in (0, 1)]
    cells += [cell(97.5, batch=2), cell(norm="gn", batch=2, status="diverged", reason="loss is nan")]
    folder = sweep(cells)
    frame_ = frame.read(folder)
    spots = frame.spots(frame_)
    shown = table.make(folder.name, frame_, spots)
    parsed = Parsed(page.make(folder, frame_, spots, shown, {}, epochs.read(folder)[0]))
    console = Console(file=io.StringIO(), width=200)
    console.print(shown)
    for words in (line.strip() for line in console.file.getvalue().splitlines()):
        for word in filter(None, re.split(r"\s{2,}", words)):
            assert word in parsed.text
    links = {a["href"]: a.get("title") for a in parsed.all("a") if "=" in a["href"]}
    assert links["#where.norm=bn&where.batch=8"] == "seed 0: 90.00, seed 1: 91.00"
    assert "#where.norm=gn&where.batch=2" in links


def test_every_cell_and_number_is_in_the_page(sweep, cell):
    cells = [cell(90 + batch / 7, batch=batch, seed=seed, amp=seed == 1) for batch in (2, 16) for seed in (0, 1)]
    folder = sweep([*cells, cell(norm="gn", status="oom", reason="too large")])
    found = {c["key"]: c for c in Parsed(made(folder)).data("cell-data")["columns"]}
    for row in records.rows(folder):
        place = found["cell_id"]["words"].index(row["cell_id"])
        place = found["cell_id"]["codes"].index(place)
        for key, column in found.items():
            got = column["values"][place] if "values" in column else column["words"][column["codes"][place]]
            if key in row and isinstance(row[key], float):
                assert (got is None) if row[key] != row[key] else got == pytest.approx(row[key], rel=1e-5)
            elif key in row and not isinstance(row[key], bool):
                assert (got or "") == (row[key] or "") or got == row[key]
    assert "precise_top1" not in found  # no cell has it
    assert [key for key, column in found.items() if column["shown"]] == [
        "line", "batch", "seed", "status", "amp", "top1", "reason",
    ]  # fmt: skip
    assert [key for key, column in found.items() if column["filter"]] == [
        "line", "norm", "batch", "seed", "status", "amp",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "decimals"), [([0.0606, 0.1], 4), ([6.8, 47.06], 1), ([1333.0, 900.5], 0), ([3, 4], None), ([0.0], 2)]
)
def test_a_measured_column_has_as_many_decimals_as_its_usual_value_needs(values, decimals):
    assert page_cells._decimals("loss", values).get("decimals") == decimals


def test_curves_are_small_and_true(sweep, cell):
    folder = sweep([cell(90.0), cell(91.0, seed=1), cell(92.0, seed=2), cell(93.0, seed=3), cell(94.0, seed=4)])
    first, later, cut, damaged, nothing = folders(folder)
    rows(first, (1, 10.123456, 2.123456), (2, None, float("nan")), (3, 90, 0.5))
    rows(later, (5, 10.0, 2.0), (6, 20.0, 1.0))
    rows(cut, (1, 10.0, "many"))
    with (cut / "rows.jsonl").open("a") as file:
        file.write('{"epoch": 2, "top1"')
    (damaged / "rows.jsonl").write_bytes(b"\xff\xfe[]\n1\n")
    assert not (nothing / "rows.jsonl").exists()
    assert Parsed(made(folder)).data("curve-data") == [
        [[10.12, None, 90.0], [2.1235, None, 0.5]],
        [[10.0, 20.0], [2.0, 1.0], [5, 6]],
        [[10.0], [None]],
        None,
        None,
    ]


def test_failures_tell_their_reason_and_last_words(sweep, cell):
    trace = "Traceback (most recent call last):\n" + "  line\n" * 2000 + "ValueError: <b>no</b>\n"
    broken = cell(norm="frn", status="error", reason="ValueError: <b>no</b>") | {"traceback": trace}
    many = [cell(norm="gn", seed=k, status="diverged", reason=f"loss is nan at step {k}") for k in range(20)]
    folder = sweep([cell(90.0), broken, *many, cell(norm="ln", status="killed", reason="its process was killed")])
    (next(folder.glob("ln-*")) / "log.txt").write_text("\x1b[1mfirst\x1b[0m\nslot 3: Killed\n")
    parsed = Parsed(made(folder))
    assert "ValueError: <b>no</b>" in parsed.text
    (said,) = [text for tag, text in parsed.texts if tag == "pre" and "ValueError" in text]
    assert said.startswith("…\n  line")
    assert len(said) <= failures.LAST + 2
    assert "20 different reasons" in parsed.text
    assert "loss is nan at step 19" in parsed.text
    assert "first\nslot 3: Killed" in parsed.text
    assert "gn, batch 8, seed 19" in parsed.text


def test_one_traceback_stands_for_cells_that_fail_alike_and_all_together_have_their_room(sweep, cell, monkeypatch):
    monkeypatch.setattr(failures, "ROOM", 50)
    alike = [cell(norm="bgn", seed=k, status="error", reason="E: x") | {"traceback": "here it is"} for k in range(30)]
    long = [cell(norm="frn", seed=k, status="error", reason=f"E: {k}") | {"traceback": "t" * 40} for k in range(5)]
    parsed = Parsed(made(sweep([cell(90.0), *alike, *long])))
    assert parsed.text.count("here it is") == 1
    assert "and 18 more" in parsed.text
    assert len([tag for tag, _ in parsed.texts if tag == "pre"]) == 2
    assert parsed.text.count("traceback is in the cell's folder") == 4


def test_a_cell_that_is_no_folder_of_the_sweep_is_not_read(sweep, cell):
    folder = sweep([cell(90.0), cell(norm="gn", status="error", reason="r")])
    secret = folder.parent / "secret"
    secret.mkdir()
    (secret / "result.json").write_text('{"traceback": "a secret"}')
    rows(secret, (1, 12.34, 1.0))
    bad = next(folder.glob("gn-*")) / "result.json"
    bad.write_text(bad.read_text().replace(bad.parent.name, "../secret"))
    text = made(folder)
    assert bad.parent.name in text
    assert "a secret" not in text
    assert "12.34" not in text


def test_provenance_is_told_once_and_by_group(sweep, cell):
    folder = sweep([cell(90.0, seed=k) for k in range(4)])
    for k, one in enumerate(folders(folder)[:3]):
        facts = {"torch": "2.6", "device": "cpu" if k else "H200", "attempt": 1 + k, "from_step": k, "cuda": None,
                 "hostname": "node17", "command": ["python", "-m", "x", "a b", "runs=/home/alice/runs"]}  # fmt: skip
        (one / "provenance.json").write_text(json.dumps(facts))
    found = provenance.read(folder, frame.read(folder)["cell_id"])
    assert found.names == ["A", "B", "B", ""]
    assert found.attempts == [1, 2, 3, None]
    assert found.shared == {"torch": "2.6", "command": "python -m x 'a b' runs=/home/alice/runs"}
    assert found.groups == {"A": {"device": "H200"}, "B": {"device": "cpu"}}
    text = made(folder)
    assert "runs=~/runs" in text
    assert "alice" not in text
    assert "node17" not in text
    assert "1 without" in text
    columns = {column["key"]: column for column in Parsed(text).data("cell-data")["columns"]}
    assert columns["origin"]["filter"]
    assert columns["attempt"]["values"] == [1, 2, 3, None]


def test_pictures_keep_their_order_and_unknown_ones_follow(sweep, cell):
    folder = sweep([cell(90.0)])
    names = ("z_new.svg", "cost.svg", "plot.svg", "a_new.svg")
    parsed = Parsed(made(folder, {name: f"<svg>{name}</svg>".encode() for name in names}))
    shown = [base64.b64decode(a["src"].partition("base64,")[2]).decode() for a in parsed.all("img")]
    assert [svg[5:-6] for svg in shown] == ["plot.svg", "cost.svg", "a_new.svg", "z_new.svg"]
    assert "Z new" in parsed.text


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("/home/alice/x.py:Norm", "~/x.py:Norm"), ('File "/Users/bob/a.py"', 'File "~/a.py"'),
        ("/data/home/x", "/data/home/x"),
        (r"C:\Users\carol\a", r"~\a"),
        ("a\r\nb\x07", "a\nb\ufffd"),
    ],
)  # fmt: skip
def test_clean(told, shown):
    assert markup.clean(told) == shown


def test_a_damaged_cell_is_listed(sweep, cell):
    folder = sweep([cell(90.0), cell(91.0, norm="gn")])
    broken = next(folder.glob("gn-*"))
    (broken / "result.json").write_text("{half")
    text = Parsed(made(folder)).text
    assert "its result.json cannot be read" in text
    assert broken.name in text


def test_what_the_page_is_made_of_lies_beside_its_code():
    folder = Path(page.__file__).parent
    for name in ("page.html", "page.css", *page.SCRIPTS):
        assert (folder / name).stat().st_size
    assert "{{" not in "".join((folder / name).read_text() for name in ("page.css", *page.SCRIPTS))
