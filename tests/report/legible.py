"""Whether a picture can be read: no text too small, outside the page or over another."""

import itertools

import matplotlib
from matplotlib.text import Text

from normbench.report import look

LEAST = 6.5  # points at the width of a column


def seen(figure):
    """The texts that are drawn; ticks outside their axis are not."""
    figure.canvas.draw()
    unseen = {tick.label1 for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
              for tick in axis.get_major_ticks() if axes.axison is False or
              not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())}  # fmt: skip
    texts = (text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip())
    return [text for text in texts if text not in unseen]


def read(make):
    """The figure that ``make`` draws in the pictures' own style, once it is found legible, and its texts."""
    with matplotlib.rc_context():
        matplotlib.rcParams.update(look.FONT)
        figure = make()
        texts = seen(figure)
        boxes = {f"{k} {text.get_text()}": text.get_window_extent() for k, text in enumerate(texts)}
    assert [text.get_text() for text in texts if text.get_size() < LEAST] == []
    page = figure.bbox
    assert [k for k, b in boxes.items() if b.x0 < 0 or b.y0 < 0 or b.x1 > page.x1 or b.y1 > page.y1] == []
    inner = {k: box.shrunk(0.9, 0.8) for k, box in boxes.items()}
    assert [(a, b) for a, b in itertools.combinations(inner, 2) if inner[a].overlaps(inner[b])] == []
    return figure, {text.get_text(): text for text in texts}
