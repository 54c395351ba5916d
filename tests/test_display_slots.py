"""The live display with several cells at a time: what stands on the screen, and what a log gets to read."""

import io
import re
import time

import pytest
from rich.cells import cell_len
from rich.console import Console

from normbench import display
from normbench.display import Display

OK = {"status": "ok", "top1": 98.25, "train_seconds": 12.1, "images_per_s": 1534.2}
STOP = "stopping after checkpoints; Ctrl-C again stops at once"
LABELS = [
    "bn-b2-s0", "bgn-b16-s12", "resnet50-gn-b4-s1 lr=0.05", "ln-b2-s0", "frn-b128-s3", "gbn-b8-s0", "x", "in-b2-s0",
]  # fmt: skip


@pytest.fixture
def clockwork(monkeypatch):
    """A clock that goes on only when it is told to: ``clockwork(seconds)``."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def goes_on(seconds):
        now[0] += seconds

    return goes_on


def make(total, slots=1, *, terminal=True, width=100, height=25, encoding=None):
    file = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) if encoding else io.StringIO()
    look = {"color_system": None, "highlight": False, "legacy_windows": False}
    return Display(
        total, slots, console=Console(file=file, force_terminal=terminal, width=width, height=height, **look)
    )


def written(view):
    file = view.console.file
    return file.getvalue() if isinstance(file, io.StringIO) else file.buffer.getvalue().decode(file.encoding)


def screen(view):
    """The lines that a terminal shows after all that was written, without a limit to scrolling."""
    lines, at, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\??\d*[A-Za-z]|\n|\r|[^\x1b\r\n]+", written(view)):
        if part == "\n":
            at, column = at + 1, 0
            lines += [""] * (at + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.endswith("A"):
            at -= int(part[2:-1])
        elif part == "\x1b[2K":
            lines[at] = ""
        elif not part.startswith("\x1b"):
            assert column + cell_len(part) <= view.console.width, f"wraps: {part!r}"
            lines[at] = lines[at].ljust(column)[:column] + part + lines[at][column + len(part) :]
            column += len(part)
        assert at >= 0
    return [line.rstrip() for line in lines]


def start(view, count, labels=LABELS):
    """``count`` cells: the k-th in its epoch k + 2, every third without a top-1 yet."""
    for k in range(count):
        view.begin(str(k), labels[k], 10, 50)
    for k in range(count):
        if k % 3:
            view.row(str(k), {"epoch": k + 1, "train_loss": 1.0, "top1": 60 + 5 * k, "images_per_s": 1.0})
        view.step(str(k), k + 2, 20, 12.3 / (k + 1), 10.0**k)


@pytest.fixture(autouse=True)
def every_drawing(monkeypatch):
    monkeypatch.setattr(display, "REDRAW", 0.0)


def test_two_cells_in_columns(clockwork):
    with make(24, 2) as view:
        start(view, 2)
        clockwork(60)
        view.refresh()
        assert screen(view)[1:] == [
            "bn-b2-s0     epoch 2/10  loss 12.300              1.0 images/s  ~21:30 left",
            "bgn-b16-s12  epoch 3/10   loss 6.150  top-1 65.0   10 images/s   ~5:26 left",
        ]


def test_eight_cells_the_one_that_has_run_longest_first(clockwork):
    with make(24, 8, width=120) as view:
        start(view, 8)
        clockwork(10)
        view.begin("0", LABELS[0], 10, 50)
        grid, *cells = screen(view)
        assert "0/24 cells  0:10" in grid
        assert [line[: len(label)] for line, label in zip(cells, [*LABELS[1:], LABELS[0]], strict=True)] == [
            *LABELS[1:], LABELS[0],
        ]  # fmt: skip
        assert cells[-1].split() == ["bn-b2-s0", "starting"]
        assert len({line.index("epoch") for line in cells[:-1]} | {cells[-1].index("starting")}) == 1
        assert len({line.index("images/s") for line in cells[:-1]}) == 1


def test_finished_cells_scroll_above_and_their_lines_go(clockwork):
    with make(5, 3) as view:
        start(view, 3)
        view.finish("1", LABELS[1], OK)
        view.note("a note")
        view.begin("3", "ln-b2-s0", 10, 50)
        view.finish("0", LABELS[0], {"status": "oom", "reason": "too large"})
        assert [line.split("  ")[0] for line in screen(view) if line] == [
            "[1/5] bgn-b16-s12", "a note", "[2/5] bn-b2-s0", screen(view)[3].split("  ")[0], LABELS[2], "ln-b2-s0",
        ]  # fmt: skip
        assert "2/5 cells  1 failed" in screen(view)[3]
    assert [line for line in screen(view) if line] == [
        "[1/5] bgn-b16-s12  ok  top-1 98.2  12.1 s  1534 images/s",
        "a note",
        "[2/5] bn-b2-s0  oom  too large",
        "2 cells in 0:00: 1 ok, 1 oom",
    ], "nothing of what moved stays"


@pytest.mark.parametrize(("height", "cells"), [(25, 8), (10, 8), (9, 6), (6, 3), (4, 1), (3, 1), (2, 1), (1, 0)])
def test_on_a_low_terminal_the_last_line_says_how_many_more(clockwork, height, cells):
    with make(24, 8, height=height) as view:
        start(view, 8)
        lines = screen(view)
        shown = [label for label in LABELS if any(line.startswith(label + " ") for line in lines)]
        assert shown == LABELS[:cells]
        lines = [line for line in lines if line]
        assert len(lines) <= height
        if cells < 8 and height > 2:
            assert lines[-1] == f"and {8 - cells} more"


@pytest.mark.parametrize("width", range(20, 130, 7))
@pytest.mark.parametrize("count", [2, 8])
def test_a_narrow_terminal_shows_fewer_columns_of_whole_words(clockwork, width, count):
    with make(24, count, width=width) as view:
        start(view, count)
        clockwork(60)
        view.refresh()
        grid, *cells = screen(view)
        assert "…" not in grid
        assert max(map(len, (grid, *cells))) < width
        for number, (line, label) in enumerate(zip(cells, LABELS, strict=False)):
            name, *said = re.split(r" {2,}", line)
            assert name == label or name.endswith("…")
            told = view.running[str(number)].told().split("  ")
            assert said == told[: len(said)]
            assert said or width == 20, "the epoch is there, if a label must be cut for it"


def test_a_label_is_cut_only_where_the_epoch_would_not_fit(clockwork):
    labels = ["bn-b2-s0", "resnet50-batch-renormalization-b16-s0"]
    for width, second in ((53, labels[1]), (41, "resnet50-batch-renormalizat…")):
        with make(24, 2, width=width) as view:
            start(view, 2, labels)
            assert screen(view)[1:] == [
                f"{name:<{len(second)}}  epoch {2 + k}/10" for k, name in enumerate(["bn-b2-s0", second])
            ]


def test_wide_letters_stay_in_their_columns(clockwork):
    with make(2, 2) as view:
        view.plan([("0", "正規化-b2", "new"), ("1", "bn-b2-s0-x", "new")])
        start(view, 2, ["正規化-b2", "bn-b2-s0-x"])
        first, second = screen(view)[1:]
        assert cell_len(first[: first.index("epoch")]) == second.index("epoch")
        view.finish("0", "正規化-b2", OK)
        assert screen(view)[0].startswith("[1/2] 正規化-b2   ok")


def test_stopping_stands_at_the_foot_until_the_end(clockwork):
    with make(24, 2) as view:
        start(view, 2)
        view.stopping("once")
        view.stopping(STOP)
        view.finish("0", LABELS[0], {"status": "interrupted"})
        lines = [line for line in screen(view) if line]
        assert lines[-1] == STOP
        assert lines[-2].startswith(LABELS[1])
        assert "once" not in lines
    assert STOP not in screen(view)


def test_stopping_is_told_whole_where_there_is_little_room(clockwork):
    with make(24, 8, width=25, height=8) as view:
        start(view, 8)
        view.stopping(STOP)
        lines = screen(view)
        assert lines[-3:] == ["stopping after", "checkpoints; Ctrl-C", "again stops at once"]
        assert lines[-4] == "and 6 more"
        assert len(lines) <= 8


def test_stopping_is_a_note_in_a_log():
    with make(24, 2, terminal=False) as view:
        view.stopping(STOP)
        assert written(view) == STOP + "\n"


def test_refresh_draws_when_it_is_due(clockwork, monkeypatch):
    monkeypatch.setattr(display, "REDRAW", 0.2)
    with make(1) as view:
        view.begin("a", "bn-b2-s0", 1, 10)
        before = written(view)
        view.refresh()
        assert written(view) == before
        clockwork(7)
        view.refresh()
        assert "0/1 cell  0:07" in screen(view)[0]
    view.refresh()


def test_refresh_writes_nothing_to_a_log(clockwork):
    with make(1, terminal=False) as view:
        view.begin("a", "bn-b2-s0", 1, 10)
        clockwork(60)
        view.refresh()
        assert written(view) == ""


def test_a_cell_that_never_began_can_finish(clockwork):
    with make(3, 2) as view:
        start(view, 1)
        clockwork(10)
        before = view._time_left()
        view.finish("lost", "gn-b2-s0", {"status": "error", "reason": "its process was lost"})
        view.finish("skipped", "x", {"status": "skipped", "reason": "needs batch 2"})
        lines = screen(view)
        assert lines[0] == "[1/3] gn-b2-s0  error  its process was lost"
        assert lines[1] == "[2/3] x  skipped  needs batch 2"
        assert "2/3 cells  1 failed" in lines[2]
        assert lines[3].startswith("bn-b2-s0  epoch 2/10")
        assert before != "" != view._time_left()


def test_what_is_said_of_a_cell_that_is_not_running_is_not_shown():
    for terminal in (True, False):
        with make(2, 2, terminal=terminal) as view:
            before = written(view)
            view.step("late", 1, 1, 0.5, 100.0)
            view.row("late", {"epoch": 1})
            assert written(view) == before


def test_a_cell_that_is_begun_again_has_one_line_and_one_end(clockwork):
    with make(2, 2) as view:
        start(view, 2)
        view.begin("0", LABELS[0], 10, 50)
        assert [line.split()[0] for line in screen(view)[1:]] == [LABELS[1], LABELS[0]]
        view.finish("0", LABELS[0], {"status": "killed"})
        view.begin("0", LABELS[0], 10, 50)
        assert "0/2 cells  0:00" in screen(view)[1]
        view.finish("0", LABELS[0], OK)
        view.finish("1", LABELS[1], OK)
    assert screen(view)[-2:] == ["2 cells in 0:00: 2 ok", ""]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_cell_left_to_another_process_is_shown_no_more(clockwork, terminal):
    with make(2, 2, terminal=terminal) as view:
        start(view, 2)
        before = written(view)
        view.release("0")
        view.release("unknown")
        if terminal:
            assert [line.split()[0] for line in screen(view)[1:] if line] == [LABELS[1]]
            assert "0/2 cells" in screen(view)[0]
        else:
            assert written(view) == before
        view.finish("1", LABELS[1], OK)
    assert "1 cell in 0:00: 1 ok" in written(view)


def test_epoch_lines_of_a_log_go_round_among_the_cells(clockwork):
    with make(3, 3, terminal=False) as view:
        view.plan([(name, name, "new") for name in ("fast", "slow", "later")])
        for name in ("fast", "slow"):
            view.begin(name, name, 1000, 1)
        for second in range(1, 31):
            clockwork(1)
            view.row("fast", {"epoch": second})
            if second % 8 == 0:
                view.row("slow", {"epoch": second // 8})
        told = [line.split("  ~")[0] for line in written(view).splitlines()]
        assert told == [
            "[1/3] fast   epoch 1/1000", "[1/3] fast   epoch 6/1000", "[1/3] slow   epoch 1/1000",
            "[1/3] fast   epoch 16/1000", "[1/3] slow   epoch 2/1000", "[1/3] fast   epoch 26/1000",
        ]  # fmt: skip


def test_a_log_names_every_cell_that_ends():
    with make(8, 8, terminal=False) as view:
        for k, label in enumerate(LABELS):
            view.begin(str(k), label, 10, 50)
        for k in (3, 1, 7, 0, 2, 6, 5, 4):
            view.finish(str(k), LABELS[k], OK)
    assert [line.split("] ")[1].split("  ")[0] for line in written(view).splitlines()[:-1]] == [
        LABELS[k] for k in (3, 1, 7, 0, 2, 6, 5, 4)
    ]


def test_ascii_alone_is_enough(clockwork):
    with make(24, 8, width=30, height=6, encoding="ascii") as view:
        start(view, 8, ["größe-of-a-very-long-name-of-a-cell", *LABELS[1:]])
        view.stopping("größer")
        assert not view.console.quiet
        lines = screen(view)
    assert lines[1].startswith("gr??e-of-a-very-l  epoch")
    assert lines[-2:] == ["and 6 more", "gr??er"]


@pytest.mark.parametrize("height", [1, 2, 3, 5])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 13])
def test_a_terminal_too_small_for_anything_costs_nothing(width, height):
    with make(24, 8, width=width, height=height) as view:
        start(view, 8)
        view.stopping(STOP)
        view.finish("0", LABELS[0], OK)
        view.refresh()
        assert not view.console.quiet


class Full(io.StringIO):
    """A disk with room for so many writes."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def write(self, text):
        self.room -= 1
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return super().write(text)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("room", [*range(12), 20, 30])
def test_a_disk_that_fills_costs_nothing(terminal, room):
    view = Display(24, 8, console=Console(file=Full(room), force_terminal=terminal, width=80, height=10))
    with view:
        start(view, 8)
        view.refresh()
        view.stopping(STOP)
        for k in range(8):
            view.finish(str(k), LABELS[k], OK)
            view.refresh()
    assert len(view._ended) == 8
    assert view.running == {}


