"""How long OpenMP's threads spin while they wait for work: set before torch is imported, which reads it."""

from __future__ import annotations

import os

VARIABLE = "GOMP_SPINCOUNT"
# By default they spin for milliseconds: on a machine shared with others that costs two to twenty times the step. Too
# short, and they must be woken for every operation. ResNet-20 at batch 8 with two threads on two cores, channels_last,
# ms a step: 22.3 with 10000, 20.3 with 20000, 20.0 with 30000, 19.6 by default; with another process at work on one of
# the cores 112, 140, 205 and more than that.
COUNT = "20000"


def spin_less() -> None:
    """Shorten it for this process and its children, unless the user has said how long."""
    os.environ.setdefault(VARIABLE, COUNT)
