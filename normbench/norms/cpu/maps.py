"""What is done to a run of values in memory that share coefficients, and to blocks of it: the loops that cost time."""

from __future__ import annotations

from normbench.norms.cpu.pointers import NUMBER, algebra, elementwise, number, prefetch, reduction

# Values that are summed in the maps' own type before the sum goes on in float64; a block stays in the first cache.
BLOCK = 4096
# Values of the next map to fetch before its time, and of a line of memory at least.
AHEAD, LINE = 256, 8


@algebra
def ahead(x, start):
    """Begin to fetch the map that is next: where it does not follow on this one, the processor cannot foresee it."""
    for j in range(0, AHEAD, LINE):
        prefetch(x, start + j)


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
def block_sums(x, dy, start, length, m, a, b, cut, high):
    one, two = number(x, 0.0), number(x, 0.0)
    for j in range(start, start + length):
        apart = x[j] - m
        z = apart * a + b
        dz = dy[j]
        if z <= cut or z >= high:
            dz = number(x, 0.0)
        one += dz
        two += dz * apart
    return NUMBER(one), NUMBER(two)


@reduction
def sums(x, dy, start, length, m, a, b, cut, high):
    """Sums of dz and of dz (x − m) over a map, where dz is dy as the activation lets it through."""
    if length <= BLOCK:
        return block_sums(x, dy, start, length, m, a, b, cut, high)
    one, two, seen = 0.0, 0.0, 0
    while seen < length:
        some = min(BLOCK, length - seen)
        here, there = block_sums(x, dy, start + seen, some, m, a, b, cut, high)
        one += here
        two += there
        seen += some
    return one, two


@reduction
def block_masked(x, y, dy, dz, start, length, m, low, high):
    one, two = number(x, 0.0), number(x, 0.0)
    for j in range(start, start + length):
        through = dy[j]
        if y[j] <= low or y[j] >= high:
            through = number(x, 0.0)
        dz[j] = through
        one += through
        two += through * (x[j] - m)
    return NUMBER(one), NUMBER(two)


@reduction
def masked(x, y, dy, dz, start, length, m, low, high):
    """As ``sums``, where y tells what the activation let through; writes dz."""
    if length <= BLOCK:
        return block_masked(x, y, dy, dz, start, length, m, low, high)
    one, two, seen = 0.0, 0.0, 0
    while seen < length:
        some = min(BLOCK, length - seen)
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
def apply(x, y, start, length, m, a, b, low, high):
    """y = (x − m) a + b, not below ``low`` nor above ``high``; NaN stays."""
    for j in range(start, start + length):
        z = (x[j] - m) * a + b
        if z < low:
            z = low
        if z > high:
            z = high
        y[j] = z


@elementwise
def apply_sum(x, residual, y, start, length, m, a, b, low, high):
    """As ``apply``, of y and the residual together."""
    for j in range(start, start + length):
        z = (x[j] - m) * a + b + residual[j]
        if z < low:
            z = low
        if z > high:
            z = high
        y[j] = z


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
def back_masked(x, dz, dx, start, length, m, through, p, q):
    """dx = dz ``through`` + (x − m) p + q."""
    for j in range(start, start + length):
        dx[j] = dz[j] * through + ((x[j] - m) * p + q)
