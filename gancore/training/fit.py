"""Whether networks fit a run: their mode, and what the generator makes beside the data."""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from gancore.data import Dataset
from gancore.errors import InputError


class ModeWarning(UserWarning):
    """A network came in eval mode, and trains in training mode."""


def into_training(network: nn.Module, side: str) -> None:
    """Put a network that is in eval mode as a whole into training mode, and say so.

    Parts in eval mode below a root that trains are frozen on purpose, and stay.
    """
    if network.training:
        return
    network.train()
    warnings.warn(
        f"the {side} came in eval mode, where running statistics stand still and dropout is off, "
        f"and was put into training mode; for parts that are to stay frozen, call {side}.train() "
        "and then eval() on each of them first",
        ModeWarning,
        stacklevel=4,  # Trainer, and what it is wrapped in
    )


def refuse_other_samples(fake: object, noise: Tensor, data: Dataset, when: str = "") -> None:
    """Raise InputError where what a generator made of noise (B, latent) is no batch like the data.

    That is, a floating-point tensor (B, C, H, W), or (B, d) for points.

    when: in which mode, for the message
    """
    wanted = (len(noise), *data.shape)
    if not isinstance(fake, Tensor):
        found = f"a {type(fake).__name__}"
    elif not fake.is_floating_point():
        found = f"a {fake.dtype} tensor"
    elif fake.shape != wanted:
        found = f"shape {tuple(fake.shape)}"
    else:
        return
    raise InputError(
        f"the generator makes {found} of noise {tuple(noise.shape)}{when}, and samples like those "
        f"of {data.name!r} are a floating-point tensor {wanted}: give both one size, and let the "
        "generator return samples alone"
    )
