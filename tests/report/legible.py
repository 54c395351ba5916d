"""Whether a picture can be read: no text too small, outside the page or over another."""

import matplotlib
import numpy as np
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
    """The figure that ``make`` draws in the pictures' own style, once it is found legible, and the texts one sees."""
    with matplotlib.rc_context():
        matplotlib.rcParams.update(look.FONT)
        figure = make()
        texts = seen(figure)
        boxes = [text.get_window_extent() for text in texts]
    assert [text.get_text() for text in texts if text.get_size() < LEAST] == []
    page, words = figure.bbox, [text.get_text() for text in texts]
    outside = (b.x0 < 0 or b.y0 < 0 or b.x1 > page.x1 or b.y1 > page.y1 for b in boxes)
    assert [word for word, out in zip(words, outside, strict=True) if out] == []
    x0, y0, x1, y1 = np.array([box.shrunk(0.9, 0.8).extents for box in boxes]).T
    over = (x0[:, None] < x1) & (x0 < x1[:, None]) & (y0[:, None] < y1) & (y0 < y1[:, None])
    assert [(words[a], words[b]) for a, b in zip(*np.nonzero(np.triu(over, 1)), strict=True)] == []
    return figure, texts
