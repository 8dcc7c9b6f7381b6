"""Fully connected generator and critic for samples of any shape."""

import math
from itertools import pairwise
from typing import Annotated

from annotated_types import Gt, Le
from torch import Tensor, nn

from gancore.networks.parts import Latent

Width = Annotated[int, Gt(0), Le(4096)]
Depth = Annotated[int, Gt(0), Le(64)]


class MLPGenerator(nn.Module):
    """Map latents (B, latent) to samples (B, *shape) through fully connected ReLU layers.

    The generator of the 512-wide ReLU networks in Gulrajani et al. 2017 (Improved Training of
    Wasserstein GANs), smaller. Images end in tanh and lie in (-1, 1); points, whose shape is
    (d,), end in the linear layer and are unbounded. PyTorch's default initialization.

    Options:
        latent: numbers in one latent vector.
        width: units in every hidden layer.
        depth: number of hidden layers.

    Parameters for shape (1, 8, 8) at the defaults: 49,600.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent: Latent = 64,
        width: Width = 128,
        depth: Depth = 3,
    ) -> None:
        super().__init__()
        self.latent = latent
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([latent, *[width] * depth]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        layers.append(nn.Linear(width, math.prod(shape)))
        if len(shape) > 1:
            layers.append(nn.Tanh())
        self.layers = nn.Sequential(*layers, nn.Unflatten(1, shape))

    def forward(self, z: Tensor) -> Tensor:
        """Return samples (B, *shape) for latents (B, latent)."""
        samples: Tensor = self.layers(z)
        return samples


class MLPCritic(nn.Module):
    """Map samples (B, *shape) to scores (B,) through fully connected LeakyReLU(0.2) layers.

    The critic of the 512-wide ReLU networks in Gulrajani et al. 2017 (Improved Training of
    Wasserstein GANs), smaller, and leaky so that no unit dies. It has no norm and no final
    sigmoid. PyTorch's default initialization.

    Options:
        width: units in every hidden layer.
        depth: number of hidden layers.

    Parameters for shape (1, 8, 8) at the defaults: 41,473.
    """

    def __init__(self, shape: tuple[int, ...], *, width: Width = 128, depth: Depth = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise([math.prod(shape), *[width] * depth]):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1), nn.Flatten(0))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B,) for samples (B, *shape)."""
        scores: Tensor = self.layers(x)
        return scores
