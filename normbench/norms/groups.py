"""Numbers of groups that do not divide, and ghost batches: one rule for every method that has them.

Not given, the method's default is fitted to each site; given, it must divide (``strict``) unless ``group_fit`` is given
with it:

- ``strict``: an error that names a divisor;
- ``gcd``: the greatest common divisor of the number and the size;
- ``uneven``: group(d) = (d·G)//D, so that sizes differ by at most one; never more groups than features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from normbench.errors import ConfigError, InputError

FITS = ("strict", "gcd", "uneven")
LOWER = "lower"  # the greatest divisor up to the number: EvoNorm's rule for its default, not an option


def choose(num_groups: int | None, group_fit: str | None, default: int, default_fit: str) -> tuple[int, str]:
    """The number of groups asked for and how it is fitted."""
    if num_groups is None:
        return default, group_fit or default_fit
    return num_groups, group_fit or "strict"


def fit(size: int, num_groups: int, group_fit: str, name: str, what: str) -> int:
    """The effective number of groups of ``size`` features; raises InputError under ``strict`` if it does not divide.

    ``name`` is the method and ``what`` the size in words, such as num_features=96, for the message.
    """
    if group_fit == "gcd":
        return math.gcd(num_groups, size)
    if group_fit == "uneven":
        return min(num_groups, size)
    if group_fit == LOWER:
        return next(divisor for divisor in range(min(num_groups, size), 0, -1) if size % divisor == 0)
    if size % num_groups:
        raise InputError(
            f"{name}: {what} does not split into num_groups={num_groups}; "
            f"take a divisor of {size}, such as {nearest_divisor(size, num_groups)}, or group_fit=gcd|uneven"
        )
    return num_groups


def ghost(images: int, ghost_size: int, name: str) -> int:
    """How many of a worker's ``images`` share statistics: ``ghost_size``, or all where they are fewer.

    Raises InputError if they do not split.
    """
    size = min(ghost_size, images)
    if images % size:
        raise InputError(
            f"{name}: got batch={images} images, which do not split into ghost batches of ghost_size={size}; "
            f"take a divisor of {images}, such as {nearest_divisor(images, size)}, "
            f"or a batch that is a multiple of {size}, such as {images // size * size}"
        )
    return size


def nearest_divisor(size: int, wanted: int) -> int:
    """The divisor of ``size`` nearest to ``wanted``."""
    small = [d for d in range(1, math.isqrt(size) + 1) if size % d == 0]
    return min(small + [size // d for d in small], key=lambda d: (abs(d - wanted), d))


def from_table(table: Mapping[int | str, int], batch: int | None, name: str) -> int:
    """The number of groups that a {batch: groups} table has for ``batch``: that of the largest batch up to it."""
    if batch is None:
        raise ConfigError(
            f"{name}: got a table of num_groups by batch, but no batch to look up; give batch, or one number of groups"
        )
    rows = {int(key): groups for key, groups in table.items()}
    return rows[max((key for key in rows if key <= batch), default=min(rows))]
