"""Batch Normalization Embeddings (Segu, Tonioni & Tombari, Pattern Recognition 135, 2023, arXiv:2011.12672).

    y = γ (x − μ_d) / √(σ_d² + ε) + β                                       d: the image's domain
    W_l(d, t) = Σ_c (μ_dc − μ_tc)² + (σ_dc − σ_tc)²                         of an image t, at the layer l
    w_d = (1 / Σ_l W_l(d, t)) / Σ_j (1 / Σ_l W_l(j, t))
    p(t) = Σ_d w_d softmax(f(t; statistics of d))
x, y: (N, C, H, W).  μ_d, σ_d²: (C,) of each domain d < D, over H, W and those of a worker's ``batch`` images that are
of this domain; σ² biased.  γ, β: (C,), shared.  μ_t, σ_t: of one image's maps, as they enter the unit.
Train: statistics of the image's own domain in its worker's batch, and the cross-entropy of that branch alone.
running_mean, running_var (D, C) of a domain move by ``momentum`` (torch's sense) towards its mean and unbiased
variance, as the mean over the workers of what each would have kept: one that saw no image of a domain keeps what it
had. num_batches_tracked (D,): batches with the domain in them, the mean over workers, hence not whole numbers.
Eval: the network once with the statistics of each domain, as one forward of D·N images; ``ensemble`` gives log p. Works
from N = 1, if H·W > 1; a domain is left with batch / D images or so, and BN's trouble with few is all the greater.
In a training loop of one's own: ``step_hooks(model).pictures(domains)`` before each training forward.
With D = 1 equals torch.nn.BatchNorm2d, and evaluation is the network's own: tests/norms/test_bne.py.

From the abstract and from summaries by others: statistics by domain, all else shared; weights of inverse distances
between the embeddings, and predictions combined linearly. That the distance is Wasserstein's between Gaussians is from
a summary; its formula for diagonal ones is arithmetic. Reconstructed: its square is what is added up, over all layers,
with equal weights, and so is dominated by wide layers and those of large variance; weights add up to 1; probabilities
are combined, not logits; an image's embedding is of each branch's own activations, so after the first layer they
differ. Ours: domains are mixed within a batch, where the paper speaks of batches of one each; 1e-8 beside each
distance; no loss of the ensemble in training, which the paper has in some form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normbench.errors import InputError
from normbench.norms import core, plain, population, running
from normbench.norms.hooks import StepHooks
from normbench.norms.registry import Normalizer, register

DISTANCE_EPS = 1e-8


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    batch: int | None = None,
    of: list[int] | None = None,
) -> Tensor:
    """The plain formula, as in training; of: the domain of each image, None: one for all."""
    y = torch.empty_like(x)
    for worker in torch.arange(len(x)).split(batch or len(x)):
        domains = [0 if of is None else of[n] for n in worker]
        for d in set(domains):
            here = worker[[own == d for own in domains]]
            mu = x[here].mean((0, 2, 3), keepdim=True)
            var = ((x[here] - mu) ** 2).mean((0, 2, 3), keepdim=True)
            y[here] = weight[:, None, None] * (x[here] - mu) / torch.sqrt(var + eps) + bias[:, None, None]
    return y


class BatchNormEmbedding(nn.Module):
    """Normalize each channel over the images of a domain: (N, C, H, W) → the same, then ``activation``.

    ``domains``: D. ``batch`` is as in BatchNorm. With D > 1 somebody says of which domain the images are: ``told``,
    int64 (N,). Raises InputError if nobody has.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    example_weight: float
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        domains: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        batch: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.batch = num_features, eps, momentum, batch
        self.domains, self.activation = domains, activation
        self.told: Tensor | None = None
        self.distances: list[Tensor] | None = None  # where an ensemble wants them: images are D copies of some
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        self.register_buffer("running_mean", torch.zeros(domains, num_features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(domains, num_features, device=device, dtype=dtype))
        # Floating, so that chunks of workers and ranks take its mean as they do of the others.
        self.register_buffer("num_batches_tracked", torch.zeros(domains, device=device))
        running.weigh_examples(self)
        self.register_load_state_dict_pre_hook(_load)

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = core.check_input(x, self.num_features, "bne")
        affine = core.affine(self)
        if self.training:
            workers = core.workers(N, self.batch, "bne")
            if self.domains > 1:
                mean, var = self._by_domain(x, workers)
                return core.normalize(x, mean, var, self.eps, *affine)
            y, found = core.measured(x, workers, C, self.eps, *affine)
            self._move(found.mean[:, None], found.var[:, None], found.mean.new_full((workers, 1), N // workers * H * W))
            return y
        dtype = plain.at_least_float32(self.running_mean.dtype)
        mean, var = self.running_mean.to(dtype), self.running_var.to(dtype)
        if self.distances is not None:
            self.distances.append(_distance(x, mean, var))
        elif self.domains > 1:
            of = self._told(N)
            mean, var = mean[of], var[of]
        if self.example_weight:
            kept = mean.repeat_interleave(N // len(mean), 0), var.repeat_interleave(N // len(mean), 0)
            mean, var = running.mixed(self.example_weight, plain.moments(x), kept)
        return core.normalize(x, mean, var, self.eps, *affine)

    def _told(self, N: int) -> Tensor:
        if self.told is None or len(self.told) != N:
            got = "none" if self.told is None else f"those of {len(self.told)}"
            raise InputError(
                f"bne: got {got}, expected the domains of {N} images, since there are domains={self.domains}; take "
                "data=domains, or in a loop of your own call step_hooks(model).pictures(domains) before the forward"
            )
        return self.told

    def _by_domain(self, x: Tensor, workers: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance that each image is normalized by, (N, C) each; moves the buffers."""
        (N, C, H, W), D = x.shape, self.domains
        worker = torch.arange(N, device=x.device).div(N // workers, rounding_mode="floor")
        group = worker * D + self._told(N)
        plane_mean, plane_var = plain.moments(x)
        images = plane_mean.new_zeros(workers * D).index_add(0, group, plane_mean.new_ones(N))
        each = images.clamp(min=1)[:, None]
        empty = plane_mean.new_zeros(workers * D, C)
        mean = empty.index_add(0, group, plane_mean) / each
        var = empty.index_add(0, group, plane_var + (plane_mean - mean[group]).square()) / each
        shape = (workers, D, C)
        self._move(mean.detach().view(shape), var.detach().view(shape), images.view(workers, D) * (H * W))
        return mean[group], var[group]

    @torch.no_grad()
    def _move(self, mean: Tensor, var: Tensor, values: Tensor) -> None:
        """Towards the moments of each worker's domains, (workers, D, C) each, of so many ``values``, (workers, D)."""
        count, dtype = self.num_batches_tracked, plain.at_least_float32(self.running_mean.dtype)
        if self.domains == 1:
            population.met(self, mean[:, 0], var[:, 0])
        values = values.to(dtype)
        seen = (values > 0).to(dtype)
        share = seen * self.momentum if self.momentum is not None else seen / (count.to(dtype) + 1)
        count.add_(seen.mean(0))
        var = var * (values / (values - 1).clamp(min=1))[..., None]
        for buffer, new in ((self.running_mean, mean), (self.running_var, var)):
            old = buffer.to(dtype)
            buffer.copy_(old + (share[..., None] * (new - old)).mean(0))

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic, if all images are of one domain."""
        return batch * H * W

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, domains={self.domains}, eps={self.eps}, momentum={self.momentum}, batch={self.batch}"
        )


def wasserstein(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """The squared 2-Wasserstein distance of Gaussians with diagonal covariances: (…, C) each → (…)."""
    return ((mean - other_mean).square() + (std - other_std).square()).sum(-1)


def weights(distance: Tensor) -> Tensor:
    """w of the domains, which add up to 1, from the distances to them: (D, N) → the same."""
    return torch.softmax(-torch.log(distance + DISTANCE_EPS), 0)


def ensemble(model: nn.Module, forward: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The evaluation forward: log p (N, classes), which is its own log-softmax; with one domain, the network's own."""
    units = [module for module in model.modules() if isinstance(module, BatchNormEmbedding)]
    D = max(unit.domains for unit in units)
    if D == 1:
        return forward(model, x, *args, **kwargs)
    distances: list[Tensor] = []
    try:
        for unit in units:
            unit.distances = distances
        logits = forward(model, x.repeat(D, 1, 1, 1), *args, **kwargs)
    finally:
        for unit in units:
            unit.distances = None
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise InputError(
            f"bne: got {type(logits).__name__} out of the network, expected logits (N, classes), whose probabilities "
            "can be averaged over domains; take a classifier, or domains=1"
        )
    log_p = torch.log_softmax(logits.to(plain.at_least_float32(logits.dtype)), 1).view(D, len(x), -1)
    w = weights(torch.stack(distances).sum(0).view(D, len(x)))
    return torch.logsumexp(log_p + w.log()[..., None].to(log_p.dtype), 0)


def _distance(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """W of each image to the domain whose copy it is: x (D·N, C, H, W); mean, var (D, C) → (D·N,)."""
    D, C = mean.shape
    own_mean, own_var = (value.view(D, -1, C) for value in plain.moments(x))
    return wasserstein(mean[:, None], var.sqrt()[:, None], own_mean, own_var.sqrt()).flatten()


class Domains(StepHooks):
    """Tells the units of which domains the pictures of the next forward are."""

    def pictures(self, domains: Tensor) -> None:
        for unit in self.model.modules():
            if isinstance(unit, BatchNormEmbedding):
                unit.told = domains


def _load(unit: Any, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: Any) -> None:
    """Before a load: a BatchNorm2d's statistics are those of every domain."""
    running.leave_out(unit, state_dict, prefix, (), metadata, lists[-1])
    for key in running.STATISTICS:
        own, given = getattr(unit, key), state_dict.get(prefix + key)
        if isinstance(given, Tensor) and given.dim() == own.dim() - 1:
            state_dict[prefix + key] = given.to(own.dtype).expand_as(own).clone()


register(
    Normalizer(
        name="bne",
        unit=BatchNormEmbedding,
        method="Batch Normalization Embeddings: statistics by domain, and their ensemble",
        paper="Segu, Tonioni & Tombari, Pattern Recognition 2023, arXiv:2011.12672",
        mixes_samples=True,
        train_eval_differ=True,
        drop_in=False,
        around=ensemble,
        hooks=Domains,
        keeps_statistics=True,
    )
)
