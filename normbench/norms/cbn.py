"""Cross-Iteration Batch Normalization (Yao, Cao, Zheng, Huang & Lin, CVPR 2021, arXiv:2002.05712).

The statistics of this step and of the k − 1 before it, those moved to the weights of now. Per channel, with the
convolution x = conv(a; w) before the unit; μ, ν: mean of x and of x² over H, W and the images of a worker:

    μ̂_j = μ_j + ρ ⟨∂μ_j/∂w, w − w_j⟩       ν̂_j = ν_j + ρ ⟨∂ν_j/∂w, w − w_j⟩       of step j back; this one: μ, ν
    μ̄ = mean of μ̂_j     σ̄² = mean of ν̂_j, less μ̄²     over the n steps that are valid
    y = γ (x − μ̄) / √(σ̄² + ε) + β            with ``eps_outside``, as in the official code: / (√σ̄² + ε)
valid="official" (code): a step with ν̂_j < μ̂_j² is left out. "paper" (reconstruction): its ν̂_j is raised to μ̂_j².
x, y: (N, C, H, W).  μ̂, ν̂, μ̄, σ̄²: (C,).  γ, β: (C,).  w: (C, C_in/groups, kh, kw).  k: ``window``, this step included.
Only this step's μ and ν have a gradient, a share of 1/n each; all else is constant, w too.
Derivatives are closed forms: ∂μ/∂w is the mean input patch, the same for all channels of a group, ∂ν/∂w the weight
gradient of the convolution for 2x/(N·H·W). ⟨·, w_j⟩ is a number, so no old weights are kept. ν is kept around a shift,
the running mean of its step, so that no variance comes out of a large difference; results do not depend on it.
Kept for each of the k − 1 steps, in the state: window_slope, w's numbers, window_patch (C_in, kh, kw), five of (C,).
ResNet-50 at k = 4 keeps 284 MB, which ranks exchange in every step. A convolution's bias is not compensated. Without a
plain Conv2d right before it (or built alone, or with ρ = 0) a unit has no derivatives: naive pooling, μ̂ = μ, ν̂ = ν.
Several workers: each has its own μ, ν of now; what is kept is the mean over the workers of all this, which is linear.
The first ``burnin`` steps are batch norm and keep nothing for later; then the window fills. Running statistics move
towards this step's mean and unbiased variance. Eval: as in batch norm.
Differs from the official code: ε is inside the root and γ starts at 1; frozen trunks are not an exception; what is kept
survives a stop. Ours are ``burnin`` where it is not given, a tenth of the run (8 steps if ``run_steps`` is unknown; the
code's 8 are steps, or epochs, as one reads it), k = 16 / batch, 1 to 8, where it is not given (the code has 4), and
workers.
With k = 1 equals torch.nn.BatchNorm2d: tests/norms/test_cbn.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from normbench.errors import InputError
from normbench.norms import core, plain, running
from normbench.norms.operators import held
from normbench.norms.registry import Normalizer, register
from normbench.norms.wiring import Wiring

IMAGES, MOST, USUAL_WINDOW = 16, 8, 4
BURNIN_SHARE, BURNIN_STEPS = 0.1, 8
SMALL = ("window_mean", "window_square", "window_shift")
SLOPES, DOTS = ("window_patch", "window_slope"), ("window_mean_dot", "window_square_dot")


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    means: Tensor | None = None,
    squares: Tensor | None = None,
    valid: str = "official",
    eps: float = 1e-5,
    eps_outside: bool = False,
    batch: int | None = None,
) -> Tensor:
    """The plain formula, as in training. means, squares: μ̂ and ν̂ of the steps before, (steps, C); None: no steps."""
    y = []
    for worker in x.split(batch or len(x)):
        shift = worker.detach().mean((0, 2, 3))  # changes no result, and ν − μ² cancels less
        apart = worker - shift[:, None, None]
        mu, nu = apart.mean((0, 2, 3))[None], (apart**2).mean((0, 2, 3))[None]
        kept = torch.ones_like(mu)
        if means is not None and squares is not None:
            old_mu, old_nu = means - shift, squares - 2 * shift * means + shift**2
            old_kept = torch.ones_like(old_mu) if valid == "paper" else (old_nu - old_mu**2 >= 0).to(mu.dtype)
            old_nu = torch.maximum(old_nu, old_mu**2) if valid == "paper" else old_nu
            mu, nu, kept = torch.cat([mu, old_mu]), torch.cat([nu, old_nu]), torch.cat([kept, old_kept])
        mean = (kept * mu).sum(0) / kept.sum(0)
        var = (kept * nu).sum(0) / kept.sum(0) - mean**2
        std = torch.sqrt(var) + eps if eps_outside else torch.sqrt(var + eps)
        y.append((apart - mean[:, None, None]) / std[:, None, None])
    return weight[:, None, None] * torch.cat(y) + bias[:, None, None]


class Geometry(NamedTuple):
    """How a convolution goes over its input. pad, mode: padding it does apart, before ``padding`` zeros."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    pad: tuple[int, ...] | None
    mode: str

    @classmethod
    def of(cls, conv: Any) -> Geometry:
        if isinstance(conv.padding, tuple) and conv.padding_mode == "zeros":
            return cls(conv.stride, conv.padding, conv.dilation, conv.groups, None, "constant")
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        return cls(conv.stride, (0, 0), conv.dilation, conv.groups, tuple(conv._reversed_padding_repeated_twice), mode)

    def padded(self, inputs: Tensor) -> Tensor:
        return inputs if self.pad is None else F.pad(inputs, self.pad, mode=self.mode)

    def weight_gradient(self, inputs: Tensor, shape: tuple[int, ...], grad: Tensor) -> Tensor:
        """Σ grad · patch over all positions, of ``padded`` inputs."""
        return conv2d_weight(inputs, shape, grad, self.stride, self.padding, self.dilation, self.groups)


