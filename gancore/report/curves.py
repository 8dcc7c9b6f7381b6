"""Curves: the records of a run as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = (
    ("Wasserstein estimate", ("wasserstein",)),
    ("critic's scores", ("d_real", "d_fake")),
    ("losses", ("critic_loss", "generator_loss")),
    ("penalties", ("penalty/", "generator_penalty/")),
    ("gradient norms", ("critic_grad_norm", "generator_grad_norm")),
    ("scores", ("score/",)),
)
"""Each panel's title and the keys it shows; a key that ends in / stands for all below it."""


def plot_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the records of a run over generator updates as a PNG; nothing without records."""
    from matplotlib.figure import Figure

    keys = dict.fromkeys(key for record in records for key in record)
    panels = []
    for title, prefixes in PANELS:
        shown = [key for key in keys if any(_belongs(key, prefix) for prefix in prefixes)]
        if shown:
            panels.append((title, shown))
    if not panels:
        return
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 3 * rows), layout="constrained")
    grid = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for (title, shown), axes in zip(panels, grid, strict=False):
        for key in shown:
            points = [(record["step"], record[key]) for record in records if key in record]
            axes.plot(*zip(*points, strict=True), label=key, marker="." if len(points) < 20 else "")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("generator updates", fontsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def _belongs(key: str, prefix: str) -> bool:
    return key.startswith(prefix) if prefix.endswith("/") else key == prefix
