"""The paper a plot is drawn on: its width, its head with title and settings, and how wide a text is."""

from __future__ import annotations

import functools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from normbench.report.look import QUIET

WIDTH = 4.6  # inches
AXES = 0.6  # the least share of it that axes take, whatever the labels
TOP, LINE, SMALL = 0.30, 0.125, 7  # inches above the axes, inches and points of a line of settings
LINES = 3  # lines of settings; more are left to the table


def canvas(title: str, told: list[str], height: float) -> Figure:
    """A figure with small grey lines at the top: a picture on its own must say what it shows."""
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    figure.text(0.06 / WIDTH, 1 - 0.06 / height, shortened(title, 7.5, WIDTH - 0.12), va="top", size=7.5, color=QUIET)
    for k, line in enumerate(told):
        place = 1 - (0.06 + 0.13 + k * LINE) / height
        figure.text(0.06 / WIDTH, place, line, va="top", size=SMALL, color=QUIET)
    return figure


def settled(told: list[str]) -> list[str]:
    """Settings as the lines of a head; none if they would be more than ``LINES``."""
    lines = wrapped("; ".join(told), SMALL, WIDTH - 0.12) if told else []
    return lines if len(lines) <= LINES else []


def head(lines: list[str]) -> float:
    """Inches above the axes."""
    return TOP + LINE * len(lines)


@functools.cache
def text_width(text: str, size: float) -> float:
    """Inches."""
    figure = Figure()
    FigureCanvasAgg(figure)
    return float(figure.text(0, 0, text, size=size).get_window_extent().width / figure.dpi)


def shortened(text: str, size: float, width: float) -> str:
    """As much as goes into ``width`` inches, and an ellipsis."""
    while text_width(text, size) > width and len(text) > 2:
        text = text[:-2].rstrip() + "…"
    return text


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Lines of at most ``width`` inches, broken at spaces; a longer word is shortened."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines += [shortened(word, size, width)]
    return [line for line in lines if line]
