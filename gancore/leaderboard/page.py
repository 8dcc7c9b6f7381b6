"""The leaderboard's page: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import io
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from gancore.errors import DataError, GancoreError
from gancore.files.reading import read_bytes
from gancore.leaderboard import plots
from gancore.leaderboard.job import Job
from gancore.leaderboard.result import EntryResult, Result
from gancore.leaderboard.text import COSTS, MINUS, columns, notes, title
from gancore.report.curves import GAP, bounding
from gancore.report.filmstrip import find_grids, read_grid
from gancore.report.page import Picture, Section, render

TEMPLATE = "leaderboard/leaderboard.html.jinja"

LARGEST = 200_000
"""Bytes of a sample grid; a larger one becomes a JPEG, as ten of them should open on a phone."""

SIDE = 420
"""Pixels of such a JPEG."""

OVER = {
    "update": "Look for who gets ahead early, and who still improves at the end.",
    "seconds": "What an update costs is in it, and so is what else the machine did meanwhile.",
}
"""What to look for in the curves over each."""

PRICED: dict[plots.Cost, str] = {
    "time_ratio": "Time is measured, and scatters with the machine.",
    "flops_ratio": "FLOPs of convolutions and matrix products are counted, and do not scatter.",
}
"""What the costs that scores are drawn against are."""


def page(result: Result, jobs: Sequence[Job]) -> str:
    """Return the page of a result: the table, what it can't say, and pictures of its runs.

    jobs: the runs of the board, whose folders have the curves and samples. Every text is escaped,
    and the page's policy lets it run no script but its own, and fetch nothing.
    """
    script = resources.files(__package__).joinpath("sort.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    return render(
        TEMPLATE,
        summary=_summary(result),
        columns=columns(result),
        result=result,
        notes=notes(result),
        sections=[
            _as_far_as("Scores", lambda: _final(result, jobs)),
            _as_far_as("Over training", lambda: _training(result, jobs)),
            _as_far_as("Cost", lambda: _cost(result)),
        ],
        samples=_samples(result, jobs),
        entries=[_entry(entry) for entry in result.entries],
        environment=_environment(result),
        script=script,
        script_hash=f"sha256-{base64.b64encode(digest).decode()}",
    )


def _summary(result: Result) -> str:
    if not result.ranked():
        return "No run has a score yet."
    (baseline,) = [entry.label for entry in result.entries if entry.name == result.baseline]
    seeds = f"seed{'s' if len(result.seeds) > 1 else ''} {', '.join(map(str, result.seeds))}"
    name, count = title(result, result.metric), len(result.entries)
    if count == 1:
        return f"{baseline} over {seeds}: {name}."
    return f"{count} entries over {seeds}, ranked by {name}, against {baseline}."


def _as_far_as(title: str, make: Callable[[], Section]) -> Section:
    """Make a section; one that can't be tells why, and costs the page nothing else."""
    try:
        return make()
    except GancoreError as error:
        return Section(title, missing=[f"Not made: {' '.join(str(error).split())}."])


def _final(result: Result, jobs: Sequence[Job]) -> Section:
    ranked = result.ranked()
    if not ranked:
        missing = "There are no pictures of scores: no run has one yet."
        return Section("Scores", missing=[missing])
    several = result.has_intervals()
    bars = (
        "Each entry's median as a mark, its 95 % bootstrap interval as a bar, and below it each "
        "run as a ring; bars that overlap decide nothing"
    )
    baseline = any(entry.name == result.baseline for entry, _ in ranked)
    intervals = Picture.of(
        plots.plot_intervals(result),
        title="Medians and intervals" if several else "Scores",
        caption=(bars if several else "Each entry's only run")
        + ("; the dashed line is the baseline's." if baseline else "."),
        alt=f"{title(result, result.metric)} of each entry: all runs"
        f"{', median and interval' if several else ''}",
    )
    return Section("Scores", [intervals, _gaps(result, jobs)])


def _gaps(result: Result, jobs: Sequence[Job]) -> Picture:
    """Draw scores against D(real) − D(fake), which is an estimate for some losses only."""
    recipes = {job.entry: job.recipe for job in jobs}
    ranked = result.ranked()
    estimated = [entry.label for entry, _ in ranked if bounding(recipes[entry.name])]
    all_are = len(estimated) == len(ranked)
    of = "all entries" if all_are else ", ".join(estimated) or "none of these entries"
    return Picture.of(
        plots.plot_estimates(result, plots.estimates(result, jobs)),
        title=f"Does {'the Wasserstein estimate' if all_are else GAP} tell the score?",
        caption=f"Each run's last {GAP} against its score. It is a Wasserstein estimate, but for "
        f"the factor of the critic's Lipschitz constant, of {of}. It compares only under one loss "
        "and one constraint on the critic, so look at one entry's runs at a time. Where one is "
        "negative, the critic scored generated samples above real ones in the last batch.",
        alt=f"{title(result, result.metric)} of each run against its last {GAP}",
    )


