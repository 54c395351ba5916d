"""Where values stand on an axis."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from normbench.report import scales

MADE = {
    "linear": scales.top1([90.0, 95.0]),
    "error": scales.top1([10.0, 99.0, 99.9]),
    "logarithmic": scales.logarithmic(0.012, 3.3, "loss"),
    "narrow": scales.logarithmic(480.0, 590.0, "MiB"),
    "octaves": scales.octaves([2, 8, 32], side=1.2),
    "counted": scales.linear(0, 6.2, "epoch", 3),
}


@pytest.mark.parametrize("name", MADE)
def test_shares_run_from_one_end_to_the_other_and_ticks_lie_between(name):
    scale = MADE[name]
    assert scale.share([scale.low, scale.high]) == pytest.approx([0, 1])
    assert (np.diff(scale.share(np.linspace(scale.low, scale.high * 0.999, 50))) >= 0).all()
    assert len(scale.ticks) >= 2
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks)
    inner = [value for value in scale.ticks if value < scale.high]
    assert scale.inverse(scale.forward(inner)) == pytest.approx(inner)


@pytest.mark.parametrize("name", MADE)
def test_axes_of_matplotlib_stand_alike(name):
    scale = MADE[name]
    axes = Figure().add_axes((0, 0, 1, 1))
    scale.apply(axes, "x")
    there = axes.transAxes.inverted().transform(axes.transData.transform([(tick, 0.5) for tick in scale.ticks]))[:, 0]
    assert there == pytest.approx(scale.share(scale.ticks), abs=1e-9)


def test_equal_ratios_of_the_error_are_equal_steps():
    steps = np.diff(MADE["error"].share([90, 99, 99.9]))
    assert steps[0] == pytest.approx(steps[1])
    assert MADE["linear"].share(92.5) == pytest.approx(0.5, abs=0.02)
