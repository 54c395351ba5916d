"""Normalizers: the registry, and one file per method.

    build("gn", 64, num_groups=16)      the unit that stands at a site
    names()  get(name)                  the rows of the registry

A new method is a file here, a file in conf/norm/, and an import below.
"""

from normbench.norms.fused import kernels
from normbench.norms.hooks import StepHooks, step_hooks
from normbench.norms.normalizer import Normalizer
from normbench.norms.registry import (
    affine_parameters,
    build,
    check_options,
    extra_parameters,
    get,
    is_unit,
    names,
    ours,
    register,
    unit_name,
)
from normbench.norms.running import set_example_weight
from normbench.norms.wiring import Wiring

# isort: split
# The order in which they are listed.
from normbench.norms import none, bn, ln, in_, gn, pn, bgn, frn, brn, gbn, batch_group, iebn, proxy  # noqa: F401, I001
from normbench.norms import sn, evonorm_b0, evonorm_s0, rms, rbn, dyt  # noqa: F401
from normbench.norms import mabn, bcn, online, syncbn  # noqa: F401
from normbench.norms import bkn, bnp  # noqa: F401
from normbench.norms import cbn, mbn  # noqa: F401
from normbench.norms import ic, bne  # noqa: F401
from normbench.norms import ws, nf  # noqa: F401

__all__ = [
    "Normalizer",
    "StepHooks",
    "Wiring",
    "affine_parameters",
    "build",
    "check_options",
    "extra_parameters",
    "get",
    "is_unit",
    "kernels",
    "names",
    "ours",
    "register",
    "set_example_weight",
    "step_hooks",
    "unit_name",
]
