"""The pictures of a sweep, all together."""

from made import NORMS, lived, table

from normbench import files, report
from normbench.report import epochs, look, pictures


def grid(cell, **more):
    made = []
    for k, norm in enumerate(("bn", "gn", "frn")):
        for batch in (2, 8):
            made += [cell(90.0 + k + seed, norm=norm, batch=batch, seed=seed, **more) for seed in (0, 1)]
    return [one | {"images_per_s": 1000.0 + k, "peak_memory_mib": 100.0 + k} for k, one in enumerate(made)]


FILES = [f"{name}.{kind}" for name in ("plot", "heat", "curves", "cost") for kind in ("png", "svg")]


def draw(folder):
    return pictures.draw(folder, "first", *table(folder), [], epochs.read(folder)[0])


def test_all_are_drawn_and_the_same_every_time(sweep, cell):
    folder = lived(sweep(grid(cell)))
    made = draw(folder)
    assert list(made) == FILES
    assert draw(folder) == made
    assert all(data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml") for name, data in made.items())


def test_letters_that_no_font_has_are_drawn_as_boxes(sweep, cell):
    """And cost neither a warning (an error in these tests) nor the text of the SVG."""
    folder = lived(sweep([cell(90.0 + k, norm=norm, batch=8, seed=k) for norm in ("bn", "図.py:Ü") for k in (0, 1)]))
    assert "図.py:Ü" in draw(folder)["plot.svg"].decode()


def test_pictures_of_an_earlier_report_go(sweep, cell):
    folder = lived(sweep(grid(cell)))
    assert {path.name for path in report.write(folder).paths} >= set(FILES)
    for path in folder.glob("*/rows.jsonl"):
        path.unlink()
    (folder / "mine.png").touch()
    written = {path.name for path in report.write(folder).paths}
    there = {path.name for path in folder.glob("*.png")} | {path.name for path in folder.glob("*.svg")}
    assert there == (set(FILES) & written) | {"mine.png"}
    assert "curves.svg" not in there


def test_every_packaged_normalizer_has_a_look_of_its_own():
    packaged = {path.stem for path in (files.conf_folder() / "norm").glob("*.yaml")}
    assert packaged == {*look.HOME, *look.DASHED} == set(NORMS)
