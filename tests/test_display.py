"""The live display: what stays, what moves, what it costs."""

import io
import subprocess
import sys
import time

import pytest
from rich.console import Console

from normbench import display
from normbench.display import Display

OK = {"status": "ok", "top1": 98.25, "train_seconds": 12.1, "images_per_s": 1534.2}
ROW = {"epoch": 1, "train_loss": 0.213, "top1": 97.2, "images_per_s": 1520.0}
PLAN = [("a", "bgn-b8-s0", "new"), ("b", "bn-b16-s0", "killed"), ("c", "gn-b2-s0", "ok")]


def console(terminal=False, width=100):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None, highlight=False)


def shown(view):
    return view.console.file.getvalue()


def run(view):
    with view:
        view.plan(PLAN)
        view.begin("a", "bgn-b8-s0", 2, 10)
        for step in range(1, 11):
            view.step("a", 1, step, 0.5, 1500.0)
        view.row("a", ROW)
        view.finish("a", "bgn-b8-s0", OK)
        view.finish("b", "bn-b16-s0", {"status": "diverged", "reason": "loss [nan]\nat step 3"})
    return shown(view)


def test_lines_where_there_is_no_terminal():
    lines = run(Display(3, console=console())).splitlines()
    assert lines[0].startswith("[2/3] bgn-b8-s0  epoch 1/2  loss 0.213  top-1 97.2  1520 images/s  ~0:00 left")
    assert len(lines[0].split("  ")) == 6
    assert lines[1] == "[2/3] bgn-b8-s0  ok  top-1 98.2  12.1 s  1534 images/s"
    assert lines[2] == "[3/3] bn-b16-s0  diverged  loss [nan] at step 3"
    assert lines[3] == "2 cells in 0:00: 1 ok, 1 diverged"
    assert len(lines) == 4


def test_long_lines_stay_whole_in_a_log():
    view = Display(1, console=console(width=40))
    view.finish("a", "bn-b2-s0", {"status": "error", "reason": "word " * 40})
    assert shown(view).count("\n") == 1


