"""The files of a picture: their bytes, ids and texts."""

import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest
from made import spots

from normbench.report import canvas, heat, look, plot


def ids(svg):
    return {value for one in ET.fromstring(svg).iter() if (value := one.get("id"))}


def references(svg):
    return set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg.decode()))


def test_pictures_can_stand_in_one_page():
    one, other = (made.draw("first", spots(), [])["svg"] for made in (plot, heat))
    assert ids(one)
    assert not ids(one) & ids(other)
    assert all(name.startswith("plot-") for name in ids(one))
    for svg in (one, other):
        assert references(svg)
        assert references(svg) <= ids(svg)


NAMES = ["<b>bold</b>", "$\\frac{", "a&b", 'id="x" href="#y"', "1.2345678 %d"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_texts_as_they_are(name):
    svg = canvas.rendered("plot", lambda: canvas.canvas(name, [], 1.0))["svg"]
    texts = ["".join(one.itertext()) for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert name in texts


def test_coordinates_are_short():
    numbers = re.findall(rb'[ "](-?\d+\.\d+)', plot.draw("first", spots(), [])["svg"])
    assert max(len(number.split(b".")[1]) for number in numbers) <= 2


@pytest.mark.parametrize("text", ["bn", "my_own_normalizers.py:Whitening0", "± 0.3 …"])
def test_widths_are_those_of_matplotlib(text):
    with matplotlib.rc_context(look.FONT):
        figure = canvas.canvas("", [], 1)
        extent = figure.text(0, 0, text, size=7).get_window_extent().width / figure.dpi
    assert canvas.text_width(text, 7) == pytest.approx(extent, rel=0.06)


def test_long_names_keep_their_beginning_and_their_end():
    cut = canvas.squeezed("my_own_normalizers.py:Whitening0", 7, 1.2)
    assert canvas.text_width(cut, 7) <= 1.2
    assert (cut[:2], cut[-10:]) == ("my", "Whitening0")
    assert canvas.squeezed("bn", 7, 1.2) == "bn"
    assert canvas.wrapped("a b", 7, 1) == ["a b"]
    assert all(
        canvas.text_width(line, 7) <= 0.8 for line in canvas.wrapped("one two three four five six seven", 7, 0.8)
    )
