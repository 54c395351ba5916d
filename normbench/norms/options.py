"""The options of our own units, checked before anything is built: type and range, one line of error each.

An option means the same wherever it occurs, so it is checked by its name. The defaults are the constructors' own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from normbench.errors import ConfigError, nearest
from normbench.norms.groups import FITS

Check = Callable[[Any], bool]


def is_count(value: Any) -> bool:
    """A whole number from 1, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def is_number(value: Any) -> bool:
    """A finite number, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_bound(least: float) -> Check:
    """None, or a number from ``least`` to infinity."""
    return lambda value: (
        value is None or (isinstance(value, Real) and not isinstance(value, bool) and float(value) >= least)
    )


def _is_group_number(value: Any) -> bool:
    return value is None or is_count(value)


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(is_count(int(key) if str(key).isdecimal() else key) for key in value)
        and all(is_count(groups) for groups in value.values())
    )


def _is_size(value: Any) -> bool:
    return value is None or (_is_pair(value) and all(is_count(side) for side in value))


def _is_pair(value: Any) -> bool:
    return not isinstance(value, str | Mapping) and hasattr(value, "__len__") and len(value) == 2


def _one_of(choices: tuple[str, ...], or_none: bool = False) -> Check:
    return lambda value: (value is None and or_none) or (isinstance(value, str) and value in choices)


EVAL_STATS = ("running", "batch")
RULES = ("nf", "bnn")
PRIORS, PROPAGATIONS = ("code", "consistent"), ("sample", "moments")
VALID, VAR_MODES, GRAD_MODES = ("official", "paper"), ("total", "within"), ("full", "detach")
BASES, AROUND = ("none", "gn"), ("batch", "running")
PLACEMENTS = ("relu_ic_conv", "ic_conv_relu", "conv_relu_ic")
CHOICES = {
    "group_fit": FITS,
    "eval_stats": EVAL_STATS,
    "prior": PRIORS,
    "propagate": PROPAGATIONS,
    "base": BASES,
    "around": AROUND,
    "rules": RULES,
    "valid": VALID,
    "var_mode": VAR_MODES,
    "grad_mode": GRAD_MODES,
    "placement": PLACEMENTS,
}
CHECKS: dict[str, tuple[Check, str]] = {
    "eps": (lambda value: is_number(value) and value >= 0, "a number, 0 or more, such as 1e-5"),
    "momentum": (
        lambda value: value is None or (is_number(value) and 0 <= value <= 1),
        "a share of the new value from 0 to 1, such as 0.1, or null (None in Python for the average of all batches)",
    ),
    "affine": (_is_flag, "true or false"),
    "unbiased": (_is_flag, "true or false"),
    "learn_eps": (_is_flag, "true or false"),
    "learn_proxy": (_is_flag, "true or false"),
    "using_bn": (_is_flag, "true or false"),
    "alpha_init": (is_number, "a number, such as 0.5"),
    "absolute_steps": (_is_flag, "true or false"),
    "r_max": (_is_bound(1), "a number, 1 or more (inf: no bound), such as 3"),
    "d_max": (_is_bound(0), "a number, 0 or more (inf: no bound), such as 5"),
    "ghost_size": (is_count, "a whole number of images, 1 or more, such as 16"),
    "estimated": (_is_flag, "true or false"),
    "layer_scaling": (_is_flag, "true or false"),
    "alpha_fwd": (_is_share, "the share of the old value from 0 to 1, such as 0.999"),
    "alpha_bkw": (_is_share, "the share of the old value from 0 to 1, such as 0.99"),
    "decay": (_is_share, "the share of the old value from 0 to 1, such as 0.98"),
    "clamp": (lambda value: value is None or (is_number(value) and value > 0), "a number above 0, such as 5, or null"),
    "window": (lambda value: value is None or is_count(value), "a whole number of steps, 1 or more, such as 16"),
    "burnin": (
        lambda value: value is None or _is_whole(value),
        "a whole number of steps, 0 or more, such as 100, or null",
    ),
    "rho": (lambda value: is_number(value) and value >= 0, "a number, 0 or more, such as 1"),
    "valid": (_one_of(VALID), f"one of {', '.join(VALID)}"),
    "eps_outside": (_is_flag, "true or false"),
    "memory": (is_count, "a whole number of steps, 1 or more, such as 8"),
    "memory_decay": (
        _is_share,
        "the weight of a step's statistics relative to the next one's, from 0 to 1, such as 0.9",
    ),
    "eta": (lambda value: value is None or _is_share(value), "a share from 0 to 1, such as 0.1, or null"),
    "eta_warmup": (
        lambda value: value is None or _is_whole(value),
        "a whole number of steps, 0 or more, such as 100, or null",
    ),
    "var_mode": (_one_of(VAR_MODES), f"one of {', '.join(VAR_MODES)}"),
    "grad_mode": (_one_of(GRAD_MODES), f"one of {', '.join(GRAD_MODES)}"),
    "double_forward": (_is_flag, "true or false"),
    "warmup_steps": (_is_whole, "a whole number of steps, 0 or more, such as 100"),
    "clip_start": (_is_whole, "a whole number of steps, 0 or more, such as 1000"),
    "ws_eps": (lambda value: is_number(value) and value >= 0, "a number, 0 or more, such as 1e-5"),
    "base": (_one_of(BASES), f"one of {', '.join(BASES)}"),
    "eps1": (lambda value: is_number(value) and value >= 0, "a number, 0 or more, such as 0.01"),
    "eps2": (lambda value: is_number(value) and value >= 0, "a number, 0 or more, such as 1e-4"),
    "q_scale": (_is_flag, "true or false"),
    "around": (_one_of(AROUND), f"one of {', '.join(AROUND)}"),
    "debias": (_is_flag, "true or false"),
    "add_bias": (_is_flag, "true or false"),
    "gain": (lambda value: value is None or _is_share(value), "the weight of the measured from 0 to 1, such as 0.1"),
    "prior": (_one_of(PRIORS), f"one of {', '.join(PRIORS)}"),
    "propagate": (_one_of(PROPAGATIONS), f"one of {', '.join(PROPAGATIONS)}"),
    "detach_prior": (_is_flag, "true or false"),
    "gate_ratio": (lambda value: value is not None and _is_bound(0)(value), "a number, 0 or more (inf: no gate)"),
    "drop": (lambda value: is_number(value) and 0 <= value < 1, "a share from 0 to below 1, such as 0.05"),
    "channelwise": (_is_flag, "true or false"),
    "placement": (_one_of(PLACEMENTS), f"one of {', '.join(PLACEMENTS)}"),
    "domains": (is_count, "a whole number of domains, 1 or more, such as 3"),
    "proxy_eps": (lambda value: is_number(value) and value >= 0, "a number, 0 or more, such as 0.03"),
    "quantiles": (is_count, "a whole number of grid points, 1 or more, such as 256"),
    "num_groups": (_is_group_number, "a whole number of groups, 1 or more, such as 16"),
    "group_fit": (_one_of(FITS, or_none=True), f"one of {', '.join(FITS)}"),
    "eval_stats": (_one_of(EVAL_STATS), f"one of {', '.join(EVAL_STATS)}"),
    "alpha": (is_number, "a number, such as 0.2"),
    "agc": (lambda value: value is None or (is_number(value) and value > 0), "a number above 0, such as 0.02, or null"),
    "rules": (_one_of(RULES), f"one of {', '.join(RULES)}"),
    "size": (_is_size, "the height and width of the maps, such as (56, 56)"),
}
TABLED = (
    lambda value: _is_group_number(value) or _is_table(value),
    "a whole number of groups, 1 or more, such as 16, or a table {batch: groups}",
)


def check(options: Mapping[str, Any], name: str, tabled: bool = False) -> None:
    """Raise ConfigError for the first option of the unit ``name`` whose value cannot be taken.

    ``tabled``: num_groups may also be a table of groups by batch (bgn).
    """
    for option, value in options.items():
        fits, expected = TABLED if tabled and option == "num_groups" else CHECKS[option]
        if not fits(value):
            near = nearest(value, CHOICES[option]) if option in CHOICES and isinstance(value, str) else None
            hint = f"; did you mean {near!r}?" if near else ""
            raise ConfigError(f"{name}: got {option}={value!r}, expected {expected}{hint}")


def check_tabled(options: Mapping[str, Any], name: str) -> None:
    """``check`` for a method whose num_groups may be a table."""
    check(options, name, tabled=True)
