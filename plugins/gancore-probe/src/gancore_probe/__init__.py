"""What a critic's regularizer does, in numbers: norms of input gradients and of layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from gancore import CriticStep, critic_scores, hookimpl, plugin
from gancore.step import Critic

__all__ = ["Probe", "gradient_norms", "spectral_norm"]

LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
TRANSPOSED = LAYERS[4:]
"""Layers whose second dimension is the output's."""

SQUARINGS = 12
LONGEST = 64
"""Letters that the name of a note has at most."""


def gradient_norms(critic: Critic, x: Tensor) -> Tensor:
    """Return ‖∇ₓ Σ D(x)‖₂ of each sample as (B,), without a graph.

    critic  any callable (B, *) → (B,), (B, 1) or (B, 1, 1, 1)
    x       (B, *), left as it was

    The norm is taken over all non-batch dimensions. For a critic whose scores depend on other
    samples (batch normalization) it is that of the gradient of the sum of all scores. Raises
    gancore.errors.ContractError for a critic that answers anything but one number a sample, and
    RuntimeError for one whose scores have no path to x.
    """
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(critic_scores(critic, x).sum(), x)
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return norms


@torch.no_grad()
def spectral_norm(matrix: Tensor) -> Tensor:
    """Return the largest singular value of a matrix (m, n), a scalar, without waiting for a device.

    G = W·Wᵀ is squared 12 times, to P = G⁴⁰⁹⁶. Then tr(G·P) / tr(P), the mean of the eigenvalues
    λ of G with weights λ⁴⁰⁹⁶, is the largest: at most a thousandth too small in float32 where
    others are as good as equal to it, and else right to rounding.
    """
    rows, columns = matrix.shape
    gram = (matrix @ matrix.T if rows <= columns else matrix.T @ matrix).float()
    tiny = torch.finfo(torch.float32).tiny
    scale = gram.diagonal().sum().clamp_min(tiny)
    gram = gram / scale
    power = gram
    for _ in range(SQUARINGS):
        power = power @ power
        power = power / power.diagonal().sum().clamp_min(tiny)
    return ((gram * power).sum() * scale).sqrt()


class _Whole(nn.Module):
    """A network, whose forward pass is whatever is done with it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, look: Callable[[nn.Module], Tensor]) -> Tensor:
        return look(self.network)


@plugin
class Probe:
    """Note norms of the critic's input gradients and layers; add nothing to its loss.

    every: critic updates from one look to the next.
    layers: spectral norms of the critic's layers too.
    """

    every: Annotated[int, Ge(1)] = 100
    layers: bool = True

    only_notes: ClassVar[bool] = True  # its penalty is no regularizer
    inapplicable: ClassVar[dict[str, str]] = dict.fromkeys(
        (
            *("scalar", "gradient", "finite-differences", "unchanged", "seed", "shapes", "split"),
            *("constant-critic", "precision", "device", "lazy", "losses"),
        ),
        "it answers no penalty: the package's own tests look at what it notes",
    )

    _name: str = field(init=False, repr=False, default="")
    """Its own in the recipe."""
    _wholes: tuple[_Whole, ...] = field(init=False, repr=False, default=())
    """The run's critic, made ready before an update is compiled. A plain tuple is not saved."""

    @hookimpl
    def configure(self, plugins: Mapping[str, object]) -> None:
        """Learn its own name."""
        self._name = next(name for name, other in plugins.items() if other is self)

    @hookimpl
    def setup(self, critic: nn.Module) -> None:
        """Make the critic ready to be looked at."""
        self._wholes = (_Whole(critic),)

    @hookimpl
    def penalty_scale(self, plugin: str, update: int) -> float | None:
        """Answer 0 for its own penalty between two looks, so that it is not called then."""
        return 0.0 if plugin == self._name and update % self.every else None

    @hookimpl
    def penalty(self, step: CriticStep) -> None:
        """Note the norms; answer None."""
        points = {"real": step.real, "fake": step.fake, "between": step.interpolates}
        for where, x in points.items():
            norms = self._looked_at(step.critic, partial(gradient_norms, x=x))
            ordered = norms.sort().values
            step.note(f"gradient_{where}_median", _quantile(ordered, 0.5))
            step.note(f"gradient_{where}_p90", _quantile(ordered, 0.9))
        if self.layers and isinstance(step.critic, nn.Module):
            norms = self._looked_at(step.critic, _spectral_norms)
            for name, norm in zip(_names(step.critic), norms, strict=True):
                step.note(name, norm)

    def _looked_at(self, critic: Critic, look: Callable[..., Tensor]) -> Tensor:
        """Return what `look` makes of a critic with copies of its parameters and buffers.

        Its own stay as they were, whatever its forward pass changes: statistics, say.
        """
        if not isinstance(critic, nn.Module):
            return look(critic)
        ready = [whole for whole in self._wholes if whole.network is critic]
        whole = ready[0] if ready else _Whole(critic)
        tensors = [*critic.named_parameters(), *critic.named_buffers()]
        copies = {f"network.{name}": tensor.detach().clone() for name, tensor in tensors}
        answer: Tensor = torch.func.functional_call(whole, copies, (look,))
        return answer


def _layers(critic: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield each layer that has a matrix, with its name."""
    return ((name, part) for name, part in critic.named_modules() if isinstance(part, LAYERS))


def _spectral_norms(critic: nn.Module) -> Tensor:
    """Return those of all layers, as (number of layers,)."""
    norms = []
    for _, layer in _layers(critic):
        weight: Tensor = layer.weight.detach()
        output = 1 if isinstance(layer, TRANSPOSED) else 0
        norms.append(spectral_norm(weight.movedim(output, 0).flatten(1)))
    return torch.stack(norms) if norms else torch.empty(0)


def _names(critic: nn.Module) -> list[str]:
    """Return a note's name for each layer: its number where its own is too long or taken."""
    names: list[str] = []
    for number, (path, _) in enumerate(_layers(critic)):
        name = "spectral_" + re.sub("[^a-z0-9_]", "_", path.lower())
        names.append(
            name if path and len(name) <= LONGEST and name not in names else f"spectral_{number}"
        )
    return names


def _quantile(ordered: Tensor, q: float) -> Tensor:
    """Return a quantile of sorted numbers (N,), between two of them by a straight line."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], place - low)
