"""torchvision's classifiers by name, without weights, and what some of them need of a picture.

torchvision takes a second to import, so that waits until a name asks for it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from normbench.errors import ConfigError
from normbench.options import ArchOptions


@dataclass(frozen=True)
class Needs:
    """Sides in pixels that matter to a net, and its auxiliary head.

    native: published with. least: below it the net runs out of pixels. enlarge: smaller pictures are brought to it.
    aux_least: smallest side its auxiliary head takes (None: it has none). aux_auto: on from there unless told.
    """

    name: str
    native: int = 224
    least: int = 1
    enlarge: int | None = None
    aux_least: int | None = None
    aux_auto: bool = False

    def size(self, options: ArchOptions, picture_size: int | None) -> int | None:
        """The side that pictures are brought to; None: as they are. Raises ConfigError below ``least``."""
        if options.size is not None and options.size < self.least:
            mend = f"give {self.least} or more, or leave it out for {self.enlarge or 'the pictures as they are'}"
            raise ConfigError(f"arch.size={options.size}: {self.name} has no pixels left at its end; {mend}")
        if options.size is not None or self.enlarge is None:
            return options.size
        if picture_size is None:
            return self.native
        return self.enlarge if picture_size < self.enlarge else None

    def aux(self, options: ArchOptions, side: int) -> bool:
        """Whether the auxiliary head is on at this side. Raises ConfigError where it is asked for and cannot be."""
        if not options.aux:
            return options.aux is None and self.aux_auto and self.aux_least is not None and side >= self.aux_least
        if self.aux_least is None:
            raise ConfigError(f"arch.aux=true: {self.name} has no auxiliary head; leave arch.aux out")
        if side < self.aux_least:
            mend = f"give arch.size={self.aux_least} with it, or leave arch.aux out"
            raise ConfigError(f"arch.aux=true: the auxiliary head of {self.name} is too large for {side} px; {mend}")
        return True


# InceptionV3 was drawn for 299 px: 75 leave one pixel before the mean, 128 are the least at which every norm has
# four values or more, and the auxiliary head's 5×5 convolution takes the 5×5 map of 299 px and nothing less.
NEEDS = {
    need.name: need
    for need in (
        Needs("inception_v3", native=299, least=75, enlarge=128, aux_least=299, aux_auto=True),
        Needs("googlenet", aux_least=1),
    )
}


def needs(name: str) -> Needs:
    """What the net of that name needs of a picture."""
    return NEEDS.get(name) or Needs(name)


def heads(name: str, aux: bool, fresh: bool = True) -> dict[str, bool]:
    """The arguments of a net with an auxiliary head: ``aux``, ``fresh`` weights as published, pictures as they are."""
    return {} if needs(name).aux_least is None else {"aux_logits": aux, "init_weights": fresh, "transform_input": False}


@cache
def names() -> tuple[str, ...]:
    """torchvision's classifiers."""
    models = _models()
    return tuple(models.list_models(module=models))


def build(name: str, zero_init: bool, **arguments: Any) -> nn.Module:
    """The net with fresh weights. Raises ConfigError for zero_init where the net does not offer it."""
    zero = {"zero_init_residual": True} if zero_init else {}
    try:
        return _models().get_model(name, weights=None, **zero, **arguments)
    except TypeError as error:
        if "zero_init_residual" not in str(error):
            raise
        why = f"{name} does not offer it, only torchvision's ResNets do"
        raise ConfigError(f"arch.zero_init=true: {why}; leave it false") from error


def _models() -> Any:
    return importlib.import_module("torchvision.models")
