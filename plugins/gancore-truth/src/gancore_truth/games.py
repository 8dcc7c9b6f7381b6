"""Games: how two networks move near an equilibrium that is known.

The vector field v(θ, ψ) = (−∇L_G, −∇L_D) is that of our own losses, steps and plugins, in float64.
Its Jacobian J at the equilibrium decides about small steps: they converge where all eigenvalues
have negative real parts (Mescheder et al., 2018, "Which Training Methods for GANs do actually
Converge?", section 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from gancore.isolation.randomness import Randomness
from gancore.plugins import Loaded, Plugins, load
from gancore.step import CriticStep, GeneratorStep
from gancore.training.objective import objective

Side = Literal["critic", "generator"]
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

WIDTH = 1e-4
"""Of the differences that make a Jacobian, which are extrapolated from this one and its half."""

AGREE = 1e-3
"""Differences of both widths are so near to each other, relatively, where there is no kink."""

UPDATES = 500
STEP = 0.01
START = 0.5
"""How far from the equilibrium, in each weight, alternating updates begin."""

LAST = 250
"""Of the updates, those of which the largest distance counts: about half a turn, or more."""

MOST_UPDATES = 256
"""Updates over which penalties that are not always due are averaged."""


class DiracGenerator(nn.Module):
    """All samples at θ (Mescheder et al., 2018, definition 2.1)."""

    latent = 1

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        """Return (B, 1)."""
        return self.theta.expand(len(z), 1)


class LinearCritic(nn.Module):
    """D(x) = ψ·φ(x), one weight a feature, in a linear layer as plugins know them.

    features: φ, (B, d) → (B, k)
    """

    def __init__(self, count: int, features: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(count, 1, bias=False, dtype=torch.float64)
        self._features = features

    def forward(self, x: Tensor) -> Tensor:
        """Return (B,)."""
        scores: Tensor = self.linear(self._features(x))
        return scores.reshape(-1)


class ScaledGenerator(nn.Module):
    """Samples θᵢ·zᵢ: the scale of each coordinate is learned."""

    latent = 2

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        """Return (B, 2)."""
        return self.theta * z


@dataclass(frozen=True)
class Game:
    """A game, its samples, and where it rests.

    name      what the card calls it
    real      (B, d) real samples
    latents   (B, latent) what the generator makes its samples of
    networks  makes generator and critic, at the equilibrium
    """

    name: str
    real: Tensor
    latents: Tensor
    networks: Callable[[], tuple[nn.Module, LinearCritic]]


def _dirac() -> tuple[nn.Module, LinearCritic]:
    critic = LinearCritic(1, lambda x: x)
    nn.init.zeros_(critic.linear.weight)
    return DiracGenerator(), critic


def _scales() -> tuple[nn.Module, LinearCritic]:
    critic = LinearCritic(2, lambda x: x.square())
    nn.init.zeros_(critic.linear.weight)
    return ScaledGenerator(), critic


def _normal_points() -> Tensor:
    """Return 36 points in the plane with the moments of N(0, I) up to the fifth.

    Gauss and Hermite's three nodes, 0 and ±√3, four times, once and once.
    """
    nodes = [0.0] * 4 + [math.sqrt(3), -math.sqrt(3)]
    return torch.tensor(list(product(nodes, nodes)), dtype=torch.float64)


DIRAC = Game("dirac", torch.zeros(4, 1).double(), torch.zeros(4, 1).double(), _dirac)
"""Real samples all at 0, generated ones at θ, D(x) = ψ·x. It rests at θ = ψ = 0."""

SCALES = Game("scales", _normal_points(), _normal_points(), _scales)
"""Real samples N(0, I), generated ones (θ₁z₁, θ₂z₂), D(x) = ψ₁x₁² + ψ₂x₂². It rests at θ = (1, 1),
ψ = 0."""

GAMES = (DIRAC, SCALES)


class Played:
    """A game under a loss and plugins: its vector field, and alternating updates.

    start  how far the critic's weights begin from where they rest

    Raises what the plugins raise.
    """

    def __init__(
        self, game: Game, loss: str, plugins: Sequence[Loaded], *, start: float = 0.0
    ) -> None:
        self.game = game
        self.generator, self.critic = game.networks()
        with torch.no_grad():
            self.critic.linear.weight += start
        self._randomness = Randomness(0, torch.device("cpu"))
        self.plugins = Plugins([load(loss), *plugins], self._randomness)
        self.plugins.prepare_critic(self.critic)

    def slopes(self, side: Side, update: int = 0) -> list[Tensor]:
        """Return the gradients of a side's own loss by its own parameters."""
        game, randomness = self.game, self._randomness
        fake = self.generator(game.latents)
        step: CriticStep | GeneratorStep
        if side == "critic":
            step = CriticStep(
                self.critic, game.real, fake.detach(), update=update, randomness=randomness
            )
        else:
            step = GeneratorStep(
                *(self.generator, self.critic, game.real, fake),
                latents=game.latents,
                update=update,
                randomness=randomness,
            )
        total = objective(self.plugins, step, nullcontext()).total
        return list(torch.autograd.grad(total, self._parameters(side)))

    def field(self, point: Array, shares: Mapping[int, float]) -> Array:
        """Return v at a point: the generator's parameters, then the critic's.

        shares: the mean over these updates, each so often
        """
        with torch.no_grad():
            vector_to_parameters(torch.from_numpy(point), self._parameters())
        field = np.zeros(len(point))
        for update, share in shares.items():
            slopes = [*self.slopes("generator", update), *self.slopes("critic", update)]
            field -= share * np.concatenate([slope.numpy().ravel() for slope in slopes])
        return field

    def shares(self) -> dict[int, float]:
        """Return an update for each way in which penalties are due, and how often it is that."""
        updates: dict[tuple[tuple[str, float], ...], list[int]] = {}
        for update in range(MOST_UPDATES):
            scales = [
                (f"{hook}/{name}", scale)
                for hook in ("penalty", "generator_penalty")
                for name, scale in self.plugins.due(hook, update).items()
            ]
            updates.setdefault(tuple(scales), []).append(update)
        return {alike[0]: len(alike) / MOST_UPDATES for alike in updates.values()}

    def at(self) -> Array:
        """Return the generator's parameters, then the critic's weights as it uses them."""
        values = [*self.generator.parameters(), self.critic.linear.weight]
        return np.concatenate([value.detach().numpy().ravel() for value in values])

    def update(self, side: Side, update: int, size: float) -> None:
        """Make one gradient step of a side, and what plugins do after the critic's."""
        slopes = self.slopes(side, update)
        with torch.no_grad():
            for parameter, slope in zip(self._parameters(side), slopes, strict=True):
                parameter.sub_(size * slope)
            if side == "critic":
                self.plugins.call("post_step", critic=self.critic, update=update)

    def _parameters(self, side: Side | None = None) -> list[nn.Parameter]:
        networks = {"generator": self.generator, "critic": self.critic}
        chosen = networks.values() if side is None else [networks[side]]
        return [parameter for network in chosen for parameter in network.parameters()]


