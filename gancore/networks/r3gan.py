"""A residual generator and critic without normalization, after R3GAN, for 8 to 64 pixels."""

import math
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt, Le, MultipleOf
from torch import Tensor, nn

from gancore.networks.parts import Latent, square_image

SIZES = (8, 16, 32, 64)
GROUP = 16
"""Channels in a group of the 3x3 convolutions."""
SLOPE = 0.2
"""LeakyReLU's below zero."""

MULTIPLE = GROUP // 2
"""Of which a width is a multiple, so that twice the width is whole groups."""

Width = Annotated[int, Gt(0), Le(1024), MultipleOf(MULTIPLE)]
Wide = Annotated[int, Gt(0), Le(5)]
Blocks = Annotated[int, Gt(0), Le(16)]


def stage_widths(network: str, width: int, wide: int, size: int) -> list[int]:
    """Return the channels of the stages, from 4x4 to size x size."""
    if width < MULTIPLE or width % MULTIPLE:
        raise ValueError(
            f"{network}: width {width}: expected a multiple of {MULTIPLE}, so that the 3x3 "
            f"convolutions have whole groups; use {max(1, round(width / MULTIPLE)) * MULTIPLE}"
        )
    stages = (size // 4).bit_length()
    halved = (width >> max(0, stage - wide) for stage in range(1, stages + 1))
    return [max(MULTIPLE, channels - channels % MULTIPLE) for channels in halved]


def _draw(weight: Tensor, gain: float = 1.0) -> None:
    """Draw from N(0, gain² / fan-in)."""
    nn.init.normal_(weight, 0.0, gain / math.sqrt(weight[0].numel()))


def _pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 1, bias=False)
    _draw(layer.weight)
    return layer


class ResidualBlock(nn.Module):
    """x + f(x), f: 1x1 to twice the width, LeakyReLU, grouped 3x3, LeakyReLU, 1x1 back.

    Fixup's initialization (Zhang et al. 2019, Fixup Initialization: Residual Learning Without
    Normalization): with ``total`` blocks in the network, the first two of m = 3 convolutions are
    drawn with LeakyReLU's gain times total^(-1/(2m - 2)), and the last is 0, so that f starts at 0.
    """

    def __init__(self, width: int, total: int) -> None:
        super().__init__()
        hidden = 2 * width
        self.expand = nn.Conv2d(width, hidden, 1)
        self.spatial = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden // GROUP)
        self.reduce = nn.Conv2d(hidden, width, 1, bias=False)
        gain = math.sqrt(2 / (1 + SLOPE**2)) * total ** (-1 / 4)
        for layer in (self.expand, self.spatial):
            _draw(layer.weight, gain)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.reduce.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + f(x), in the shape of x."""
        h = F.leaky_relu(self.expand(x), SLOPE)
        branch: Tensor = self.reduce(F.leaky_relu(self.spatial(h), SLOPE))
        return x + branch


class _Resampler(nn.Module):
    """Bilinear resampling by 2: the separable filter [1, 3, 3, 1], zeros beyond the border."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", line.outer(line)[None, None], persistent=False)

    def filters(self, x: Tensor) -> Tensor:
        """Return the kernel once for every channel of x: (C, 1, 4, 4)."""
        return self.kernel.expand(x.shape[1], 1, 4, 4)


class Upsample(_Resampler):
    """(B, C, S, S) to (B, C, 2S, 2S), bilinear, with zeros beyond the border."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the larger maps."""
        return F.conv_transpose2d(x, 4 * self.filters(x), stride=2, padding=1, groups=x.shape[1])


class Downsample(_Resampler):
    """(B, C, S, S) to (B, C, S/2, S/2), bilinear, with zeros beyond the border."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller maps."""
        return F.conv2d(x, self.filters(x), stride=2, padding=1, groups=x.shape[1])


