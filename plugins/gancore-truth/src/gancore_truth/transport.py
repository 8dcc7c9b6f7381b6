"""Transport: how near a trained critic comes to the best one, where that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gancore.data import Dataset
from gancore.networks.mlp import MLPCritic
from gancore.plugins import Loaded
from gancore.training import Trainer
from gancore_truth.pairs import Pair


@dataclass(frozen=True)
class Training:
    """How the critic of a measure is trained: by Adam, on fresh samples at every update."""

    updates: int = 800
    batch: int = 128
    width: int = 128
    depth: int = 3
    lr: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.9)
    samples: int = 4096
    """How many of P, and of Q, the trained critic is judged on."""


class Pushed(nn.Module):
    """The generator of a pair: latents are P's samples, and T makes Q's of them."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.latent = pair.dimension
        self._pair = pair
        self.unused = nn.Parameter(torch.zeros(()))  # a trainer takes no generator without any

    def forward(self, z: Tensor) -> Tensor:
        """Return T(z)."""
        return self._pair.move(z)


def train(
    pair: Pair, plugins: Sequence[Loaded], *, seed: int, training: Training = Training()
) -> nn.Module:
    """Return a critic trained on a pair by the Wasserstein loss and these plugins.

    Raises what the plugins raise, and NonFiniteError.
    """
    torch.manual_seed(seed)
    critic = MLPCritic((pair.dimension,), width=training.width, depth=training.depth)
    random = torch.Generator().manual_seed(seed)
    data = torch.randn(training.batch, pair.dimension, generator=random)
    trainer = Trainer(
        Pushed(pair),
        critic,
        Dataset(pair.name, data),
        loss="wasserstein",
        plugins=plugins,
        train={"steps": training.updates, "batch_size": training.batch, "seed": seed},
        optimizer={"lr": training.lr, "betas": list(training.betas)},
        device="cpu",
    )
    for update in range(training.updates):
        real, latents = torch.randn(2, training.batch, pair.dimension, generator=random)
        trainer.update_critic(update, real, pair.move(latents))
    return trainer.critic.eval()


def judge(critic: nn.Module, pair: Pair, *, seed: int, samples: int = 4096) -> Mapping[str, float]:
    """Return what a critic of a pair is worth.

    w1                the mean length of the moves of these samples
    estimate_over_w1  (E[D(x)] − E[D(T(x))]) ÷ w1: 1 for the best critic
    cosine            between ∇D and ∇f at generated samples, the mean
    norm_median       of ‖∇D‖ at real and generated samples
    norm_spread       its 90th percentile less its 10th
    scaled_estimate   estimate_over_w1 ÷ the largest ‖∇D‖, of which 1 is the most in the limit
    """
    random = torch.Generator().manual_seed(2**31 + seed)
    real = torch.randn(samples, pair.dimension, generator=random)
    fake = pair.move(real)
    w1 = torch.linalg.vector_norm((real - fake).double(), dim=1).mean()
    points = torch.cat([real, fake]).requires_grad_()
    scores = critic(points).reshape(-1)
    (slopes,) = torch.autograd.grad(scores.sum(), points)
    norms = torch.linalg.vector_norm(slopes.double(), dim=1)
    estimate = (scores[:samples] - scores[samples:]).detach().double().mean() / w1
    cosines = nn.functional.cosine_similarity(
        slopes[samples:].double(), pair.gradient(fake.double()), dim=1
    )
    low, median, high = torch.quantile(norms, torch.tensor([0.1, 0.5, 0.9], dtype=norms.dtype))
    return {
        "w1": w1.item(),
        "estimate_over_w1": estimate.item(),
        "cosine": cosines.mean().item(),
        "norm_median": median.item(),
        "norm_spread": (high - low).item(),
        "scaled_estimate": (estimate / norms.max().clamp_min(1e-300)).item(),
    }
