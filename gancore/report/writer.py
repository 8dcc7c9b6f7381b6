"""The report of a run: its scores, pictures and recipe in one HTML file."""

from __future__ import annotations

from pathlib import Path

import tomli_w
from torch import Tensor, nn

from gancore.data import Dataset, to_unit
from gancore.errors import GancoreError
from gancore.files.storage import refuse_unwritable
from gancore.files.writing import write_bytes, write_text
from gancore.isolation.caller import leaving_no_trace
from gancore.isolation.randomness import DataOrder, Stream
from gancore.provenance.environment import Environment
from gancore.report import pictures
from gancore.report.filmstrip import read_frames
from gancore.report.page import Page, Section
from gancore.scoring.protocol import shown_protocol, shown_scores
from gancore.scoring.sampling import Progress, generate
from gancore.training.loading import Loader, latest, refuse_python
from gancore.training.notes import noticed
from gancore.training.run_folder import Run, SavedRun

POINTS = 1000
"""Samples of each kind that the critic's pictures are made from."""

NOT_SCORED = "Not scored: gan score RUN does it."


@leaving_no_trace
def write_report(
    run: str | Path | Run,
    *,
    generator: nn.Module | None = None,
    critic: nn.Module | None = None,
    data: Dataset | Tensor | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[str]:
    """Write a run's report.html and its animated samples.gif; return what is missing there.

    generator, critic, data
        those of a run that was made from Python, as `load_generator`, `load_critic` and `score_run`
        take them

    What can't be made (pictures that need samples which are gone, say) is left out. A line on the
    page, which is returned too, tells which and why. Raises InputError for a broken run folder,
    CheckpointError for one without a checkpoint.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    saved = run.read()
    refuse_unwritable(run.path)
    loader = Loader(run, saved.recipe, latest(run), data=data)
    tell = progress or (lambda what, done, total: None)

    tell("drawing", 0, 3)
    samples = _samples(run)
    tell("drawing", 1, 3)
    critics = _critic(loader, generator, critic, data, device, progress)
    tell("drawing", 2, 3)
    sections = [samples, critics, _curves(saved)]
    write_text(run.report_path, _page(saved, loader, sections).html())
    tell("drawing", 3, 3)
    return [line for section in sections for line in section.missing]


def _page(saved: SavedRun, loader: Loader, sections: list[Section]) -> Page:
    recipe, scores = saved.recipe, saved.scores
    names = [plugin.called for plugin in recipe.plugin]
    return Page(
        title=saved.run.path.resolve().name,
        summary=f"{recipe.generator.name} against {recipe.critic.name} on {recipe.data.name}: "
        f"{' + '.join([recipe.loss.name, *names])}, "
        f"{saved.step or loader.saved.step} of {recipe.train.steps} steps, "
        f"seed {recipe.train.seed}",
        scores=shown_scores(scores) if scores else {},
        protocol=shown_protocol(scores.protocol) if scores else NOT_SCORED,
        notes=noticed(loader.saved.state, scores),
        sections=sections,
        recipe=tomli_w.dumps(saved.table),
        environment=_environment(saved.environment) if saved.environment else {},
        record=saved.records[-1].values if saved.records else {},
    )


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
    moving = pictures.in_motion(frames, run.animation_path.name)
    write_bytes(run.animation_path, moving.data)
    section.pictures += [pictures.over_time(frames), moving]
    return section


def _critic(
    loader: Loader,
    generator: nn.Module | None,
    critic: nn.Module | None,
    data: Dataset | Tensor | None,
    device: str,
    progress: Progress | None,
) -> Section:
    """Make the critic's pictures, as far as its network and data can be had."""
    section, recipe = Section("Critic"), loader.recipe
    missing = "Pictures of the critic are missing"
    try:
        again = "gancore.write_report({run!r}, generator=…, critic=…, data=…)"
        parts = (recipe.generator, generator), (recipe.critic, critic), (recipe.data, data)
        refuse_python(loader.run, again, *parts)
        network = loader.critic(critic, device=device)
        section.pictures.append(pictures.weights(network))
        missing = "The critic's gradient norms are left out"
        if loader.shape == (2,):
            missing = "The critic's value surface and gradient norms are left out"
        trained = loader.generator(generator, device=device, progress=progress)
        real, fake = _batches(loader, trained)
        source = Stream(recipe.train.seed, "interpolates/report", real.device).at(0)
        section.pictures.append(pictures.gradients(network, real, fake, generator=source))
        if loader.data.shape == (2,):
            section.pictures.insert(0, pictures.surface(network, real, fake))
    except GancoreError as error:
        section.missing.append(_reason(missing, error))
    return section


def _batches(loader: Loader, generator: nn.Module) -> tuple[Tensor, Tensor]:
    """Return as many real and generated samples, as the critic takes them."""
    data, seed = loader.data, loader.recipe.train.seed
    where = next(generator.parameters()).device
    count = min(POINTS, len(data))
    real = data.batch(DataOrder(seed, "order/report", len(data)).take(0, count))
    fake = generate(generator, count, seed=seed)
    return real.to(where), (to_unit(fake) if data.is_images else fake).to(where)


def _curves(saved: SavedRun) -> Section:
    section = Section("Curves")
    if saved.records:
        values = (record.values for record in saved.records)
        section.pictures += pictures.curves(values, saved.recipe, saved.step)
    else:
        name = saved.run.metrics_path.name
        section.missing.append(f"No curves: {name} has no records, or is gone. Copy it anew.")
    return section


def _environment(about: Environment) -> dict[str, str]:
    """Return the versions of plugins and packages, and the machine."""
    git = about.git
    commit = f"{git.commit[:12]}{', with changes' if git.dirty else ''}" if git else "none"
    begun = [stretch.from_step for stretch in (*about.earlier, about)]
    machine = {"CPU": about.cpu, "CPU capability": about.cpu_capability, "BLAS": about.blas}
    made_of = {
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
        **{name: text for name, text in made_of.items() if text},
    }


def _reason(what: str, error: GancoreError) -> str:
    return f"{what}: {' '.join(str(error).split())}"
