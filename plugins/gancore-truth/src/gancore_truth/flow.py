"""Gradient flow: whether gradients vanish or explode on their way through a deep critic.

Gulrajani et al., 2017, "Improved Training of Wasserstein GANs", figure 1b: a critic with twelve
hidden layers on the Swiss roll, whose generated samples are real ones and unit Gaussian noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gancore.data.toys import swissroll
from gancore.networks.mlp import MLPCritic
from gancore.plugins import Loaded
from gancore.training import Trainer

LAYERS = 12
WIDTH = 64
UPDATES = 200
BATCH = 64
JUDGED = 1024
BORDER = 0.99
"""A weight of this part of the largest size is at the border."""


@dataclass(frozen=True)
class Flow:
    """What gradients and weights of a trained critic look like.

    norms   of the loss's gradient by what each hidden layer makes, from the input on
    slope   of log10(norms) by the layer: above 0 gradients vanish towards the input, below 0 they
            explode
    border  the share of weights at 99 % of the largest size in their layer, or more
    """

    norms: tuple[float, ...]
    slope: float
    border: float


class Noisy(nn.Module):
    """A generator that is never trained: its samples are real ones and N(0, I) noise."""

    latent = 2

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self._points = points
        self.unused = nn.Parameter(torch.zeros(()))  # a trainer takes no generator without any

    def forward(self, z: Tensor) -> Tensor:
        """Return (B, 2), real samples by turns with z added."""
        return self._points[torch.arange(len(z)) % len(self._points)] + z


def flow(plugins: Sequence[Loaded], *, seed: int, updates: int = UPDATES) -> Flow:
    """Train a critic by the Wasserstein loss and these plugins; return what it has come to.

    Raises what the plugins raise, and NonFiniteError.
    """
    torch.manual_seed(seed)
    data = swissroll(samples=10_000, seed=seed)
    critic = MLPCritic((2,), width=WIDTH, depth=LAYERS)
    trainer = Trainer(
        Noisy(data.samples),
        critic,
        data,
        loss="wasserstein",
        plugins=plugins,
        train={"steps": updates, "batch_size": BATCH, "seed": seed},
        optimizer={"lr": 1e-3, "betas": [0.5, 0.9]},
        device="cpu",
    )
    random = torch.Generator().manual_seed(seed)
    for update in range(updates):
        trainer.update_critic(update, *_batches(data.samples, BATCH, random))
    real, fake = _batches(data.samples, JUDGED, random)
    judged = trainer.critic.double()  # in float32 gradients of a clipped critic end in zeros
    layers = [layer for layer in judged.modules() if isinstance(layer, nn.Linear)][:-1]
    outputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, out: outputs.append(out))
        for layer in layers
    ]
    scores = judged(torch.cat([real, fake]).double())
    for hook in hooks:
        hook.remove()
    loss = scores[JUDGED:].mean() - scores[:JUDGED].mean()
    norms = [gradient.norm().item() for gradient in torch.autograd.grad(loss, outputs)]
    logarithms = np.log10(np.maximum(norms, 1e-300))
    slope = float(np.polyfit(np.arange(len(norms)), logarithms, 1)[0])
    at_border = [
        (layer.weight.abs() >= BORDER * layer.weight.abs().max()).double().mean().item()
        for layer in layers
    ]
    return Flow(tuple(norms), slope, float(np.mean(at_border)))


def _batches(points: Tensor, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return real samples, and other real samples with N(0, I) noise."""
    chosen = torch.randint(len(points), (2, count), generator=random)
    noise = torch.randn(count, 2, generator=random)
    return points[chosen[0]], points[chosen[1]] + noise