def test_drawing_eight_cells_is_cheap():
    view = make(1000, 8)
    with view:
        start(view, 8)
        costs = []
        for _ in range(10):
            begun = time.perf_counter()
            view.refresh()
            costs.append(time.perf_counter() - begun)
    assert min(costs) < 0.05, "five times a second"


# --- How long the grid will take


def simulate(durations, slots, clockwork, overhead=0.0):
    """Run cells of these durations and yield (time left as told, time really left) once a second."""
    view = make(len(durations), slots, terminal=False)
    view.plan([(str(k), f"cell-{k}", "new") for k in range(len(durations))])
    waiting, running, finished, ends = list(enumerate(durations)), {}, 0, []
    now, told = 0.0, []
    while finished < len(durations):
        while waiting and len(running) < slots:
            k, duration = waiting.pop(0)
            running[k] = (now + overhead, duration)
            view.begin(str(k), f"cell-{k}", 10, 100)
        clockwork(1)
        now += 1
        for k, (begun, duration) in list(running.items()):
            step = min(1000, int(1000 * (now - begun) / duration))
            if step > 0:
                view.step(str(k), (step - 1) // 100 + 1, (step - 1) % 100 + 1, 0.1, 1.0)
            if step == 1000:
                del running[k]
                finished += 1
                view.finish(str(k), f"cell-{k}", OK)
        text = view._time_left()
        parts = [int(part) for part in text[1:-5].split(":")] if text else []
        told.append((now, sum(part * 60**place for place, part in enumerate(reversed(parts))) if text else None))
        ends.append(now)
    return [(left, ends[-1] - at) for at, left in told if left is not None]


@pytest.mark.parametrize(("count", "slots"), [(1, 1), (5, 1), (8, 8), (9, 8), (12, 8), (5, 4), (24, 4), (17, 2)])
@pytest.mark.parametrize("seconds", [100, 37])
def test_time_left_is_right_for_cells_alike(clockwork, count, slots, seconds):
    told = simulate([seconds] * count, slots, clockwork)
    assert all(
        abs(left - really) <= 0.02 * really + 0.02 * seconds * count + 2 for left, really in told[seconds // 4 :]
    )


def test_time_left_with_cells_that_differ_and_start_slowly(clockwork):
    durations = [60, 90, 120, 60, 90, 120, 75, 60] * 3
    told = simulate(durations, 4, clockwork, overhead=10)
    whole = told[0][1]
    assert all(0.6 * really - 10 <= left <= 1.5 * really + 10 for left, really in told[60:])
    assert max(left for left, _ in told[60:]) < 1.3 * whole, "a cell that starts does not frighten anybody"


def test_a_last_cell_that_is_slow_is_waited_for(clockwork):
    told = simulate([30] * 7 + [600], 4, clockwork)
    assert all(0.9 * really <= left <= 1.1 * really + 5 for left, really in told[250:])


def test_cells_that_go_on_count_what_they_do_in_this_session(clockwork):
    view = make(2, 2, terminal=False)
    for name in "ab":
        view.begin(name, name, 100, 10)
    clockwork(60)
    for name in "ab":
        view.row(name, {"epoch": 91})
    assert view._time_left() == "~9:00 left", "nine epochs each at a minute, both at once"


def test_more_cells_than_slots_or_than_the_total_are_no_obstacle(clockwork):
    view = make(1, 1)
    with view:
        start(view, 3)
        clockwork(5)
        view.refresh()
        for k in range(3):
            view.finish(str(k), LABELS[k], OK)
        assert view._time_left() == "~0:00 left"
