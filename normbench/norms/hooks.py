"""What a method does in the training loop, beside its units' forward and backward.

In a training loop: ``hooks = step_hooks(model)`` once; in every step ``hooks.gradients()`` after the backward pass and
before clipping, and ``hooks.updated(lambda: model(x))`` after the optimizer's step. Where the pictures are of several
domains, ``hooks.pictures(domains)`` before each forward.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from normbench.norms.registry import unit_row


class StepHooks:
    """Nothing: what most methods do. One that does more derives from this, and names it in its registry row.

    Made once for a model, from the model; what it remembers from step to step stands in buffers of the model's, so that
    a checkpoint has it and ranks agree on it.
    """

    #: Whether ``updated`` calls what it is given.
    forwards_again = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def pictures(self, domains: Tensor) -> None:
        """Before a training forward: of which domains its pictures are, int64 (N,) from 0. Not called without any."""

    def gradients(self) -> None:
        """Change the gradients of a step in place: summed over its chunks and ranks, not yet clipped.

        Buffers are already the mean over workers and ranks: a loop of one's own over several processes averages them
        itself, before this.
        """

    def updated(self, again: Callable[[], object]) -> None:
        """After the optimizer's step. ``again()``: the same pictures through the network once more, in training mode,
        without gradients and with the same draws; the random state stays what it was.
        """


def step_hooks(model: nn.Module) -> StepHooks:
    """The hooks of the method whose units ``model`` holds; those that do nothing where it holds none."""
    row = unit_row(model)
    return ((row and row.hooks) or StepHooks)(model)
