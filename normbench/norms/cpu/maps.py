"""What is done to a run of values in memory that share coefficients, and to blocks of it: the loops that cost time."""

from __future__ import annotations

from normbench.norms.cpu.pointers import NUMBER, algebra, elementwise, line, number, prefetch, reduction

# Values that are summed in the maps' own type before the sum goes on in float64; a block stays in the first cache.
BLOCK = 4096
# Values of the next map to fetch before its time.
AHEAD = 256


@algebra
def ahead(x, start, length):
    """Begin to fetch ``length`` values from ``start`` on, where the processor cannot foresee them."""
    for j in range(start, start + length, line(x)):
        prefetch(x, j)


@algebra
def next_map(x, start):
    """Begin to fetch the map that is next, where it does not follow on this one."""
    ahead(x, start, AHEAD)


@reduction
def block_moments(x, start, length, per_value):
    """Mean and sum of squares about it, of a block, in two passes: the second corrects the first one's rounding."""
    total = number(x, 0.0)
    for j in range(start, start + length):
        total += x[j]
    m = number(x, NUMBER(total) * per_value)
    rest, squares = number(x, 0.0), number(x, 0.0)
    for j in range(start, start + length):
        apart = x[j] - m
        rest += apart
        squares += apart * apart
    left = NUMBER(rest) * per_value
    return m + left, max(NUMBER(squares) - left * NUMBER(rest), 0.0)


@reduction
def moments(x, start, length, per_value):
    """Mean and sum of squares about it, of a map; ``per_value`` is 1 / length."""
    if length <= BLOCK:
        return block_moments(x, start, length, per_value)
    mean, squares, seen = 0.0, 0.0, 0
    while seen < length:
        some = min(BLOCK, length - seen)
        mean_here, squares_here = block_moments(x, start + seen, some, 1.0 / some)
        apart = mean_here - mean
        mean += apart * some / (seen + some)
        squares += squares_here + apart * apart * seen * some / (seen + some)
        seen += some
    return mean, squares


@reduction
def passed(x, dy, j, m, a, b, cut, high):
    """dz and dz (x − m) of a value, where dz is dy as the activation lets it through.

    dy is needed on either side of the choice: a compiler that may leave it unread where z is cut off waits for z first.
    """
    apart, dz = x[j] - m, dy[j]
    z, moment = apart * a + b, dz * apart
    if z <= cut or z >= high:
        dz, moment = number(x, 0.0), number(x, 0.0)
    return dz, moment


@reduction
def block_sums(x, dy, start, length, m, a, b, cut, high):
    one, two = number(x, 0.0), number(x, 0.0)
    for j in range(start, start + length):
        dz, moment = passed(x, dy, j, m, a, b, cut, high)
        one += dz
        two += moment
    return NUMBER(one), NUMBER(two)


@reduction
def block_uncut(x, dz, start, length, m):
    one, two = number(x, 0.0), number(x, 0.0)
    for j in range(start, start + length):
        one += dz[j]
        two += dz[j] * (x[j] - m)
    return NUMBER(one), NUMBER(two)


@reduction
def sums(x, dy, start, length, m, a, b, cut, high, uncut):
    """Sums of dz and of dz (x − m) over a map, where dz is dy as the activation lets it through; all if ``uncut``."""
    one, two, seen = 0.0, 0.0, 0
    while seen < length:
        some = min(BLOCK, length - seen)
        if uncut:
            here, there = block_uncut(x, dy, start + seen, some, m)
        else:
            here, there = block_sums(x, dy, start + seen, some, m, a, b, cut, high)
        one += here
        two += there
        seen += some
    return one, two


@reduction
def block_direct(x, dy, dx, start, length, m, a, b, cut, high, through):
    one, two = number(x, 0.0), number(x, 0.0)
    for j in range(start, start + length):
        dz, moment = passed(x, dy, j, m, a, b, cut, high)
        dx[j] = dz * through
        one += dz
        two += moment
    return NUMBER(one), NUMBER(two)


