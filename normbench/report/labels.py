"""The names of lines: at their ends where they can stand there, else in a legend."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from normbench.report.canvas import AXES, WIDTH, text_width, wrapped
from normbench.report.look import Style

DIRECT = 8  # more lines than this get a legend instead of labels at their ends
SIZE, PITCH = 8.0, 9.2  # points of a label, and between two
HANDLE, LEGEND, LEGEND_ROW = 0.46, 7.5, 0.165  # inches beside a label in the legend, its points, inches a line


def end_room(names: Mapping[str, object], size: float = SIZE) -> float:
    """Inches beside the axes for labels at the lines' ends."""
    return 0.36 + max(text_width(name, size) for name in names)


def fit_at_ends(names: Mapping[str, object], left: float) -> bool:
    """Whether labels at the lines' ends leave the axes their share, ``left`` inches being taken at the other side."""
    return len(names) <= DIRECT and left + end_room(names) <= (1 - AXES) * WIDTH


def name_ends(
    axes: Axes, ends: Mapping[str, tuple[float, float]], styles: Mapping[str, Style], size: float = SIZE
) -> None:
    """Each line's sign and name at the right of its last point, moved apart where names would overlap.

    The sign beside the name tells lines apart for whoever sees no colours.
    """
    pixels = {line: axes.transData.transform(end) for line, end in ends.items()}
    box, point = axes.get_window_extent(), axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    heights = spread({line: float(y) for line, (_, y) in pixels.items()}, size * PITCH / SIZE * point, box.y0, box.y1)
    right, back = box.x1 + 4 * point, axes.transAxes.inverted().transform
    for line, (x, y) in pixels.items():
        colour, (u, v) = styles[line].colour, back((right, heights[line]))
        style, (after, _) = styles[line], back((right + 0.14 * 72 * point, heights[line]))
        axes.plot(u, v, **style.mark(size=4), transform=axes.transAxes)
        axes.text(after, v, line, color=colour, size=size, va="center_baseline", transform=axes.transAxes)
        if abs(heights[line] - y) > 3 * point:
            path = back([(x + 4 * point, y), (right - point, heights[line])])
            axes.plot(*path.T, color="0.6", lw=0.6, ls=":", clip_on=False, transform=axes.transAxes)


def spread(heights: dict[str, float], least: float, low: float, high: float) -> dict[str, float]:
    """Heights at least ``least`` apart, in the same order, as near as can be to those wanted.

    Neighbours that are too close join into a stack around the mean of what its members want. Where all do not fit
    between ``low`` and ``high`` they may stand above it.
    """

    def foot(stack: list[str]) -> float:
        return sum(heights[name] for name in stack) / len(stack) - least * (len(stack) - 1) / 2

    stacks: list[list[str]] = []
    for name in sorted(heights, key=lambda name: heights[name]):
        stacks.append([name])
        while len(stacks) > 1 and foot(stacks[-1]) < foot(stacks[-2]) + least * len(stacks[-2]):
            stacks[-2:] = [stacks[-2] + stacks[-1]]
    placed = {name: foot(stack) + k * least for stack in stacks for k, name in enumerate(stack)}
    down = max(0.0, max(placed.values(), default=high) - high)
    placed = {name: height - down for name, height in placed.items()}
    up = max(0.0, low - min(placed.values(), default=low))
    return {name: height + up for name, height in placed.items()}


class Legend:
    """The lines and their names at the foot of the figure, in as many columns as have room.

    dead: the lines without any result, which have a cross for a sign.
    """

    def __init__(self, styles: Mapping[str, Style], dead: set[str]) -> None:
        said = {line: f"{line} (no result)" if line in dead else line for line in styles}
        self.labels = {line: wrapped(text, LEGEND, WIDTH - HANDLE - 0.3) for line, text in said.items()}
        widest = max(text_width(text, LEGEND) for texts in self.labels.values() for text in texts)
        self.columns = min(max(1, int((WIDTH - 0.2) / (widest + HANDLE + 0.12))), len(styles))
        rows = -(-len(styles) // self.columns)
        self.columns = -(-len(styles) // rows)  # the same rows, evenly filled
        self.height = LEGEND_ROW * rows * max(map(len, self.labels.values())) + 0.06
        self.styles, self.dead = styles, dead

    def draw(self, figure: Figure) -> None:
        handles = [self._handle(line, style) for line, style in self.styles.items()]
        figure.legend(
            handles=handles, loc="lower center", ncols=self.columns, frameon=False, fontsize=LEGEND,
            handlelength=2.6, columnspacing=1.2, handletextpad=0.5, labelspacing=0.35, borderpad=0.2,
        )  # fmt: skip

    def _handle(self, line: str, style: Style) -> Line2D:
        label = "\n".join(self.labels[line])
        if line in self.dead:
            return Line2D([], [], color=style.colour, ls="", marker="x", ms=4, mew=1.1, label=label)
        return Line2D([], [], color=style.colour, ls=style.dashes, marker=style.marker, ms=4, lw=1.2, label=label)
