"""The residual generator and critic of WGAN-GP and SNGAN, for images of 32, 48 and 64 pixels."""

import math
from itertools import pairwise
from typing import Annotated, Literal, TypeVar

import torch.nn.functional as F
from annotated_types import Gt, Le, MultipleOf
from torch import Tensor, nn

from gancore.networks.parts import Latent, square_image

SIZES = (32, 48, 64)

Width = Annotated[int, Gt(0), Le(1024), MultipleOf(2)]
Pool = Literal["mean", "sum"]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def _widths(width: int, size: int) -> list[int]:
    """Return the channels of a generator's maps from the smallest to the largest."""
    match size:
        case 32:
            return [width] * 4
        case 48:
            return [4 * width, 2 * width, width, width // 2]
    return [8 * width, 4 * width, 2 * width, width, width // 2]


def _glorot(layer: Layer, gain: float = 1.0) -> Layer:
    """Draw the weights from Glorot's uniform distribution times ``gain``, and set biases to 0."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return _glorot(nn.Conv2d(inputs, outputs, 3, padding=1), math.sqrt(2))


def _conv1(inputs: int, outputs: int) -> nn.Conv2d:
    return _glorot(nn.Conv2d(inputs, outputs, 1))


class _UpBlock(nn.Module):
    """(B, inputs, S, S) to (B, outputs, 2S, 2S), with a 1x1 convolution in the shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3(inputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3(outputs, outputs)
        self.shortcut = _conv1(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(
            F.interpolate(F.relu(self.norm1(x)), scale_factor=2.0, mode="nearest")
        )
        h = self.conv2(F.relu(self.norm2(h)))
        shortcut: Tensor = self.shortcut(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return shortcut + h


class _FirstBlock(nn.Module):
    """(B, C, S, S) to (B, outputs, S/2, S/2), without an activation on the image."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _conv3(channels, outputs)
        self.conv2 = _conv3(outputs, outputs)
        self.shortcut = _conv1(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = F.avg_pool2d(self.conv2(F.relu(self.conv1(x))), 2)
        shortcut: Tensor = self.shortcut(F.avg_pool2d(x, 2))
        return shortcut + h


class _CriticBlock(nn.Module):
    """(B, inputs, S, S) to (B, outputs, S, S), or half that size if ``down``."""

    def __init__(self, inputs: int, outputs: int, *, down: bool) -> None:
        super().__init__()
        self.conv1 = _conv3(inputs, inputs)
        self.conv2 = _conv3(inputs, outputs)
        learned = down or inputs != outputs
        self.shortcut = _conv1(inputs, outputs) if learned else nn.Identity()
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv2(F.relu(self.conv1(F.relu(x))))
        shortcut: Tensor = self.shortcut(x)
        if self.down:
            return F.avg_pool2d(shortcut, 2) + F.avg_pool2d(h, 2)
        return shortcut + h


class ResNetGenerator(nn.Module):
    """Map latents (B, latent) to images (B, C, S, S) in (-1, 1), S one of 32, 48, 64.

    Gulrajani et al. 2017 (Improved Training of Wasserstein GANs), as in the authors'
    gan_cifar_resnet.py without its class conditioning: a linear layer to 4x4 maps, three
    up-sampling residual blocks, batch norm, ReLU, 3x3 convolution, tanh. A block is batch norm,
    ReLU, nearest up-sampling, 3x3 convolution, batch norm, ReLU, 3x3 convolution; its shortcut is
    nearest up-sampling and a 1x1 convolution. SNGAN's (Miyato et al. 2018, Spectral Normalization
    for Generative Adversarial Networks) for CIFAR-10 is this network with width 256.

    At 48 and 64 the maps narrow as SNGAN's for STL-10 and its authors' resnet_64.py do: 48 starts
    with 6x6 maps and has 4w, then 2w, w and w/2 channels; 64 starts with 4x4 maps and has 8w, then
    4w, 2w, w and w/2. The default w gives the published 512 and 1024 first channels.

    Weights as both papers' authors draw them: Glorot uniform, with gain √2 (their "He") for the
    3x3 convolutions in the blocks, 1 for shortcuts, the linear and the last layer; biases 0.

    Options:
        latent: numbers in one latent vector.
        width: channels w; even, all maps at size 32 have as many.

    Parameters for shape (3, 32, 32) at the defaults: 1,204,483.
    """

    def __init__(self, shape: tuple[int, ...], *, latent: Latent = 128, width: Width = 128) -> None:
        super().__init__()
        channels, size = square_image("ResNetGenerator", shape, SIZES)
        self.latent = latent
        widths = _widths(width, size)
        start = size >> (len(widths) - 1)
        self.input = _glorot(nn.Linear(latent, widths[0] * start * start))
        self.maps = nn.Unflatten(1, (widths[0], start, start))
        self.blocks = nn.Sequential(*(_UpBlock(*pair) for pair in pairwise(widths)))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.output = _glorot(nn.Conv2d(widths[-1], channels, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, C, S, S) for latents (B, latent)."""
        h = self.blocks(self.maps(self.input(z)))
        images: Tensor = self.output(F.relu(self.norm(h))).tanh()
        return images


class ResNetCritic(nn.Module):
    """Map images (B, C, S, S) to scores (B,), S one of 32, 48, 64, without any norm.

    Gulrajani et al. 2017 (Improved Training of Wasserstein GANs), as in the authors'
    gan_cifar_resnet.py without its ACGAN head: a first block (3x3 convolution, ReLU, 3x3
    convolution, average pooling; shortcut: pooling, 1x1 convolution), a down-sampling block and two
    plain ones (ReLU, 3x3 convolution, ReLU, 3x3 convolution, and pooling to down-sample; the
    shortcut is a 1x1 convolution, then pooling, or nothing), ReLU, global pooling, linear.
    SNGAN's (Miyato et al. 2018, Spectral Normalization for Generative Adversarial Networks) has
    the same blocks, pools by sum and normalizes every layer's weight (the sn plugin).

    At 48 and 64 the channels are those of SNGAN's for STL-10 and of its authors' snresnet_64.py:
    w/2, w, 2w, 4w and 8w after five blocks, of which four down-sample at 48 and all at 64. The
    default w gives the published 64 to 1024 channels.

    Weights as both papers' authors draw them: Glorot uniform, with gain √2 (their "He") for the
    3x3 convolutions, 1 for shortcuts and the linear layer; biases 0.

    Options:
        width: channels w; even, all maps at size 32 have as many.
        pool: the last maps' "mean" (WGAN-GP) or "sum" (SNGAN) over (H, W).

    Parameters for shape (3, 32, 32) at the defaults: 1,053,825.
    """

    def __init__(self, shape: tuple[int, ...], *, width: Width = 128, pool: Pool = "mean") -> None:
        super().__init__()
        channels, size = square_image("ResNetCritic", shape, SIZES)
        if pool not in ("mean", "sum"):
            raise ValueError(f"pool {pool!r}: expected mean or sum; choose one of these")
        self.pool = pool
        if size == 32:
            widths, halvings = [width] * 4, 2
        else:
            widths, halvings = [width // 2, *(width << step for step in range(4))], 4 + size // 64
        self.blocks = nn.Sequential(
            _FirstBlock(channels, widths[0]),
            *(
                _CriticBlock(inputs, outputs, down=step < halvings)
                for step, (inputs, outputs) in enumerate(pairwise(widths), start=1)
            ),
        )
        self.output = _glorot(nn.Linear(widths[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B,) for images (B, C, S, S)."""
        h = F.relu(self.blocks(x))
        pooled = h.mean((2, 3)) if self.pool == "mean" else h.sum((2, 3))
        scores: Tensor = self.output(pooled).flatten()
        return scores