def acts_on_weights(plugins: Iterable[Loaded]) -> bool:
    """Whether a plugin acts on weights, so that no gradient tells of it."""
    hooks = ("post_step", "prepare_critic")
    return any(hasattr(plugin.instance, hook) for plugin in plugins for hook in hooks)


def eigenvalues(game: Game, loss: str, plugins: Sequence[Loaded]) -> list[complex]:
    """Return the eigenvalues of J at the equilibrium, by real and imaginary part.

    Empty where there is no Jacobian: a plugin acts on weights, or has a kink there.
    """
    if acts_on_weights(plugins):
        return []
    played = Played(game, loss, plugins)
    rest, shares = played.at(), played.shares()

    def differences(width: float) -> Array:
        return np.stack(
            [
                (played.field(rest + axis, shares) - played.field(rest - axis, shares)) / 2 / width
                for axis in width * np.eye(len(rest))
            ],
            axis=1,
        )

    wide, narrow = differences(WIDTH), differences(WIDTH / 2)
    if np.abs(wide - narrow).max() > AGREE * max(1.0, np.abs(narrow).max()):
        return []
    values = np.linalg.eigvals((4 * narrow - wide) / 3)  # errors of width² cancel
    return sorted(map(complex, values), key=lambda value: (value.real, value.imag))


def radius(game: Game, loss: str, plugins: Sequence[Loaded]) -> float:
    """Return how far from the equilibrium 500 alternating updates lead, 1 where they began.

    Each is a step of size 0.01 of the critic, then one of the generator. It is the largest
    distance of the last 250, and inf where they diverge. Below 1 it shrinks.
    """
    rest = Played(game, loss, []).at()
    played = Played(game, loss, plugins, start=START)
    with torch.no_grad():
        for parameter in played.generator.parameters():
            parameter.add_(START)
    begun = np.linalg.norm(played.at() - rest)
    distances = []
    for update in range(UPDATES):
        played.update("critic", update, STEP)
        played.update("generator", update, STEP)
        distances.append(np.linalg.norm(played.at() - rest))
        if not distances[-1] < 1e6 * begun:
            return math.inf
    return float(max(distances[-LAST:]) / begun)
