"""Batch Group Normalization (Zhou, Sun, Ye, Lan, Luo, Lai, Esperanca, Yang & Li 2020, arXiv:2012.02782).

    y = γ (x − μ) / √(σ² + ε) + β
x, y: (N, C, H, W).  An image's D = C·H·W features, in that order, are cut into G pieces: group(d) = (d·G)//D.
μ, σ²: (G,), over the D/G features of a piece and the ``batch`` images of a worker; σ² biased.  γ, β: (C,).
G = C is BatchNorm, G < C pools channels, G > C cuts channels.
Train: statistics of each worker. Eval: running_mean, running_var (G,), kept as BatchNorm keeps its own, or the
statistics of the batch (``eval_stats="batch"``). Works from N = 1. Where G does not divide D: norms/groups.py.
Differs from the paper: its rule for evaluation, momentum, ε and number of groups by batch were not seen; ours are
BatchNorm's, and ``num_groups`` may be a table {batch: groups}. The default, 32 groups fitted ``uneven``, is our choice.
With G = C equals torch.nn.BatchNorm2d, with N = 1 torch.nn.GroupNorm: tests/norms/test_identities.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normbench.errors import InputError
from normbench.norms import core, groups, plain, running
from normbench.norms.options import check_tabled
from normbench.norms.registry import Normalizer, register

DEFAULT_GROUPS = 32


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, *, num_groups: int, eps: float = 1e-5, batch: int | None = None
) -> Tensor:
    """The plain formula, as in training."""
    D = x[0].numel()
    y = torch.empty_like(x.flatten(1))
    for n in range(0, len(x), batch or len(x)):
        f = x[n : n + (batch or len(x))].flatten(1)
        for g in range(num_groups):
            piece = [d for d in range(D) if (d * num_groups) // D == g]
            mu = f[:, piece].mean()
            var = ((f[:, piece] - mu) ** 2).mean()
            y[n : n + len(f), piece] = (f[:, piece] - mu) / torch.sqrt(var + eps)
    return weight[:, None, None] * y.view(x.shape) + bias[:, None, None]


class BatchGroupNorm(nn.Module):
    """Normalize G pieces of an image over a worker's images: (N, C, H, W) → the same, then ``activation``.

    ``num_groups`` becomes the effective number: at once where it is known (G divides C, or ``size`` = (H, W) is given,
    or the fit leaves no choice), else at the first forward or load, and None before; so do the buffers. Where G does
    not divide C the unit then holds for that H × W only. ``batch`` is as in BatchNorm, and what a table is looked up
    with when the unit is built. Raises ConfigError for a table without ``batch``, InputError for a number that does not
    fit under ``strict`` and for another H × W.
    """

    _version = 3  # tells its states from a BatchNorm2d's, which are version 2

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    num_batches_tracked: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    example_weight: float

    def __init__(
        self,
        num_features: int,
        num_groups: int | Mapping[int | str, int] | None = None,
        group_fit: str | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        eval_stats: str = "running",
        size: tuple[int, int] | None = None,
        *,
        activation: nn.Module | None = None,
        batch: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.batch = num_features, eps, momentum, batch
        self.eval_stats, self.activation = eval_stats, activation
        if isinstance(num_groups, Mapping):
            num_groups, group_fit = groups.from_table(num_groups, batch, "bgn"), group_fit or "uneven"
        self.wanted, self.group_fit = groups.choose(num_groups, group_fit, DEFAULT_GROUPS, "uneven")
        self.any_size = num_features % self.wanted == 0
        self.size = None if size is None or self.any_size else (int(size[0]), int(size[1]))
        self.num_groups = self._fitted(*self.size) if self.size else self._foreseen()
        self.foreseen = self.num_groups is not None
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        running.add(self, self.num_groups, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(_load)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        _, C, H, W = core.check_input(x, self.num_features, "bgn")
        self._settle(H, W, plain.at_least_float32(x.dtype))
        if residual is not None and (C % (self.num_groups or 1) or not (self.training or self.eval_stats == "running")):
            return plain.ended(self._forward(x, None) + residual, self.activation)
        return self._forward(x, self.activation, residual)

    def _forward(self, x: Tensor, activation: nn.Module | None, residual: Tensor | None = None) -> Tensor:
        """activation(normalized x + residual); a residual only where groups are whole channels, and N is not cut."""
        N = len(x)
        if self.training:
            workers = core.workers(N, self.batch, "bgn")
            return self._standardize(x, workers, True, activation, residual)
        if self.eval_stats == "running":
            kept = running.statistics(self)
            if self.example_weight:
                G = kept[0].shape[1]
                whole = self.num_features % G == 0
                own = plain.pool(*plain.moments(x), N, G) if whole else plain.segment_moments(x, N, G)
                kept = running.mixed(self.example_weight, own, kept)
            return self._normalize(x, *kept, activation, residual)
        n = min(self.batch or N, N)
        if N % n:  # evaluation sees every picture, so the last few are a smaller group of their own
            return torch.cat([self._forward(part, activation) for part in x.tensor_split([N - N % n])])
        return self._standardize(x, N // n, False, activation, residual)

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic, in the smallest group."""
        return batch * (self.num_features * H * W // self._fitted(H, W))

    def extra_repr(self) -> str:
        groups = self.wanted if self.num_groups is None else self.num_groups
        return (
            f"{self.num_features}, num_groups={groups}, group_fit={self.group_fit}, eps={self.eps}, "
            f"momentum={self.momentum}, batch={self.batch}, eval_stats={self.eval_stats}"
        )

    def _standardize(
        self, x: Tensor, workers: int, moves: bool, activation: nn.Module | None, residual: Tensor | None
    ) -> Tensor:
        """y by the moments of (workers, G), which move the running statistics if they shall."""
        (N, C, H, W), G = x.shape, self.num_groups
        assert G is not None
        weight, bias, _ = core.affine(self)
        whole = C % G == 0
        unbiased = running.unbiased(N // workers * (C // G) * H * W) if whole else 1.0
        track = running.variance(self, workers, unbiased) if moves else None
        if whole:
            return core.standardize(x, workers, G, self.eps, weight, bias, activation, track=track, residual=residual)
        return core.segmented(x, workers, G, self.eps, weight, bias, activation, track=track)

    def _normalize(
        self, x: Tensor, mean: Tensor, var: Tensor, activation: nn.Module | None, residual: Tensor | None = None
    ) -> Tensor:
        """x by statistics of (workers, G), or (1, G)."""
        weight, bias, _ = core.affine(self)
        G = mean.shape[1]
        if self.num_features % G == 0:
            return core.normalize(x, mean, var, self.eps, weight, bias, activation, residual=residual)
        return core.segmented(x, len(mean), G, self.eps, weight, bias, activation, given=(mean, var))

    def _foreseen(self) -> int | None:
        """The effective number of groups where it is the same for every H × W."""
        if self.any_size or self.group_fit == "strict":
            return self.wanted
        return self.wanted if self.group_fit == "uneven" and self.wanted <= self.num_features else None

    def _fitted(self, H: int, W: int) -> int:
        if self.any_size:
            return self.wanted
        C, D = self.num_features, self.num_features * H * W
        return groups.fit(D, self.wanted, self.group_fit, "bgn", f"C*H*W={C}*{H}*{W}={D}")

    def _settle(self, H: int, W: int, dtype: torch.dtype) -> None:
        """Fix the pieces to the first H × W seen, and make the buffers if a load has not."""
        C, G = self.num_features, self.num_groups
        if self.any_size or self.size == (H, W):
            return
        if self.size is not None and not (G and C % G == 0 and self._fitted(H, W) == G):
            raise InputError(
                f"bgn: got maps of {H}x{W}, expected {self.size[0]}x{self.size[1]} as before, since "
                f"num_groups={self.num_groups} cuts C={C} channels into pieces of a map; keep the size, or take "
                f"num_groups a divisor of {C}, such as {groups.nearest_divisor(C, self.wanted)}"
            )
        self._hold(self._fitted(H, W), dtype)
        self.size = (H, W)

    def _hold(self, G: int, dtype: torch.dtype) -> None:
        """Make buffers for G groups, unless there are such."""
        held = self.num_groups
        if held is not None and held != G:
            if held != self.num_features:
                raise InputError(
                    f"bgn: got maps that give {G} groups, but the statistics loaded are of {held}; "
                    "give maps of the size that they were made with"
                )
            warnings.warn(
                f"bgn: left out a BatchNorm2d's running statistics of {held} channels, as here they are of {G} groups",
                UserWarning,
                stacklevel=3,
            )
            self.num_batches_tracked.zero_()
        if held != G:
            self._make(G, dtype)

    def _make(self, G: int | None, dtype: torch.dtype | None) -> None:
        """New buffers for G groups, none for None, of the weight's dtype; without one, of ``dtype``."""
        device = self.num_batches_tracked.device
        dtype = dtype if self.weight is None else self.weight.dtype
        self.num_groups = G
        self.running_mean = None if G is None else torch.zeros(G, device=device, dtype=dtype)
        self.running_var = None if G is None else torch.ones(G, device=device, dtype=dtype)

    def _may_hold(self, G: int, from_batchnorm: bool) -> bool:
        """Whether buffers of length G can be this unit's: for its H × W, or for some while that is open."""
        if self.foreseen or self.size is not None:
            return self.num_groups == G
        if self.group_fit == "gcd":
            return self.wanted % G == 0
        capped = self.wanted > G and G % self.num_features == 0  # G = D, the case of small maps
        return self.wanted == G or (capped and not from_batchnorm)


def _load(
    unit: BatchGroupNorm, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: list[str]
) -> None:
    """Before a load: buffers of the checkpoint's length where it is open; a BatchNorm2d's only where G = C."""
    left: tuple[str, ...] = ()
    mean = state_dict.get(f"{prefix}running_mean")
    length = None if mean is None else len(mean)
    from_batchnorm = metadata.get("version") == nn.BatchNorm2d._version
    if length is not None and not unit._may_hold(length, from_batchnorm):
        left = running.STATISTICS if length == unit.num_features else ()
    elif not unit.foreseen and length != unit.num_groups and (length or f"{prefix}num_batches_tracked" in state_dict):
        unit._make(length, None if mean is None else mean.dtype)
        unit.size = None
    running.leave_out(unit, state_dict, prefix, left, metadata, lists[-1])


register(
    Normalizer(
        name="bgn",
        unit=BatchGroupNorm,
        method="Batch Group Normalization",
        paper="Zhou et al. 2020, arXiv:2012.02782",
        mixes_samples=True,
        train_eval_differ=True,
        check=check_tabled,
    )
)