def test_epochs_are_told_at_most_every_five_seconds(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    view = Display(1, console=console())
    with view:
        view.begin("a", "bn-b2-s0", 100, 1)
        for epoch in range(1, 31):
            now += 1.0
            view.row("a", {**ROW, "epoch": epoch})
        told = [line.split("epoch ")[1].split("/")[0] for line in shown(view).splitlines()]
        assert told == ["1", "6", "11", "16", "21", "26"]


def test_every_finished_cell_is_told():
    view = Display(50, console=console())
    with view:
        for k in range(50):
            view.begin(str(k), f"bn-b2-s{k}", 1, 1)
            view.finish(str(k), f"bn-b2-s{k}", OK)
    assert shown(view).count("  ok  ") == 50


def test_terminal_shows_the_grid_and_the_cell(monkeypatch):
    monkeypatch.setattr(display, "REDRAW", 0.0)
    text = run(Display(3, console=console(terminal=True)))
    assert "1/3 cells" in text
    assert "bgn-b8-s0  starting" in text
    assert "epoch 1/2  loss 0.500  1500 images/s" in text
    assert "epoch 1/2  loss 0.213  top-1 97.2  1520 images/s" in text
    assert "1 failed" in text
    assert "[2/3] bgn-b8-s0  ok  top-1 98.2" in text
    assert "\x1b[?25h" in text, "the cursor is back"


def test_terminal_is_left_in_order_after_an_error():
    view = Display(3, console=console(terminal=True))
    with pytest.raises(ZeroDivisionError), view:
        view.begin("a", "bgn-b8-s0", 1 // 0, 10)
    assert "\x1b[?25h" in shown(view)
    assert "no cell was finished" in shown(view)
    view.note("afterwards")
    assert shown(view).endswith("afterwards\n")


def test_a_line_of_a_cell_never_wraps(monkeypatch):
    monkeypatch.setattr(display, "REDRAW", 0.0)
    view = Display(1, console=console(terminal=True, width=30))
    with view:
        view.begin("a", "a-very-long-name-of-a-cell-b2-s0", 2, 10)
        view.step("a", 1, 1, 0.5, 1500.0)
        assert "a-very-long-name-…  epoch 1/2\n" in shown(view) + "\n"


def test_time_left():
    view = Display(4, console=console())
    view.plan([(name, "x", "new") for name in "abcd"])
    view.begin("a", "x", 2, 10)
    view._start = view.running["a"]._start = time.monotonic() - 60
    assert view._time_left() == ""
    view.finish("a", "x", OK)
    assert view._time_left() == "~3:00 left"
    view.begin("b", "x", 2, 10)
    view.step("b", 1, 1, 0.1, 1.0)
    view.step("b", 2, 10, 0.1, 1.0)
    assert view._time_left() == "~1:00 left"


def test_a_cell_that_runs_again_counts_once():
    view = Display(2, console=console())
    view.plan([("a", "x", "ok"), ("b", "y", "ok")])
    view.begin("a", "x", 1, 1)
    assert len(view._done) == 1
    view.finish("a", "x", OK)
    assert len(view._done) == 2


def test_nothing_to_run_is_said():
    with Display(1, console=console()) as view:
        view.plan([("c", "gn-b2-s0", "ok")])
    assert shown(view) == "nothing to run: the one cell is done\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_step_costs_next_to_nothing(monkeypatch, terminal):
    monkeypatch.setattr(display, "REDRAW", 3600.0)
    with Display(1, console=console(terminal)) as view:
        view.begin("a", "bgn-b8-s0", 1, 10_000)
        costs = []
        for _ in range(5):
            start = time.perf_counter()
            for step in range(2000):
                view.step("a", 1, step, 0.5, 1500.0)
            costs.append((time.perf_counter() - start) / 2000)
    assert min(costs) < 50e-6


def test_drawings_are_throttled(monkeypatch):
    with Display(1, console=console(terminal=True)) as view:
        view.begin("a", "bgn-b8-s0", 1, 10_000)
        before = len(shown(view))
        for step in range(1000):
            view.step("a", 1, step, 0.5, 1500.0)
        assert len(shown(view)) - before < 3000


def test_values_that_are_missing_or_not_finite_are_no_obstacle():
    view = Display(1, console=console())
    view.begin("a", "x", 0, 0)
    view.row("a", {"epoch": 1, "train_loss": float("nan"), "top1": None})
    view.finish("a", "x", {})
    assert "[1/1] x  error" in shown(view)


def test_import_is_light():
    code = "import sys, normbench.display as d; assert not {'torch', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("speed", "text"), [(0.31, "0.3"), (9.94, "9.9"), (9.96, "10"), (1534.2, "1534")])
def test_slow_nets_are_not_at_a_standstill(speed, text):
    view = Display(1, console=console())
    view.begin("a", "x", 1, 10)
    view.step("a", 1, 1, 0.5, speed)
    assert f"  {text} images/s" in view.running["a"].told()
    view.finish("a", "x", {**OK, "images_per_s": speed})
    assert shown(view).endswith(f"  {text} images/s\n")


@pytest.mark.parametrize(("total", "text"), [(1, "0/1 cell "), (2, "0/2 cells ")])
def test_one_cell_is_no_cells(total, text):
    with Display(total, console=console(terminal=True)) as view:
        assert text in shown(view)


@pytest.mark.parametrize("width", range(20, 90, 3))
def test_a_narrow_terminal_shows_whole_words(width):
    view = Display(3, console=console(width=width))
    view._ended["lost"] = "error"
    view.begin("a", "bn-b2-s0", 2, 10)
    view.step("a", 1, 1, 0.5, 1500.0)
    view.row("a", ROW)
    view.console.print(view._view())
    grid, cell = shown(view).splitlines()[-2:]
    assert max(len(grid), len(cell)) <= width
    whole = ["bn-b2-s0", *view.running["a"].told().split("  ")]
    said = cell.strip().split("  ")
    assert said == whole[: len(said)]
    assert "…" not in grid
    assert "0/3 cells" in grid


class Broken(io.StringIO):
    """A file that works for a while."""

    def __init__(self, error, after):
        super().__init__()
        self.error, self.left = error, after

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


ERRORS = [OSError(28, "No space left on device"), UnicodeEncodeError("ascii", "é", 0, 1, "no"), ValueError("closed")]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("after", range(8))
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_cannot_be_shown_costs_nothing(monkeypatch, terminal, after, error):
    monkeypatch.setattr(display, "REDRAW", 0.0)
    out = sys.stdout
    file = Broken(error, after)
    view = Display(3, console=Console(file=file, force_terminal=terminal, width=100, color_system=None))
    run(view)
    view.note("afterwards")
    assert view._ended == {"a": "ok", "b": "diverged"}
    assert sys.stdout is out
    assert file.left >= 0 or view.console.quiet


CLOSED = """
import sys
from normbench.display import Display
sys.stdin.readline()
with Display(2) as view:
    view.begin("a", "x", 1, 1)
    view.finish("a", "x", {"status": "ok"})
    view.finish("b", "y", {"status": "ok"})
print("went on", file=sys.stderr)
"""


def test_a_closed_pipe_costs_nothing():
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", CLOSED], text=True, **pipes) as process:
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.stderr.read() == "went on\n"
        assert process.wait(timeout=60) == 0


def test_letters_that_a_log_has_no_code_for_become_question_marks():
    raw = io.BytesIO()
    view = Display(1, console=Console(file=io.TextIOWrapper(raw, "ascii"), width=80, highlight=False))
    view.finish("a", "bn-b2-s0", {"status": "error", "reason": "größer"})
    assert raw.getvalue() == b"[1/1] bn-b2-s0  error  gr??er\n"


def test_a_terminal_that_knows_ascii_alone_is_drawn_on(monkeypatch):
    monkeypatch.setattr(display, "REDRAW", 0.0)
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, "ascii", write_through=True)
    view = Display(3, console=Console(file=file, force_terminal=True, width=30, color_system=None))
    with view:
        view.begin("a", "größe-of-a-very-long-name-of-a-cell", 2, 10)
        view.step("a", 1, 1, 0.5, 1500.0)
        assert not view.console.quiet
    assert b"gr??e-of-a-very" in raw.getvalue()