def derivatives(x: Tensor, shift: Tensor, inputs: Tensor, shape: torch.Size, geometry: Geometry) -> tuple[Tensor, ...]:
    """∂μ/∂w, (C_in, kh, kw), and ∂ν/∂w, (C, C_in/groups·kh·kw), of x = conv(inputs; w of ``shape``).

    ν: the mean of (x − shift)².
    """
    N, _, H, W = x.shape
    apart = x - shift[:, None, None]
    inputs = geometry.padded(inputs.to(apart.dtype))
    square = geometry.weight_gradient(inputs, shape, apart) * (2 / (N * H * W))
    ones, one_each = apart.new_ones(1, geometry.groups, H, W), (geometry.groups, *shape[1:])
    patch = geometry.weight_gradient(inputs.mean(0, keepdim=True), one_each, ones) / (H * W)
    return patch.flatten(0, 1), square.flatten(1)


class CrossIterationBatchNorm(nn.Module):
    """Normalize each channel over the images of some steps: (N, C, H, W) → the same, then ``activation``.

    ``batch`` is as in BatchNorm. ``run_steps``: how many optimizer steps the run has, if known; set it on the unit.
    ``follow`` tells it of the convolution before it, whose input and weight it then takes in every training forward.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    window_count: Tensor

    def __init__(
        self,
        num_features: int,
        window: int | None = None,
        burnin: int | None = None,
        rho: float = 1.0,
        valid: str = "official",
        eps_outside: bool = False,
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
        usual = USUAL_WINDOW if batch is None else min(MOST, -(-IMAGES // batch))
        self.window = usual if window is None else window
        self.burnin, self.rho, self.valid, self.eps_outside = burnin, rho, valid, eps_outside
        self.run_steps: int | None = None
        self.geometry: Geometry | None = None
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        running.add(self, num_features, device=device, dtype=dtype)
        self._add(SMALL, num_features, device=device, dtype=dtype)
        self.register_buffer("window_count", torch.zeros((), dtype=torch.long, device=device))
        self.register_load_state_dict_pre_hook(_load)

    def _add(self, names: tuple[str, ...], *shape: int, **factory: Any) -> None:
        for name in names:
            self.register_buffer(name, torch.zeros(self.window - 1, *shape, **factory))

    def follow(self, conv: nn.Conv2d) -> None:
        """From now on this unit is called with the input and the weight of ``conv``, whose output x is."""
        if self.rho == 0 or self.window == 1 or self.geometry is not None:
            return
        self.geometry = Geometry.of(conv)
        like = {"device": self.running_mean.device, "dtype": self.running_mean.dtype}
        self._add(DOTS, self.num_features, **like)
        self._add(("window_patch",), conv.in_channels, *conv.kernel_size, **like)
        self._add(("window_slope",), len(conv.weight), conv.weight[0].numel(), **like)  # of 5 axes no channels_last

    def forward(self, x: Tensor, inputs: Tensor | None = None, kernel: Tensor | None = None) -> Tensor:
        """``inputs``, ``kernel``: of the convolution before, for a unit that follows one."""
        N, C, H, W = core.check_input(x, self.num_features, "cbn")
        affine = (self.weight, self.bias)
        if not self.training:
            return core.normalize(x, *self._with_eps(*running.evaluation(self, x)), *affine, self.activation)
        if self.geometry is not None and (inputs is None or kernel is None):
            raise InputError(
                "cbn: got x alone, expected the convolution's input and weight too, as unit(x, input, weight)"
            )
        workers = core.workers(N, self.batch, "cbn")
        unbiased = running.unbiased(N // workers * H * W)
        if not self.eps_outside and (self.window == 1 or self._burns_in()):
            track = running.variance(self, workers, unbiased)
            return core.standardize(x, workers, C, self.eps, *affine, self.activation, track=track)
        mean, var = plain.pool(*plain.moments(x), workers, C)
        centre, spread = mean, var
        if self.window > 1:
            centre, spread = pooled(mean, var, *self.history(kernel))
            self._keep(x, mean, var, inputs, kernel)
        running.update(self, mean.detach(), var.detach(), unbiased)
        return core.normalize(x, *self._with_eps(centre, spread), *affine, self.activation)

    def burnin_steps(self) -> int:
        """How many steps are batch norm."""
        if self.burnin is not None:
            return self.burnin
        return BURNIN_STEPS if self.run_steps is None else round(BURNIN_SHARE * self.run_steps)

    def _burns_in(self) -> bool:
        """Whether it is known that this step is batch norm; where to ask is to wait, ``history`` knows."""
        count = self.num_batches_tracked
        return running.known(count) and int(count) < self.burnin_steps()

    @torch.no_grad()
    def history(self, kernel: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """μ̂, ν̂ − μ̂² and whether it counts (1 or 0), of every slot for the weights ``kernel``: (k − 1, C) each."""
        dtype, slots = plain.at_least_float32(self.running_mean.dtype), self.window - 1
        mean, square, shift = (self.get_buffer(name).to(dtype) for name in SMALL)
        if self.geometry is not None and kernel is not None:
            patch, slope = (self.get_buffer(name).to(dtype) for name in SLOPES)
            now = dots(kernel.to(dtype), patch, slope, self.geometry.groups)
            mean, square = (
                value + self.rho * (dot - self.get_buffer(name))
                for value, dot, name in zip((mean, square), now, DOTS, strict=True)
            )
        var = square - (mean - shift).square()
        age = (self.window_count - 1 - torch.arange(slots, device=mean.device)) % slots
        # Slots may be written before the burn-in is over, where that is not known.
        past = torch.minimum(self.window_count, self.num_batches_tracked - self.burnin_steps())
        counts = (age < past)[:, None]
        if self.valid == "official":
            counts = counts & (var >= 0)
        else:
            var, counts = var.clamp(min=0), counts.expand_as(var)
        return held(mean), held(var), held(counts.to(dtype))

    @torch.no_grad()
    def _keep(self, x: Tensor, mean: Tensor, var: Tensor, inputs: Tensor | None, kernel: Tensor | None) -> None:
        """The step's record into the oldest slot."""
        dtype = mean.dtype
        shift = self.running_mean.to(dtype)
        square = var + (mean - shift).square()
        record = dict(zip(SMALL, (mean.mean(0), square.mean(0), shift), strict=True))
        if self.geometry is not None and inputs is not None and kernel is not None:
            kernel = kernel.to(dtype)
            patch, slope = derivatives(x, shift, inputs, kernel.shape, self.geometry)
            now = dots(kernel, patch[None], slope[None], self.geometry.groups)
            record |= dict(zip((*SLOPES, *DOTS), (patch, slope, now[0][0], now[1][0]), strict=True))
        slot = (self.window_count % (self.window - 1))[None]
        for name, value in record.items():
            buffer = self.get_buffer(name)
            buffer.index_copy_(0, slot, value[None].to(buffer.dtype))
        self.window_count.add_(1)

    def _with_eps(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, float]:
        """What ``core.normalize`` takes for μ and σ²."""
        if not self.eps_outside:
            return mean, var, self.eps
        std = torch.sqrt(var.clamp(min=torch.finfo(var.dtype).tiny)) + self.eps  # the root has no slope at 0
        return mean, std.square(), 0.0

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic, once the window is full."""
        return self.window * batch * H * W

    def extra_repr(self) -> str:
        steps = f"window={self.window}, burnin={self.burnin}, rho={self.rho}, valid={self.valid}"
        ways = f"compensated={self.geometry is not None}, eps={self.eps}, eps_outside={self.eps_outside}"
        return f"{self.num_features}, {steps}, {ways}, momentum={self.momentum}, batch={self.batch}"


def pooled(mean: Tensor, var: Tensor, means: Tensor, variances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """μ̄ and σ̄² of each worker, (workers, C), from its own moments and those of the slots, (k − 1, C).

    The mean of the variances and the variance of the means: ν̄ − μ̄² without its cancellation.
    """
    n = 1 + counts.sum(0)
    centre = (mean + (counts * means).sum(0)) / n
    of_slots = counts * (variances + (means - centre[:, None]).square())
    return centre, (var + (mean - centre).square() + of_slots.sum(1)) / n


def dots(kernel: Tensor, patch: Tensor, slope: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """⟨∂μ/∂w, kernel⟩, ⟨∂ν/∂w, kernel⟩, (slots, C) each, of the slots' derivatives."""
    with torch.autocast(kernel.device.type, enabled=False):
        by_group = kernel.reshape(groups, len(kernel) // groups, -1)
        of_mean = torch.einsum("jgk,gck->jgc", patch.reshape(len(patch), groups, -1), by_group)
        of_square = torch.einsum("jck,ck->jc", slope, kernel.flatten(1))
    return of_mean.flatten(1), of_square


def wire(wiring: Wiring) -> None:
    """Call every unit right behind a plain Conv2d with that one's input and weight."""
    for graph in wiring.graphs:
        for node in list(graph.nodes):
            name = wiring.convolutions.get(str(node.target)) if node.op == "call_module" else None
            unit = wiring.module(node) if name is not None else None
            conv = wiring.tree.get_submodule(name) if name is not None else None
            if isinstance(unit, CrossIterationBatchNorm) and type(conv) is nn.Conv2d:
                before = node.all_input_nodes[0]
                unit.follow(conv)
                with graph.inserting_before(node):
                    node.args = (before, before.all_input_nodes[0], graph.get_attr(f"{name}.weight"))


def _load(unit: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: Any) -> None:
    """Before a load: one without a window, whatever its version, is a BatchNorm2d's."""
    if not any(key.startswith(f"{prefix}window_") for key in state_dict):
        metadata = {**metadata, "version": nn.BatchNorm2d._version}
    running.leave_out(unit, state_dict, prefix, (), metadata, lists[-1])


register(
    Normalizer(
        name="cbn",
        unit=CrossIterationBatchNorm,
        method="Cross-Iteration Batch Normalization",
        paper="Yao, Cao, Zheng, Huang & Lin, CVPR 2021, arXiv:2002.05712",
        mixes_samples=True,
        train_eval_differ=True,
        drop_in=False,
        wire=wire,
        keeps_statistics=True,
    )
)