class R3GANGenerator(nn.Module):
    """Map latents (B, latent) to images (B, C, S, S) in (-1, 1), S one of 8, 16, 32, 64.

    After config E of Huang et al. 2024 (The GAN is dead; long live the GAN! A Modern GAN
    Baseline), with no normalization anywhere. A 4x4 basis, learned per channel, is scaled by a
    linear function of z. Then come stages of 4x4 to SxS maps, each of ``blocks`` residual blocks
    x + f(x), where f is a 1x1 convolution to twice the width, a 3x3 convolution in groups of 16
    channels and a 1x1 convolution back, with bias and LeakyReLU(0.2) after the first two. A stage
    starts with bilinear up-sampling (filter [1, 3, 3, 1], zeros beyond the border), before which a
    1x1 convolution changes the width where it must. A 1x1 convolution gives the image.

    The first ``wide`` stages have ``width`` channels, each later one half as many as the one before
    it (a multiple of 8, at least 8). The authors' presets for CIFAR-10 and FFHQ have wide = 4 and
    width 768: 20,732,160 parameters on CIFAR-10. The defaults are for a CPU: 128, 128, 64, 32 and
    16 channels. The tanh at the end is ours: the authors leave images unbounded.

    The basis is drawn from N(0, 1), weights from N(0, 1 / fan-in), but in blocks after Fixup: for
    L blocks in the network, the first two convolutions with standard deviation
    √(2 / 1.04) L^(-1/4) / √fan-in, the last at 0; biases 0.

    Options:
        latent: numbers in one latent vector.
        width: channels of the first stages, a multiple of 8.
        wide: stages, from the 4x4 one on, that have the full width.
        blocks: residual blocks in every stage.

    Parameters for shape (3, 32, 32) at the defaults: 529,248.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent: Latent = 64,
        width: Width = 128,
        wide: Wide = 2,
        blocks: Blocks = 2,
    ) -> None:
        super().__init__()
        channels, size = square_image("R3GANGenerator", shape, SIZES)
        widths = stage_widths("R3GANGenerator", width, wide, size)
        total = blocks * len(widths)
        self.latent = latent
        self.input = nn.Linear(latent, widths[0], bias=False)
        _draw(self.input.weight)
        self.basis = nn.Parameter(torch.randn(widths[0], 4, 4))
        layers: list[nn.Module] = [ResidualBlock(widths[0], total) for _ in range(blocks)]
        for inputs, outputs in pairwise(widths):
            if inputs != outputs:
                layers.append(_pointwise(inputs, outputs))
            layers.append(Upsample())
            layers += [ResidualBlock(outputs, total) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, _pointwise(widths[-1], channels), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, C, S, S) for latents (B, latent)."""
        images: Tensor = self.layers(self.basis * self.input(z)[:, :, None, None])
        return images


class R3GANCritic(nn.Module):
    """Map images (B, C, S, S) to scores (B,), S one of 8, 16, 32, 64.

    The mirror of R3GANGenerator, after config E of Huang et al. 2024 (The GAN is dead; long live
    the GAN! A Modern GAN Baseline): a 1x1 convolution of the image, stages of SxS to 4x4 maps,
    each of ``blocks`` residual blocks, bilinear down-sampling between them (the same filter), after
    which a 1x1 convolution changes the width where it must; then a 4x4 depthwise convolution and a
    linear layer without bias. Blocks, widths and initialization are the generator's.

    It starts as a linear function of the image, since every block starts as the identity: not a
    constant, but the first two convolutions of the blocks get no gradient before the first update.

    Options:
        width: channels of the last stages, a multiple of 8.
        wide: stages, from the 4x4 one back, that have the full width.
        blocks: residual blocks in every stage.

    Parameters for shape (3, 32, 32) at the defaults: 521,184.
    """

    def __init__(
        self, shape: tuple[int, ...], *, width: Width = 128, wide: Wide = 2, blocks: Blocks = 2
    ) -> None:
        super().__init__()
        channels, size = square_image("R3GANCritic", shape, SIZES)
        widths = stage_widths("R3GANCritic", width, wide, size)[::-1]
        total = blocks * len(widths)
        layers: list[nn.Module] = [_pointwise(channels, widths[0])]
        layers += [ResidualBlock(widths[0], total) for _ in range(blocks)]
        for inputs, outputs in pairwise(widths):
            layers.append(Downsample())
            if inputs != outputs:
                layers.append(_pointwise(inputs, outputs))
            layers += [ResidualBlock(outputs, total) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers)
        self.basis = nn.Conv2d(widths[-1], widths[-1], 4, groups=widths[-1], bias=False)
        self.output = nn.Linear(widths[-1], 1, bias=False)
        _draw(self.basis.weight)
        _draw(self.output.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B,) for images (B, C, S, S)."""
        scores: Tensor = self.output(self.basis(self.layers(x)).flatten(1)).flatten()
        return scores
