"""The page of a sweep in a real browser, used as a reader would (Debian: chromium, chromium-driver)."""

import json
import math
import time

import chromium
import pytest

from normbench import records, report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (chromium.BROWSER and chromium.DRIVER), reason="needs chromium and chromedriver"),
]
NASTY = "<img src=x onerror=alert(1)>"
BREAKOUT = "</script><script>alert(2)</script>" + "x" * 300


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.opened(tmp_path_factory.mktemp("profile")) as page:
        yield page


def learn(folder, epochs):
    """Rows as a run leaves them, for every cell of a sweep."""
    for k, one in enumerate(path.parent for path in sorted(folder.glob("*/config.yaml"))):
        rows = [
            {"epoch": e, "step": 50 * e, "lr": 0.1, "train_loss": 2.3 * math.exp(-e / (5 + k % 7)) + 0.01 * k,
             "top1": 90 - 80 * math.exp(-e / (3 + k % 5)), "top5": 99.0, "loss": 0.5, "eval_count": 359,
             "images_per_s": 300.0 + k, "train_seconds": 3.0 * e}
            for e in range(1, epochs + 1)
        ]  # fmt: skip
        (one / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        facts = {"torch": "2.6.0", "device": ("cpu", "H200")[k % 2], "threads": 1, "command": ["python", "-m", NASTY]}
        (one / "provenance.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def kept():
    """What the first test made: no test changes the sweep."""
    return []


@pytest.fixture
def folder(sweep, cell, kept):
    if kept:
        return kept[0]
    cells = [
        cell(90 + len(norm) / 3 + batch / 8 + seed / 10, norm=norm, batch=batch, seed=seed)
        for norm in ("bn", "gn", "bgn", "frn") for batch in (2, 16) for seed in (0, 1)
    ]  # fmt: skip
    cells += [cell(9.5, norm=NASTY), cell(norm="ln", status="error", reason=BREAKOUT) | {"traceback": BREAKOUT}]
    cells += [cell(norm="in", status="diverged", reason="loss is nan at step 3")]
    folder = sweep(cells, name=f"a {NASTY.replace('/', '')}")
    learn(folder, epochs=12)
    report.write(folder)
    kept.append(folder)
    return folder


@pytest.fixture
def page(browser, folder):
    browser.window(1280, 900)
    browser.log("browser")
    browser.open((folder / "report.html").as_uri())
    yield browser
    assert browser.log("browser") == []  # what a test expects there it has taken out
    with pytest.raises(RuntimeError, match="no such alert"):
        browser("GET", "/alert/text")


def column(page, key):
    """The texts of a shown column, from the first row down."""
    heads = page.texts("#rows thead th")
    return page.texts(f"#rows tbody tr > :nth-child({heads.index(key) + 1})")


def until(question, wanted):
    end = time.monotonic() + 5
    while (got := question()) != wanted and time.monotonic() < end:
        time.sleep(0.02)
    assert got == wanted


def count(page):
    return page.texts("#count")[0]


def test_it_asks_no_network_and_says_nothing_to_the_console(page, folder):
    page.requests()
    page.open((folder / "report.html").as_uri())
    page.click("#draw")
    asked = [address for address in page.requests() if not address.startswith("data:")]
    assert asked == ["about:blank", (folder / "report.html").as_uri()] or asked == [(folder / "report.html").as_uri()]
    assert page.run("return document.images.length") == len(list(folder.glob("*.svg"))) > 0
    assert page.run("return [...document.images].every(image => image.complete && image.naturalWidth > 100)")


def test_a_strange_script_would_not_run(page):
    page.run("const s = document.createElement('script'); s.textContent = 'window.hit = 1'; document.body.append(s)")
    page.run("document.body.insertAdjacentHTML('beforeend', '<img src=y onerror=\"window.hit = 2\">')")
    time.sleep(0.2)
    assert page.run("return window.hit") is None
    said = " ".join(entry["message"] for entry in page.log("browser"))
    assert said.count("Content Security Policy") >= 2


def test_nasty_words_are_words(page):
    assert NASTY in column(page, "norm")
    assert page.run("return document.title").startswith("a <img")
    assert page.run("return document.querySelectorAll('img[src=x], #rows img, script').length") == 3
    assert page.texts("#failures .reason") == ["loss is nan at step 3", BREAKOUT]
    assert NASTY in page.texts("#provenance dd")[-1]
    page.run("document.querySelector('#failures details').open = true")
    assert page.run("return document.querySelector('#failures pre').innerText") == BREAKOUT
    page.run("document.querySelector('[data-where=norm]').value = arguments[0]", NASTY)
    page.run("document.querySelector('[data-where=norm]').dispatchEvent(new Event('change', {bubbles: true}))")
    assert count(page) == "1 of 19 cells"
    page.click("#draw")
    assert NASTY in page.texts("#legend li")[0]


def test_sorting(page):
    untouched = column(page, "top1")
    order = lambda: page.run("return document.querySelector('[data-sort=top1]').closest('th').ariaSort")  # noqa: E731
    assert order() == "none"
    page.click("[data-sort=top1]")
    there = sorted((text for text in untouched if text), key=float)
    assert there[0] == "9.50"  # by size, not by letter
    assert column(page, "top1") == [*there, "", ""]
    assert order() == "ascending"
    page.click("[data-sort=top1]")
    assert column(page, "top1") == [*reversed(there), "", ""]
    assert order() == "descending"
    page.click("[data-sort=top1]")
    assert column(page, "top1") == untouched
    page.click("[data-sort=batch]")
    pairs = list(zip(column(page, "norm"), column(page, "seed"), strict=True))
    small = [pair for pair, batch in zip(pairs, column(page, "batch"), strict=True) if batch == "2"]
    assert small[:4] == [("bn", "0"), ("bn", "1"), ("bgn", "0"), ("bgn", "1")]  # equal ones stay in order


def test_sorting_by_keyboard(page):
    page.run("document.querySelector('[data-sort=batch]').focus()")
    page.press("Tab", "Enter")
    focused = "return [document.activeElement.dataset.sort, document.activeElement.closest('th').ariaSort]"
    assert page.run(focused) == ["seed", "ascending"]
    page.press("Space")
    assert page.run(focused) == ["seed", "descending"]
    assert column(page, "seed")[:2] == ["1", "1"]


@pytest.mark.parametrize(
    ("find", "left"),
    [("bgn", 4), ("norm=bn,gn", 8), ("top1>92.5 batch=16", 8), ("status!=ok", 2), ("nan step", 1),
     ('reason="loss is nan at step 3"', 1),
     ("top1<=9.5", 1), ("nothing such", 0)],
)  # fmt: skip
def test_finding(page, find, left):
    page.type("#find", find)
    until(lambda: count(page), f"{left} of 19 cells")
    assert len(page.texts("#rows tbody tr")) == left
    page.click("#clear")
    assert count(page) == "19 cells"
    assert page.run("return document.querySelector('#find').value") == ""


def test_an_entry_leads_to_its_cells_and_back(page):
    page.click("#table a[href='#where.norm=bgn&where.batch=16']")
    assert (set(column(page, "norm")), set(column(page, "batch")), count(page)) == ({"bgn"}, {"16"}, "2 of 19 cells")
    assert page.run("return document.querySelector('[data-where=batch]').value") == "16"
    page("POST", "/back")
    until(lambda: count(page), "19 cells")
    page.click("#failures a")
    until(lambda: count(page), "1 of 19 cells")
    assert column(page, "norm") == ["in"]
    page.click("#choices [data-chip=cell_id]")
    assert count(page) == "19 cells"


def test_curves(page):
    assert page.texts("#charts svg") == []
    page.click("#rows tbody tr:nth-child(1) input")
    page.click("#rows tbody tr:nth-child(6) td:nth-child(4)")
    assert len(page.texts("#legend li")) == 2
    assert page.run("return document.querySelectorAll('#charts path.curve').length") == 4
    assert page.run("return document.querySelectorAll('#charts svg').length") == 2
    points = page.run("return document.querySelector('#charts path').getAttribute('d').split(/[ML]/).length - 1")
    assert points == 12
    page.run("document.querySelector('#charts svg').focus()")
    page.press("Right", "Right")
    told = page.run("return document.querySelector('#charts .tip').innerText").splitlines()
    assert told[0] == "epoch 2"
    assert len(told) == 3
    # 90 - 80 exp(-2/3), by formula of the made-up rows, is in the hint of the cell that has it.
    assert any(line.startswith(f"{90 - 80 * math.exp(-2 / (3 + k)):.2f}") for k in range(5) for line in told[1:])
    page.press("Escape")
    assert not page.run("return document.querySelector('#charts .tip').checkVisibility()")
    box = page.run(
        "const b = document.querySelector('#charts svg').getBoundingClientRect(); return [b.x, b.y, b.width]"
    )
    middle = {"type": "pointerMove", "duration": 0, "x": int(box[0] + box[2] - 20), "y": int(box[1] + 60)}
    page("POST", "/actions", actions=[{"type": "pointer", "id": "mouse", "actions": [middle]}])
    assert page.run("return document.querySelector('#charts .tip').innerText").startswith("epoch 12\n")
    assert page.run("return document.querySelectorAll('#charts .dim .near').length") == 1
    page.click("#legend li button")
    assert len(page.texts("#legend li")) == 1
    assert page.run("return document.querySelectorAll('#rows tr.chosen').length") == 1
    page.click("#undraw")
    assert page.texts("#legend li") == []


def test_the_address_brings_it_all_back(page, folder):
    page.type("#find", "norm=bn,frn")
    until(lambda: count(page), "8 of 19 cells")
    page.click("[data-sort=top1]")
    page.click("[data-sort=top1]")
    page.click("#rows tbody tr:nth-child(2)")
    page.click("#rows tbody tr:nth-child(3)")
    page.click("#chooser summary")
    page.click("[data-column=cell_id]")
    page.click("[data-column=seed]")
    look = lambda: [page.texts(part) for part in ("#rows", "#count", "#legend li", "#rows .chosen")]  # noqa: E731
    before, address = look(), page.run("return location.href")
    page.open(address)
    assert look() == before
    assert "cell_id" in page.texts("#rows thead th")
    assert "seed" not in page.texts("#rows thead th")
    page.open((folder / "report.html").as_uri() + "#sort=no&where.no=1&curve=no&column=no&%E0%A4%A")
    assert count(page) == "19 cells"


def test_parts_of_the_page_are_no_states(page):
    page.type("#find", "bgn")
    until(lambda: count(page), "4 of 19 cells")
    page.click("nav a[href='#provenance']")
    assert count(page) == "4 of 19 cells"
    page.click("#provenance td a, #provenance th a")
    until(lambda: count(page), f"{page.texts('#provenance td')[0]} of 19 cells")


CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const light = (name) => {
  canvas.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratios = [];
for (const ink of ['--ink', '--quiet', '--accent', '--bad']) for (const paper of ['--paper', '--faint', '--over']) {
  const [a, b] = [light(ink), light(paper)];
  ratios.push((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
}
return Math.min(...ratios);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_and_can_be_read(page, tmp_path, width, scheme):
    page.window(width, 800, scheme=scheme)
    page.click("#draw")
    page.screenshot(tmp_path / "top.png")
    page.screenshot(tmp_path / "whole.png", whole=True)
    assert page.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    sheet = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sheet == "rgb(255, 255, 255)") == (scheme == "light")
    assert (
        page.run("return getComputedStyle(document.querySelector('.pictures figure')).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    assert page.run(CONTRAST) >= 4.5  # WCAG 2.2, 1.4.3
    assert (tmp_path / "whole.png").stat().st_size > 20_000


def test_on_paper_nothing_is_folded_or_hidden(page):
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("return [...document.querySelectorAll('#failures details')].every(d => d.open)")
    page.run("dispatchEvent(new Event('afterprint'))")
    assert not page.run("return document.querySelector('#failures details').open")


def test_two_thousand_cells(browser, sweep, cell):
    """100 epochs each: at most 10 MB, open within 2 s, and sorted, found and drawn in as many."""
    norms = [f"norm{k}" for k in range(25)]
    folder = sweep(
        [cell(50 + k + batch / 64, norm=norm, batch=batch, seed=seed)
         for k, norm in enumerate(norms) for batch in (2, 4, 8, 16, 32, 64, 128, 256) for seed in range(10)]
    )  # fmt: skip
    learn(folder, epochs=100)
    report.write(folder)
    html = folder / "report.html"
    assert html.stat().st_size < 10e6
    browser.open("about:blank")
    before = browser.busy()
    browser.open(html.as_uri())
    assert browser.busy() - before < 2
    assert count(browser) == "2000 cells"
    assert len(browser.texts("#rows tbody tr")) < 2000
    while (there := len(browser.texts("#rows tbody tr"))) < 2000:  # the rest comes as one scrolls
        browser.run("document.querySelector('#scroll').scrollTop = 1e9")
        until(lambda: len(browser.texts("#rows tbody tr")) > there, True)
    before = browser.busy()
    browser.click("[data-sort=top1]")
    browser.type("#find", "norm=norm7")
    until(lambda: count(browser), "80 of 2000 cells")
    browser.click("#draw")
    assert browser.run("return document.querySelectorAll('#charts path').length") == 160
    browser.click("#clear")
    browser.click("#draw")
    assert browser.texts("#drawn") == ["the first 100 of 2000 curves below"]
    assert browser.busy() - before < 2
    assert len(records.rows(folder)) == 2000
