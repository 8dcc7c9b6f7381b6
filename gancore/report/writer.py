"""The report of a run: its scores, pictures and recipe in one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gancore.data import Dataset, to_unit
from gancore.errors import CheckpointError, GancoreError, InputError
from gancore.files.reading import LARGEST, read_text
from gancore.files.storage import refuse_unwritable
from gancore.files.writing import write_bytes, write_text
from gancore.isolation.caller import leaving_no_trace
from gancore.isolation.randomness import Order, Stream
from gancore.provenance.environment import Environment
from gancore.recipe import Recipe
from gancore.report.curves import ESTIMATE, GAP, bounding, curve_figures
from gancore.report.filmstrip import Frame, animation, filmstrip, read_frames
from gancore.report.histograms import (
    critic_weights,
    gradient_norms,
    plot_gradient_norms,
    plot_weights,
)
from gancore.report.page import Page, Picture, Section
from gancore.report.surface import plot_surface
from gancore.scoring.protocol import Scores, shown_protocol, shown_scores
from gancore.scoring.sampling import Progress, generate
from gancore.training import checkpoint
from gancore.training.loading import dataset_of, load_critic, load_generator, refuse_python
from gancore.training.notes import noticed
from gancore.training.run_folder import Run

POINTS = 1000
"""Samples of each kind that the critic's pictures are made from."""

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


def _gap_caption(recipe: Recipe) -> str:
    """Return what D(real) − D(fake) is in a run of this recipe."""
    what = "The critic's mean score of real samples minus that of generated ones, over a batch"
    loss = recipe.loss.name
    if plugins := bounding(recipe.table()):
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


