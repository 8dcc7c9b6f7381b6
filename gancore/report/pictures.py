"""The pictures of a run's report, each with what one sees and what to look for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from gancore.recipe import Recipe
from gancore.report.curves import ESTIMATE, GAP, bounding, curve_figures
from gancore.report.filmstrip import Frame, animation, filmstrip
from gancore.report.histograms import (
    critic_weights,
    gradient_norms,
    plot_gradient_norms,
    plot_weights,
)
from gancore.report.page import Picture
from gancore.report.surface import plot_surface

CURVES = {
    "critic's scores": "The critic's mean scores of real and of generated samples.",
    "losses": "What each network minimizes, without penalties. Neither need fall: look for "
    "swings that grow.",
    "penalties": "Each penalty at its latest due update, before any scaling. Look for a steady "
    "value, low where it is a constraint that holds.",
    "gradient norms": "The length of the gradient by each network's weights. Look for spikes and "
    "steady growth, which come before divergence, and for zero, where nothing is learned.",
    "scores": "Scores taken during the run.",
}
NOTED = "Numbers that this plugin notes."


def over_time(frames: Sequence[Frame]) -> Picture:
    """Return some of the sample grids side by side."""
    return Picture.of(
        filmstrip(frames),
        title="Over time",
        caption="The same latents at several steps. Look for sharper samples, and for samples "
        "that grow alike: the generator then drops modes.",
        alt=f"Grids of generated samples from step {frames[0].step} to step {frames[-1].step}",
    )


def in_motion(frames: Sequence[Frame], file: str) -> Picture:
    """Return the sample grids as an animated GIF, which is in the run's `file` too."""
    return Picture(
        title="In motion",
        caption=f"{len(frames)} sample grids, also in {file}. Look for samples that keep changing "
        "late in the run: it has not settled.",
        alt=f"The sample grids up to step {frames[-1].step}, one after the other",
        data=animation(frames),
        mime="image/gif",
    )


def surface(critic: nn.Module, real: Tensor, fake: Tensor) -> Picture:
    """Return the critic's scores over the plane. real, fake: (N, 2)."""
    return Picture.of(
        plot_surface(critic, real, fake),
        title="Value surface",
        caption="The critic's score over the plane, brighter where it is higher, with contour "
        "lines. Look for contours that follow the data and lead the generated points to it; where "
        "they ignore a mode, nothing draws samples there.",
        alt="Contours of the critic's score with real and generated points",
    )


def weights(critic: nn.Module) -> Picture:
    """Return a histogram of the critic's weights."""
    values = critic_weights(critic)
    spread = f" from {values.min():.3g} to {values.max():.3g}" if len(values) else ""
    return Picture.of(
        plot_weights(values),
        title="Weights",
        caption=f"The critic's {len(values):,} weights as it uses them,{spread}; biases and "
        "normalization gains are left out. Clipping, where the run has it, heaps them up at its "
        "two limits; penalties leave them free.",
        alt=f"Histogram of the critic's weights,{spread}",
    )


def gradients(
    critic: nn.Module, real: Tensor, fake: Tensor, *, generator: torch.Generator
) -> Picture:
    """Return a histogram of the critic's gradient norms between real and fake, (N, *)."""
    norms = gradient_norms(critic, real, fake, generator=generator)
    median = f"median {norms.median():.3g}"
    return Picture.of(
        plot_gradient_norms(norms),
        title="Gradient norms",
        caption=f"‖∇D(x̂)‖₂ at {len(norms):,} points between real and generated samples, {median}. "
        "A gradient penalty between them, where the run has one, pulls them to its target (as a "
        "rule 1), the harder the larger its weight. Look for very large and very small norms, "
        "with which the generator learns from a steep or a flat critic.",
        alt=f"Histogram of the critic's gradient norms at interpolates, {median}",
    )


def curves(records: Iterable[Mapping[str, float]], recipe: Recipe, step: int) -> Iterator[Picture]:
    """Yield the curves of a run's records, a picture a panel.

    records  numbers by their keys
    step     of the last one
    """
    plugins = bounding(recipe.table())
    captions = {**CURVES, **dict.fromkeys((GAP, ESTIMATE), _gap_caption(recipe.loss.name, plugins))}
    for title, figure in curve_figures(records, is_bounded=bool(plugins)).items():
        text = f"{title[0].upper()}{title[1:]}"
        alt = f"{text} over {step} generator updates, as lines"
        yield Picture.of(figure, title=text, caption=captions.get(title, NOTED), alt=alt)


def _gap_caption(loss: str, plugins: Sequence[str]) -> str:
    """Return what D(real) − D(fake) is with a loss, and plugins that bound the critic."""
    what = "The critic's mean score of real samples minus that of generated ones, over a batch"
    if plugins:
        return (
            f"{what}: with the {loss} loss an estimate of the Wasserstein distance times the "
            f"critic's Lipschitz constant, as far as that is held by {', '.join(plugins)}. Look "
            "for an early rise and a slow fall, as samples get better; heights compare only under "
            "the same constraint."
        )
    why = f"the {loss} loss makes it none" if loss != "wasserstein" else "nothing holds the critic"
    return (
        f"{what}. It estimates no distance, as {why}. Look for growth without an end, and for "
        "zero, where the critic tells nothing apart."
    )
