"""WGAN's weight clipping (Arjovsky et al., 2017, "Wasserstein GAN")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gancore import hookimpl, plugin

__all__ = ["WeightClipping", "clip_weights"]


def clip_weights(module: nn.Module, limit: float = 0.01) -> None:
    """Clamp every parameter of the module to [−limit, limit], in place.

    Arjovsky et al., 2017, Algorithm 1, line 7: call it after each critic optimizer step.
    Raises ValueError for a limit that is not positive, and for a module with weights that are
    made of other parameters (by a parametrization, or by torch's old weight_norm, spectral_norm
    and pruning), where the clamp would act on something else than the weight.
    """
    if not limit > 0:
        raise ValueError(f"limit is {limit}, expected a positive number")
    _refuse_made_weights(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.clamp_(-limit, limit)


ENDS = ("_orig", "_raw", "_bar", "_g", "_v", "_u")
"""What is added to a weight's name for what it is made of."""


def _refuse_made_weights(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part):
            raise ValueError(
                f"{name or type(part).__name__!r} has parametrized weights, which clipping does "
                "not reach: drop the parametrization or the clipping"
            )
        for made, origin in _made(part):
            raise ValueError(
                f"{name or type(part).__name__!r} makes its {made} of {origin} before each call, "
                "and clipping reaches that alone: remove what does so (torch's weight_norm, "
                "spectral_norm or pruning), or drop the clipping"
            )


def _made(part: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of tensors that are no parameters, and of the parameters that they are made of."""
    for made, value in vars(part).items():
        if isinstance(value, Tensor):
            for origin in part._parameters:
                if origin.removeprefix(made) in ENDS:
                    yield made, origin


@plugin
class WeightClipping:
    """Clamp the critic's parameters to [−c, c] after each update (Arjovsky et al., 2017).

    limit: c.
    """

    limit: Annotated[float, Gt(0)] = 0.01

    conflicts: ClassVar[tuple[str, ...]] = ("sn",)

    @hookimpl
    def prepare_critic(self, critic: nn.Module) -> None:
        """Refuse a critic whose weights are made of other parameters."""
        _refuse_made_weights(critic)

    @hookimpl
    def post_step(self, critic: nn.Module) -> None:
        """Clamp the critic's parameters."""
        clip_weights(critic, self.limit)