@leaving_no_trace
def write_report(
    run: str | Path | Run,
    *,
    generator: nn.Module | None = None,
    critic: nn.Module | None = None,
    data: Dataset | Tensor | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> None:
    """Write a run's report.html and its animated samples.gif.

    generator, critic, data
        those of a run that was made from Python, as `load_generator`, `load_critic` and `score_run`
        take them

    What can't be made (the critic's pictures of such a run without these, say) is left out, and
    the page tells why. Raises InputError for a run without records, CheckpointError for one
    without a checkpoint.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    recipe, last = run.read_recipe(), run.last_record()
    refuse_unwritable(run.path)
    scores, machine = run.read_scores(), _environment(run.read_environment())
    if last is None:
        raise InputError(f"{run.path} has no records yet: run it first")
    saved = checkpoint.latest(run.checkpoints)
    if saved is None:
        raise CheckpointError(f"{run.path} has no checkpoint yet: run it first")
    tell = progress or (lambda what, done, total: None)

    tell("drawing", 0, 3)
    samples = _samples(run)
    tell("drawing", 1, 3)
    pictures = _critic(run, device, progress, generator, critic, data)
    tell("drawing", 2, 3)
    curves = Section("Curves")
    captions = {**CURVES, **dict.fromkeys((GAP, ESTIMATE), _gap_caption(recipe))}
    records = (record.values for record in run.read_records())
    for title, figure in curve_figures(records, recipe.table()).items():
        text = f"{title[0].upper()}{title[1:]}"
        alt = f"{text} over {last.step} generator updates, as lines"
        curves.pictures.append(Picture.of(figure, title=text, caption=captions[title], alt=alt))

    loss, plugins = recipe.loss.name, [each.called for each in recipe.plugin]
    page = Page(
        title=run.path.resolve().name,
        summary=f"{recipe.generator.name} against {recipe.critic.name} on {recipe.data.name}: "
        f"{loss}{''.join(f' + {name}' for name in plugins)}, "
        f"{last.step} of {recipe.train.steps} steps, seed {recipe.train.seed}",
        **_scores(scores),
        notes=noticed(saved.state, scores),
        sections=[samples, pictures, curves],
        recipe=read_text(run.recipe_path, LARGEST),
        environment=machine,
        record=last.values,
    )
    write_text(run.report_path, page.html())
    tell("drawing", 3, 3)


def _samples(run: Run) -> Section:
    section = Section("Samples")
    try:
        frames = read_frames(run.sample_path(0).parent)
    except GancoreError as error:
        section.missing.append(_reason("No samples", error))
        return section
    if not frames:
        section.missing.append("No samples: the run's folder of sample grids is empty.")
        return section
    section.pictures.append(_filmstrip(frames))
    moving = animation(frames)
    write_bytes(run.animation_path, moving)
    section.pictures.append(
        Picture(
            title="In motion",
            caption=f"{len(frames)} sample grids, also in {run.animation_path.name}. Look for "
            "samples that keep changing late in the run: it has not settled.",
            alt=f"The sample grids up to step {frames[-1].step}, one after the other",
            data=moving,
            mime="image/gif",
        )
    )
    return section


def _filmstrip(frames: list[Frame]) -> Picture:
    return Picture.of(
        filmstrip(frames),
        title="Over time",
        caption="The same latents at several steps. Look for sharper samples, and for samples "
        "that grow alike: the generator then drops modes.",
        alt=f"Grids of generated samples from step {frames[0].step} to step {frames[-1].step}",
    )


def _critic(
    run: Run,
    device: str,
    progress: Progress | None,
    generator: nn.Module | None,
    critic: nn.Module | None,
    data: Dataset | Tensor | None,
) -> Section:
    """Make the critic's pictures, as far as its network and data can be had."""
    section = Section("Critic")
    try:
        again = "gancore.write_report({run!r}, generator=…, critic=…, data=…)"
        recipe = run.read_recipe()
        parts = (recipe.generator, generator), (recipe.critic, critic)
        for made, given in (*parts, (recipe.data, data)):
            refuse_python(run, made, given, again)
        critic = load_critic(run, critic=critic, device=device)
        section.pictures.append(_weights(critic))
        data = dataset_of(run, data)
        generator = load_generator(run, generator=generator, device=device, progress=progress)
        real, fake = _batches(run, data, generator)
        section.pictures.append(_gradients(run, critic, real, fake))
        if data.shape == (2,):
            section.pictures.insert(0, _surface(critic, real, fake))
    except GancoreError as error:
        section.missing.append(_reason("Pictures of the critic are missing", error))
    return section


def _batches(run: Run, data: Dataset, generator: nn.Module) -> tuple[Tensor, Tensor]:
    """Return as many real and generated samples, as the critic takes them."""
    where = next(generator.parameters()).device
    count = min(POINTS, len(data))
    real = data.batch(Order(run.read_recipe().train.seed, "order/report", len(data)).take(0, count))
    fake = generate(generator, count, seed=run.read_recipe().train.seed)
    return real.to(where), (to_unit(fake) if data.is_images else fake).to(where)


def _surface(critic: nn.Module, real: Tensor, fake: Tensor) -> Picture:
    return Picture.of(
        plot_surface(critic, real, fake),
        title="Value surface",
        caption="The critic's score over the plane, brighter where it is higher, with contour "
        "lines. Look for contours that follow the data and lead the generated points to it; where "
        "they ignore a mode, nothing draws samples there.",
        alt="Contours of the critic's score with real and generated points",
    )


def _weights(critic: nn.Module) -> Picture:
    weights = critic_weights(critic)
    spread = f" from {weights.min():.3g} to {weights.max():.3g}" if len(weights) else ""
    return Picture.of(
        plot_weights(weights),
        title="Weights",
        caption=f"The critic's {len(weights):,} weights as it uses them,{spread}; biases and "
        "normalization gains are left out. Clipping, where the run has it, heaps them up at its "
        "two limits; penalties leave them free.",
        alt=f"Histogram of the critic's weights,{spread}",
    )


def _gradients(run: Run, critic: nn.Module, real: Tensor, fake: Tensor) -> Picture:
    source = Stream(run.read_recipe().train.seed, "interpolates/report", real.device).at(0)
    norms = gradient_norms(critic, real, fake, generator=source)
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


def _scores(scores: Scores | None) -> dict[str, Any]:
    """Return the page's scores and protocol."""
    if scores is None:
        return {"scores": {}, "protocol": "Not scored: gan score RUN does it."}
    table = scores.table()
    return {"scores": shown_scores(table), "protocol": shown_protocol(table["protocol"])}


def _environment(about: Environment | None) -> dict[str, str]:
    """Return the versions of plugins and packages, and the machine."""
    if about is None:
        return {}
    git = about.git
    commit = f"{git.commit[:12]}{', with changes' if git.dirty else ''}" if git else "none"
    machine = {"CPU": about.cpu, "CPU capability": about.cpu_capability, "BLAS": about.blas}
    begun = [stretch.from_step for stretch in (*about.earlier, about)]
    known = {
        "samples' hash": (about.data or "")[:12],
        "gancore's own code": about.core.code if about.core else "",
        "made in stretches, from step": ", ".join(map(str, begun)) if about.earlier else "",
    }
    return {
        **{f"plugin {name}": source for name, source in about.plugins.items()},
        **about.versions,
        "Python": about.python,
        "platform": about.platform,
        "device": " ".join(filter(None, [about.device, about.device_name])),
        **{name: text for name, text in machine.items() if text},
        "threads": str(about.threads),
        "git commit": commit,
        **{name: text for name, text in known.items() if text},
    }


def _reason(what: str, error: GancoreError) -> str:
    return f"{what}: {' '.join(str(error).split())}"
