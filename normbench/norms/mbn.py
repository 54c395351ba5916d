"""Memorized Batch Normalization with double forward (Guo, Wu, Deng, Chen & Tan, AAAI 2018, arXiv:2010.04947).

A reconstruction: of the paper's algorithm we know that memory of k steps and the batch at hand are mixed by weights α,
that evaluation follows the same rule, and that after each update the same batch goes forward again and its new
statistics enter memory. What the weights are, how variances mix, what has a gradient, and every default are ours.

    α = η for the batch at hand, (1 − η) λ^age / Σ λ^age for what is remembered, age 0 the newest
    μ = Σ α_i μ_i        σ² = Σ α_i (σ_i² + (μ_i − μ)²)        "within": σ² = Σ α_i σ_i²
    y = γ (x − μ) / √(σ² + ε) + β
x, y: (N, C, H, W).  μ_i, σ_i²: (C,), over H, W and the ``batch`` images of a worker; biased.  γ, β: (C,).
While fewer than k steps are remembered the weights are those of these alone; where there is none, the batch's is 1.
grad_mode="full": what is remembered is constant, the batch's own μ_i, σ_i² have a gradient, times η. "detach": μ and σ²
are constants.
Step: forward with memory and batch, and write the batch's statistics; backward, update; then (``double_forward``, by
``Hooks``) the same pictures forward again in training mode without gradients, with the same draws: each unit normalizes
by memory and batch as before, and writes the statistics under the new weights over those that it just wrote. In a loop
that does not call the hooks (normbench.norms.step_hooks) it is as with double_forward=False.
η: ``eta``, if it is not given 1/(k + 1) up to 8 images of a worker, n/(n + 8) with more (n). Before that 1 for
``eta_warmup`` steps, then along a line for as many; not given, a thirtieth of the run, 0 if ``run_steps`` is unknown.
mem_mean, mem_var (k + 1, C): the last k steps and one more, which the second forward needs in place of the newest;
oldest first, 0 and 1 where nothing was written; mem_count: how many are. Several workers: each mixes its own statistics
with memory in common, in which is the mean over the workers.
Eval: the last k steps by the same weights, without a batch; nothing else. A new unit evaluates with mean 0, variance 1,
as a new BatchNorm2d does. Works from N = 1, if H·W > 1 or something is remembered.
With eta=1 equals torch.nn.BatchNorm2d in training: tests/norms/test_mbn.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, plain, population, running
from normbench.norms.hooks import StepHooks
from normbench.norms.operators import held
from normbench.norms.registry import Normalizer, is_unit, register

SMALL_BATCH = 8
WARMUP_SHARE = 1 / 30


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    means: Tensor,
    variances: Tensor,
    eta: float,
    memory_decay: float = 0.9,
    var_mode: str = "total",
    eps: float = 1e-5,
    batch: int | None = None,
) -> Tensor:
    """The plain formula, as in training; means, variances: what is remembered, (steps, C), oldest first."""
    y, m = [], len(means)
    for worker in x.split(batch or len(x)):
        own_mean, own_var = worker.mean((0, 2, 3)), worker.var((0, 2, 3), correction=0)
        share = eta if m else 1.0
        powers = [memory_decay ** (m - 1 - i) for i in range(m)]
        alpha = torch.tensor([(1 - share) * p / sum(powers) for p in powers] + [share], dtype=x.dtype)[:, None]
        mu, var = torch.cat([means, own_mean[None]]), torch.cat([variances, own_var[None]])
        mean = (alpha * mu).sum(0)
        spread = (mu - mean) ** 2 if var_mode == "total" else 0.0
        var = (alpha * (var + spread)).sum(0)
        y.append((worker - mean[:, None, None]) / torch.sqrt(var + eps)[:, None, None])
    return weight[:, None, None] * torch.cat(y) + bias[:, None, None]


class MemorizedBatchNorm(nn.Module):
    """Normalize each channel by remembered statistics and the batch's: (N, C, H, W) → the same, then ``activation``.

    ``batch`` is as in BatchNorm. ``run_steps``: how many optimizer steps the run has, if known; set it on the unit.
    ``again``: a training forward is the second of its step.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    mem_mean: Tensor
    mem_var: Tensor
    mem_count: Tensor
    num_batches_tracked: Tensor
    example_weight: float

    def __init__(
        self,
        num_features: int,
        memory: int = 8,
        memory_decay: float = 0.9,
        eta: float | None = None,
        eta_warmup: int | None = None,
        var_mode: str = "total",
        grad_mode: str = "full",
        double_forward: bool = True,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        batch: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.batch = num_features, eps, batch
        self.memory, self.memory_decay, self.eta, self.eta_warmup = memory, memory_decay, eta, eta_warmup
        self.var_mode, self.grad_mode, self.double_forward = var_mode, grad_mode, double_forward
        self.run_steps: int | None = None
        self.again = False
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        shape = memory + 1, num_features
        self.register_buffer("mem_mean", torch.zeros(shape, device=device, dtype=dtype))
        self.register_buffer("mem_var", torch.ones(shape, device=device, dtype=dtype))
        self.register_buffer("mem_count", torch.zeros((), dtype=torch.long, device=device))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))
        running.weigh_examples(self)
        self.register_load_state_dict_pre_hook(_load)

    def forward(self, x: Tensor) -> Tensor:
        N, C, *_ = core.check_input(x, self.num_features, "mbn")
        affine = (self.weight, self.bias)
        if not self.training:
            kept = self.remembered()
            if self.example_weight:
                kept = running.mixed(self.example_weight, plain.moments(x), kept)
            return core.normalize(x, *kept, self.eps, *affine, self.activation)
        workers = core.workers(N, self.batch, "mbn")
        share = self.share(N // workers)
        if not isinstance(share, Tensor) and share == 1 and self.grad_mode == "full":
            y, own = core.measured(x, workers, C, self.eps, *affine, self.activation)
            self._write(*own)
            return y
        own_mean, own_var = plain.pool(*plain.moments(x if self.grad_mode == "full" else x.detach()), workers, C)
        mean, var = self._mix(own_mean, own_var, share)
        self._write(own_mean, own_var)
        return core.normalize(x, mean, var, self.eps, *affine, self.activation)

    def share(self, images: int) -> float | Tensor:
        """η of this step, for a worker's ``images``."""
        if self.eta is not None:
            eta = self.eta
        else:
            eta = 1 / (self.memory + 1) if images <= SMALL_BATCH else images / (images + SMALL_BATCH)
        warmup = self.warmup_steps()
        if warmup == 0:
            return eta
        step = self.num_batches_tracked - int(self.again)
        if running.known(step):
            return 1 + (eta - 1) * min(max(int(step) / warmup - 1, 0.0), 1.0)
        way = (step.to(plain.at_least_float32(self.mem_mean.dtype)) / warmup - 1).clamp(0, 1)
        return 1 + (eta - 1) * way

    def warmup_steps(self) -> int:
        """How many steps η is 1."""
        if self.eta_warmup is not None:
            return self.eta_warmup
        return 0 if self.run_steps is None else round(WARMUP_SHARE * self.run_steps)

    def remembered(self) -> tuple[Tensor, Tensor]:
        """μ and σ² of evaluation, (1, C) each; where nothing was written a mean 0 and a variance 1."""
        mean, var, _ = self._recall()
        return mean[None], var[None]

    @torch.no_grad()
    def _recall(self) -> tuple[Tensor, Tensor, Tensor]:
        """μ and σ² of the last k steps as one, weighed by λ^age, (C,) each, and 1, or 0 where nothing was written.

        In the second forward, of the k before the one that was just written.
        """
        k, again = self.memory, int(self.again)
        dtype = plain.at_least_float32(self.mem_mean.dtype)
        means, variances = (value[1 - again : k + 1 - again].to(dtype) for value in (self.mem_mean, self.mem_var))
        alpha = self._weights(dtype)
        total = alpha.sum()
        newest = torch.arange(k, device=alpha.device) == k - 1
        alpha = torch.where(total > 0, alpha / total.clamp(min=torch.finfo(dtype).tiny), newest.to(dtype))[:, None]
        mean = (alpha * means).sum(0)
        spread = (means - mean).square() if self.var_mode == "total" else 0.0
        return held(mean), held((alpha * (variances + spread)).sum(0)), held((total > 0).to(dtype))

    def _weights(self, dtype: torch.dtype) -> Tensor:
        """λ^age of the k steps, oldest first, 0 where nothing was written: (k,)."""
        age = torch.arange(self.memory - 1, -1, -1, device=self.mem_count.device)
        return torch.pow(self.memory_decay, age.to(dtype)) * (age < self.mem_count - int(self.again))

    def _mix(self, own_mean: Tensor, own_var: Tensor, share: float | Tensor) -> tuple[Tensor, Tensor]:
        """μ and σ² of each worker from its own, (workers, C) each."""
        mean, var, there = self._recall()
        own = 1 + (share - 1) * there
        mixed = own * own_mean + (1 - own) * mean
        if self.var_mode == "within":
            return mixed, own * own_var + (1 - own) * var
        apart, own_apart = (mean - mixed).square(), (own_mean - mixed).square()
        return mixed, own * (own_var + own_apart) + (1 - own) * (var + apart)

    @torch.no_grad()
    def _write(self, mean: Tensor, var: Tensor) -> None:
        """The workers' mean statistics into memory, as the newest; in the second forward in place of the newest."""
        population.met(self, mean, var)
        for buffer, value in ((self.mem_mean, mean), (self.mem_var, var)):
            earlier = buffer[:-1] if self.again else buffer[1:]
            buffer.copy_(torch.cat([earlier, value.mean(0, keepdim=True).to(buffer.dtype)]))
        if not self.again:
            self.num_batches_tracked.add_(1)
            self.mem_count.add_(1).clamp_(max=self.memory + 1)

    def take_population(self, mean: Tensor, var: Tensor) -> None:
        """Statistics of many batches, (C,) each, to evaluate by: all that is remembered."""
        self.mem_mean.copy_(mean)
        self.mem_var.copy_(var)
        self.mem_count.fill_(self.memory)

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic, of which memory holds some steps."""
        return (self.memory + 1) * batch * H * W

    def extra_repr(self) -> str:
        of_memory = f"memory={self.memory}, memory_decay={self.memory_decay}, eta={self.eta}"
        modes = f"var_mode={self.var_mode}, grad_mode={self.grad_mode}, double_forward={self.double_forward}"
        return f"{self.num_features}, {of_memory}, {modes}, eps={self.eps}, batch={self.batch}"


class Hooks(StepHooks):
    """The second forward of a step, in which the units write what they see under the new weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        units = [module for module in model.modules() if isinstance(module, MemorizedBatchNorm)]
        self.units = [unit for unit in units if unit.double_forward]
        self.forwards_again = bool(self.units)

    @torch.no_grad()
    def updated(self, again: Callable[[], object]) -> None:
        """Only the units' buffers change: those of other modules (a BatchNorm1d's) have seen the batch already, and a
        loop's own draws must not depend on the norm.
        """
        if not self.units:
            return
        draws = torch.get_rng_state()
        others = [buffer for module in self.model.modules() if not is_unit(module) for buffer in module.buffers(False)]
        before = [buffer.clone() for buffer in others]
        self._set(True)
        try:
            again()
        finally:
            self._set(False)
            torch.set_rng_state(draws)
        for buffer, value in zip(others, before, strict=True):
            buffer.copy_(value)

    def _set(self, again: bool) -> None:
        for unit in self.units:
            unit.again = again


def _load(unit: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: Any) -> None:
    """Before a load: a BatchNorm2d's statistics are left out, since memory is of single steps."""
    own = any(key.startswith(f"{prefix}mem_") for key in state_dict)
    running.leave_out(unit, state_dict, prefix, () if own else running.STATISTICS, metadata, lists[-1])


register(
    Normalizer(
        name="mbn",
        unit=MemorizedBatchNorm,
        method="Memorized Batch Normalization (reconstruction)",
        paper="Guo, Wu, Deng, Chen & Tan, AAAI 2018, arXiv:2010.04947",
        mixes_samples=True,
        train_eval_differ=True,
        hooks=Hooks,
        no_graph="its second forward takes the same random draws, and to set these is to wait for the device",
        keeps_statistics=True,
    )
)