def _training(result: Result, jobs: Sequence[Job]) -> Section:
    section = Section("Over training")
    name = title(result, result.metric)
    for over, text in OVER.items():
        drawn = plots.curves(result, jobs, over)
        if not drawn:
            section.missing = [
                "There are no curves of scores: no run took any while it trained, which "
                "score.every in a recipe makes it do."
            ]
            break
        alone = all(len(curve.runs) < 2 for curve in drawn.values())
        lines = (
            "Each entry's only run as a line."
            if alone
            else "The median over seeds as a line, each run faintly."
        )
        without = [entry.label for entry, _ in result.ranked() if entry.name not in drawn]
        left_out = f" Without score.every, and so left out: {', '.join(without)}."
        section.pictures.append(
            Picture.of(
                plots.plot_curves(result, drawn, over),
                title=f"Over {plots.AXES[over]}",
                caption=f"{lines} {text}{left_out if without else ''}",
                alt=f"{name} of each entry over {plots.AXES[over]}",
            )
        )
    return section


def _cost(result: Result) -> Section:
    name = title(result, result.metric)
    what = "Medians with their intervals." if result.has_intervals() else "Each entry's only run."
    pictures = [
        Picture.of(
            plots.plot_cost(result, cost),
            title=f"Score against {COSTS[cost]}",
            caption=f"{what} {about} No entry beats those on the stepped line, the Pareto front, "
            "in both; it does not know ties.",
            alt=f"{name} of each entry against its cost in {COSTS[cost]}, with the Pareto front",
        )
        for cost, about in PRICED.items()
        if any(getattr(entry.cost, cost) is not None for entry, _ in result.ranked())
    ]
    missing = [] if pictures else ["Scores against costs are left out: no cost was measured."]
    return Section("Cost", pictures, missing)


def _samples(result: Result, jobs: Sequence[Job]) -> Section:
    """Show a grid of each entry, of the seed that most have finished where it has."""
    section = Section(
        "Samples",
        about="The last grid of each entry. One seed draws the same latents for all entries whose "
        "generators take as many numbers: the same place in two grids is then the same latent.",
    )
    done = [job for job in jobs if job.state == "done"]
    common = Counter(job.seed for job in done).most_common(1)
    for entry in result.entries:
        mine = [job for job in done if job.entry == entry.name]
        mine.sort(key=lambda job: job.seed != common[0][0])
        grids = find_grids(mine[0].run.sample_path(0).parent) if mine else []
        if not grids:
            section.missing.append(f"{entry.label} has no sample grid.")
            continue
        step, path = grids[-1]
        try:
            data, mime = _small(path)
        except DataError as error:
            section.missing.append(f"{entry.label}: {error}")
            continue
        where = f"seed {mine[0].seed}, step {step:,}"
        alt = f"Grid of samples of {entry.label}, {where}"
        section.pictures.append(Picture(entry.label, where, alt, data, mime))
    return section


def _small(path: Path) -> tuple[bytes, str]:
    """Return a grid as a file that suits a page of many, and its type. Raises DataError."""
    small = read_grid(path)
    if path.stat().st_size <= LARGEST:
        return read_bytes(path, LARGEST), "image/png"
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85, subsampling=0)
    return file.getvalue(), "image/jpeg"


def _entry(entry: EntryResult) -> dict[str, str]:
    """Return what an entry was made of, and made."""
    seconds = [run for run in entry.seconds if run]
    return {
        "entry": entry.label,
        "plugins": ", ".join(f"{name}: {source}" for name, source in entry.plugins.items()),
        "generator updates": f"{entry.generator_updates:,}",
        "critic updates": f"{entry.critic_updates:,}",
        "seconds a run": f"{statistics.median(seconds):,.0f}" if seconds else MINUS,
    }


def _environment(result: Result) -> dict[str, str]:
    """Return the versions, and the machine."""
    about = result.environment.table()
    machine = ("device", "device_name", "cpu", "cpu_capability", "blas")
    keys = [key for key in ("python", "platform", *machine) if about.get(key)]
    return {
        **result.environment.versions,
        **{key.replace("_", " "): str(about[key]) for key in keys},
        "threads a run": str(result.threads),
    }
