"""The paper a picture is drawn on: its width, its head with title and settings, how wide a text is; its bytes."""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from normbench.report.look import FONT, QUIET

WIDTH = 4.6  # inches
DPI = 200
AXES = 0.6  # the least share of it that axes take, whatever the labels
TOP, LINE, SMALL = 0.30, 0.125, 7  # inches above the axes, inches and points of a line of settings
LINES = 3  # lines of settings; more are left to the table


def rendered(name: str, make: Callable[[], Figure]) -> dict[str, bytes]:
    """``{"png": …, "svg": …}`` of the figure that ``make`` draws, the same bytes every time.

    The SVG's text stays text, to be searched and copied; its ids begin with ``name``, so that several pictures can
    stand in one page.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A letter that the font has not, in a user's own name: a box in the PNG, in the SVG what the viewer's font has.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        matplotlib.rcdefaults()  # a user's own style would change the bytes, and perhaps the colours
        matplotlib.rcParams.update(FONT | {"svg.hashsalt": name})
        figure = make()
        return {"png": _bytes(figure, "png"), "svg": _named(_bytes(figure, "svg"), name)}


def _bytes(figure: Figure, kind: str) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=DPI, metadata={"Software": None} if kind == "png" else {"Date": None})
    return data.getvalue()


def _named(svg: bytes, name: str) -> bytes:
    """Ids, and what refers to them, with a name in front, and coordinates to 1/100 of a point.

    Inside tags only: texts are the user's.
    """
    begin, number = re.compile(rb'( id="|href="#|url\(#)'), re.compile(rb"(\d\.\d\d)\d+")

    def tag(found: re.Match[bytes]) -> bytes:
        return number.sub(rb"\1", begin.sub(rb"\1" + name.encode() + b"-", found[0]))

    return re.sub(rb"<[^!?>][^>]*>", tag, svg)


def canvas(title: str, told: list[str], height: float) -> Figure:
    """A figure with small grey lines at the top: a picture on its own must say what it shows."""
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    figure.text(0.06 / WIDTH, 1 - 0.06 / height, shortened(title, 7.5, WIDTH - 0.12), va="top", size=7.5, color=QUIET)
    for k, line in enumerate(told):
        place = 1 - (0.06 + 0.13 + k * LINE) / height
        figure.text(0.06 / WIDTH, place, line, va="top", size=SMALL, color=QUIET)
    return figure


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes so many inches from the left and from the top of the figure."""
    tall = figure.get_figheight()
    return figure.add_axes((left / WIDTH, 1 - (top + height) / tall, width / WIDTH, height / tall))


def write_at(figure: Figure, left: float, top: float, text: str, size: float, **options: Any) -> None:
    """A line of text, its upper left corner so many inches from the left and from the top of the figure."""
    figure.text(left / WIDTH, 1 - top / figure.get_figheight(), text, size=size, **{"va": "top", **options})


def settled(told: list[str]) -> list[str]:
    """Settings as the lines of a head: as many, one after the other, as ``LINES`` hold."""
    kept: list[str] = []
    for text in told:
        if len(wrapped("; ".join([*kept, text]), SMALL, WIDTH - 0.12)) <= LINES:
            kept.append(text)
    return wrapped("; ".join(kept), SMALL, WIDTH - 0.12) if kept else []


def head(lines: list[str]) -> float:
    """Inches above the axes."""
    return TOP + LINE * len(lines)


@functools.cache
def text_width(text: str, size: float) -> float:
    """Inches."""
    font = FontProperties(family="DejaVu Sans", size=size)
    return float(_measure().get_text_width_height_descent(text, font, ismath=False)[0]) / DPI


@functools.cache
def _measure() -> RendererAgg:
    return RendererAgg(1, 1, DPI)


def shortened(text: str, size: float, width: float) -> str:
    """As much as goes into ``width`` inches, and an ellipsis."""
    while text_width(text, size) > width and len(text) > 2:
        text = text[:-2].rstrip() + "…"
    return text


def squeezed(text: str, size: float, width: float) -> str:
    """As much of the beginning and of the end as goes into ``width`` inches, an ellipsis between."""
    cut, kept = text, len(text)
    while text_width(cut, size) > width and kept > 2:
        kept -= 1
        cut = f"{text[: kept // 3]}…{text[len(text) - (kept - kept // 3) :]}"
    return cut


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Lines of at most ``width`` inches, broken at spaces; a longer word is squeezed."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines += [squeezed(word, size, width)]
    return [line for line in lines if line]
