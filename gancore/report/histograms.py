"""Histograms of what clipping and penalties act on: the critic's weights and input gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gancore.critics import Critic, input_gradient, interpolate
from gancore.report.style import our_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH = 128
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


@torch.no_grad()
def critic_weights(critic: nn.Module) -> Tensor:
    """Return the critic's weights as it uses them, all in one float32 vector on the CPU.

    These are its parameters of two dimensions and more, as their parametrizations (spectral norm,
    say) make them; biases, and the gains of normalization layers, are left out.
    """
    parts = [weight.float().flatten().cpu() for weight in _weights(critic)]
    return torch.cat(parts) if parts else torch.empty(0)


def gradient_norms(
    critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """Return ‖∇D(x̂)‖₂ (B,) on the CPU, at points x̂ drawn uniformly between real and fake (B, *).

    These norms are what a gradient penalty pulls to 1 (Gulrajani et al., 2017, equation 3).
    Raises ContractError for a critic without meaningful input gradients (`gancore.step`).
    """
    parts = [
        input_gradient(critic, x).detach().flatten(1).norm(dim=1).cpu()
        for x in torch.split(interpolate(real, fake, generator=generator), BATCH)
    ]
    return torch.cat(parts)


@our_style()
def plot_weights(weights: Tensor) -> Figure:
    """Draw the histogram of weights (N,)."""
    figure, axes = _histogram(weights)
    axes.set(xlabel="weight", ylabel="weights")
    return figure


@our_style()
def plot_gradient_norms(norms: Tensor) -> Figure:
    """Draw the histogram of gradient norms (B,), with a line at 1."""
    figure, axes = _histogram(norms)
    axes.axvline(1, color="#d95f02", linestyle="--", label="1, where a gradient penalty pulls")
    axes.set(xlabel="‖∇D(x̂)‖₂", ylabel="interpolates")
    axes.set_xlim(left=0)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, frameon=False, fontsize=8
    )
    return figure


def _histogram(values: Tensor) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.hist(values[values.isfinite()].numpy(), bins=60, color="#0b7a75")
    axes.grid(alpha=0.3)
    return figure, axes


def _weights(critic: nn.Module) -> Iterator[Tensor]:
    for name, part in critic.named_modules():
        # a parametrization's own tensors are not what the critic multiplies by
        if "parametrizations" in name.split(".") or isinstance(part, NORMS):
            continue
        names = [name for name, _ in part.named_parameters(recurse=False)]
        if parametrize.is_parametrized(part):
            names += list(part.parametrizations)
        yield from (weight for name in names if (weight := getattr(part, name)).dim() > 1)
