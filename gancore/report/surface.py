"""The critic's value surface over two-dimensional data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gancore.critics import Critic, critic_scores
from gancore.report.style import our_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.floating[Any]]

REACH = 1.5
"""The picture reaches so many times as far from the data's centre as the data does."""

LEVELS = 10
"""Contours between the lowest and the highest score of the points shown."""

MOST_LEVELS = 24
"""Contours in the whole picture."""


class Surface(NamedTuple):
    """The critic's scores on a grid: values[row, column] = D((x[column], y[row]))."""

    x: Tensor
    y: Tensor
    values: Tensor


@torch.no_grad()
def surface(critic: Critic, real: Tensor, *, resolution: int = 200) -> Surface:
    """Score a square grid of points around the data, 1.5 times as far as that reaches.

    real: (N, 2) points on the critic's device. Returns x and y (resolution,) and values
    (resolution, resolution), all on the CPU. Raises ContractError for a critic whose answer is
    not one score a sample.
    """
    low, high = real.amin(dim=0), real.amax(dim=0)
    centre, half = (low + high) / 2, (high - low).max().clamp(min=1e-6) / 2
    steps = torch.linspace(-1, 1, resolution, device=real.device) * half * REACH
    x, y = centre[0] + steps, centre[1] + steps
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    points = torch.stack([columns.flatten(), rows.flatten()], dim=1)
    values = torch.cat([critic_scores(critic, part) for part in torch.split(points, resolution)])
    return Surface(x.cpu(), y.cpu(), values.view(resolution, resolution).cpu())


@our_style()
def plot_surface(critic: Critic, real: Tensor, fake: Tensor) -> Figure:
    """Draw the critic's contours with real and generated points (N, 2) on them.

    After Gulrajani et al., 2017, Figure 1(a). Raises as `surface`.
    """
    from matplotlib.figure import Figure

    x, y, values = (part.numpy() for part in surface(critic, real))
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    levels = _levels(values, critic_scores(critic, torch.cat([real, fake])).detach().cpu().numpy())
    if len(levels) > 1:
        filled = axes.contourf(x, y, values, levels, cmap="Greys_r", alpha=0.55)
        axes.contour(x, y, values, levels, colors="0.35", linewidths=0.6, linestyles="solid")
        figure.colorbar(filled, ax=axes, label="critic's score", shrink=0.85, format="%.3g")
    shown = (real, "real", "#d95f02", 16), (fake, "generated", "#0b7a75", 5)
    for points, label, colour, size in shown:
        across, up = points.detach().cpu().unbind(dim=1)
        axes.scatter(across, up, s=size, c=colour, alpha=0.7, linewidths=0, label=label, zorder=2)
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal")
    axes.legend(loc="upper right", markerscale=2, fontsize=9)
    return figure


def _levels(values: Floats, shown: Floats) -> Floats:
    """Return contour levels that are fine enough for the scores of the points shown.

    Far from the data a critic's scores may grow without bound; they should not hide its shape.
    """
    low, high = values.min(), values.max()
    step = max((shown.max() - shown.min()) / LEVELS, (high - low) / MOST_LEVELS)
    if step <= 1e-6 * np.abs(values).max():  # a constant has no contours
        return np.empty(0)
    levels: Floats = low + step * np.arange(np.ceil((high - low) / step) + 1)
    return levels
