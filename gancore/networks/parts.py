"""What the built-in networks share: option types, the critics' norms, the image shape check."""

import math
from typing import Annotated, Literal

from annotated_types import Gt, Le
from torch import nn

Latent = Annotated[int, Gt(0), Le(4096)]
Channels = Annotated[int, Gt(0), Le(1024)]
Norm = Literal["layer", "instance", "group", "none"]


def norm_layer(norm: Norm, channels: int, size: int) -> nn.Module:
    """Return a norm for (B, channels, size, size) maps that keeps the samples of a batch apart.

    A gradient penalty is taken per sample, so there is no batch norm here (Gulrajani et al. 2017,
    section 4). "layer" normalizes over (C, H, W). "instance" normalizes each channel over (H, W)
    and has a gain and a shift; it would erase 1x1 maps. "group" uses the greatest number of
    groups, at most 8, that divides both 8 and the channels. "none" does nothing.
    """
    match norm:
        case "layer":
            return nn.LayerNorm([channels, size, size])
        case "instance":
            return nn.InstanceNorm2d(channels, affine=True)
        case "group":
            return nn.GroupNorm(math.gcd(8, channels), channels)
        case "none":
            return nn.Identity()
    raise ValueError(f"norm {norm!r}: expected layer, instance, group or none; choose one of these")


def square_image(network: str, shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, int]:
    """Return the channels and the size of a square image shape, or say why ``network`` cannot."""
    if len(shape) == 3 and shape[0] > 0 and shape[1] == shape[2] and shape[1] in sizes:
        return shape[0], shape[1]
    known = " or ".join(str(size) for size in sizes)
    raise ValueError(
        f"{network}: sample shape {tuple(shape)}: expected (channels, size, size) with size "
        f"{known}; resize the data to such a size, or use the mlp network, which takes any shape"
    )
