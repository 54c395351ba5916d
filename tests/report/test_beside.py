"""Names beside their points."""

import itertools

import numpy as np

from normbench.report.beside import SIGN, Field, around
from normbench.report.canvas import text_width

ROOM = Field(0, 0, 3, 2)


def fields(placed, size=7):
    return {name: Field(x - text_width(name, size) / 2, y - size / 144, x + text_width(name, size) / 2, y + size / 144)
            for name, (x, y) in ((name, label.middle) for name, label in placed.items())}  # fmt: skip


def test_names_cover_neither_each_other_nor_points_nor_lines():
    for seed in range(10):
        places = np.random.default_rng(seed).normal((1.5, 1.0), 0.25, (10, 2))
        wanted = {f"norm{k}": (float(x), float(y)) for k, (x, y) in enumerate(places)}
        line = np.array([(0.0, 1.0), (3.0, 1.0)])
        placed = around(wanted, list(wanted.values()), [line], ROOM, 7)
        assert len(placed) == 10
        found = fields(placed)
        assert not [pair for pair in itertools.combinations(found.values(), 2) if pair[0].meets(pair[1])]
        signs = [Field(x - SIGN, y - SIGN, x + SIGN, y + SIGN) for x, y in wanted.values()]
        assert not [1 for field in found.values() for sign in signs if field.meets(sign)]
        assert not [1 for field in found.values() if field.y0 < 1.0 < field.y1]
        assert all(ROOM.holds(field) for field in found.values())


def test_a_name_alone_stands_close_and_needs_no_line():
    (label,) = around({"bn": (1.0, 1.0)}, [(1.0, 1.0)], [], ROOM, 7).values()
    assert label.leader is None
    assert label.middle[1] == 1.0
    assert 1.0 < label.middle[0] < 1.2


def test_a_name_far_away_is_led_to_and_one_without_room_left_out():
    signs = [(1.0 + 0.05 * a, 1.0 + 0.05 * b) for a in range(-3, 4) for b in range(-3, 4)]
    (label,) = around({"bn": (1.0, 1.0)}, signs, [], ROOM, 7).values()
    assert label.leader is not None
    assert np.hypot(label.leader[0] - 1, label.leader[1] - 1) < np.hypot(label.middle[0] - 1, label.middle[1] - 1)
    assert around({"bn": (1.0, 1.0)}, signs, [], Field(0.9, 0.9, 1.1, 1.1), 7) == {}