@reduction
def block_direct_uncut(x, dy, dx, start, length, m, through):
    one, two = number(x, 0.0), number(x, 0.0)
    for j in range(start, start + length):
        dx[j] = dy[j] * through
        one += dy[j]
        two += dy[j] * (x[j] - m)
    return NUMBER(one), NUMBER(two)


@reduction
def direct(x, dy, dx, start, length, m, a, b, cut, high, through, uncut):
    """As ``sums``; writes dx = dz ``through``."""
    one, two, seen = 0.0, 0.0, 0
    while seen < length:
        some = min(BLOCK, length - seen)
        if uncut:
            here, there = block_direct_uncut(x, dy, dx, start + seen, some, m, through)
        else:
            here, there = block_direct(x, dy, dx, start + seen, some, m, a, b, cut, high, through)
        one += here
        two += there
        seen += some
    return one, two


@reduction
def let_by(x, y, dy, j, m, low, high):
    """As ``passed``, where y tells what the activation let through."""
    dz = dy[j]
    moment = dz * (x[j] - m)
    if y[j] <= low or y[j] >= high:
        dz, moment = number(x, 0.0), number(x, 0.0)
    return dz, moment


@reduction
def block_masked(x, y, dy, dz, start, length, m, low, high):
    one, two = number(x, 0.0), number(x, 0.0)
    for j in range(start, start + length):
        dz[j], moment = let_by(x, y, dy, j, m, low, high)
        one += dz[j]
        two += moment
    return NUMBER(one), NUMBER(two)


@reduction
def block_masked_direct(x, y, dy, dz, dx, start, length, m, low, high, through):
    one, two = number(x, 0.0), number(x, 0.0)
    for j in range(start, start + length):
        dz[j], moment = let_by(x, y, dy, j, m, low, high)
        dx[j] = dz[j] * through
        one += dz[j]
        two += moment
    return NUMBER(one), NUMBER(two)


@reduction
def masked(x, y, dy, dz, dx, start, length, m, low, high, through, into_dx):
    """As ``sums``, where y tells what the activation let through; writes dz and, if told, dx = dz ``through``."""
    one, two, seen = 0.0, 0.0, 0
    while seen < length:
        some = min(BLOCK, length - seen)
        if into_dx:
            here, there = block_masked_direct(x, y, dy, dz, dx, start + seen, some, m, low, high, through)
        else:
            here, there = block_masked(x, y, dy, dz, start + seen, some, m, low, high)
        one += here
        two += there
        seen += some
    return one, two


@reduction
def total(dy, start, length):
    """The sum over a map."""
    result, seen = 0.0, 0
    while seen < length:
        some = min(BLOCK, length - seen)
        here = number(dy, 0.0)
        for j in range(start + seen, start + seen + some):
            here += dy[j]
        result += NUMBER(here)
        seen += some
    return result


@elementwise
def clipped(z, low, high):
    """z, not below ``low`` nor above ``high``; NaN stays."""
    if z < low:
        z = low
    if z > high:
        z = high
    return z


@elementwise
def apply(x, y, start, length, m, a, b, low, high):
    """y = (x − m) a + b, not below ``low`` nor above ``high``; NaN stays."""
    for j in range(start, start + length):
        y[j] = clipped((x[j] - m) * a + b, low, high)


@elementwise
def apply_sum(x, residual, y, start, length, m, a, b, low, high):
    """As ``apply``, of y and the residual together."""
    for j in range(start, start + length):
        y[j] = clipped((x[j] - m) * a + b + residual[j], low, high)


@elementwise
def scale_shift(y, start, length, a, b):
    """y a + b in place."""
    for j in range(start, start + length):
        y[j] = y[j] * a + b


@elementwise
def back(x, dy, dx, start, length, m, a, b, cut, high, through, p, q):
    """dx = dz ``through`` + (x − m) p + q."""
    for j in range(start, start + length):
        apart = x[j] - m
        z = apart * a + b
        dz = dy[j]
        if z <= cut or z >= high:
            dz = number(x, 0.0)
        dx[j] = dz * through + (apart * p + q)


@elementwise
def back_known(x, dz, dx, start, length, m, through, p, q):
    """As ``back``, of dz itself."""
    for j in range(start, start + length):
        dx[j] = dz[j] * through + ((x[j] - m) * p + q)
