"""Plots: the result of a board as figures, an entry in the same colour and shape in each."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gancore.leaderboard.job import Job
from gancore.leaderboard.text import title
from gancore.report.curves import GAP
from gancore.report.style import our_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK = "#000000"
COLOURS = (
    "#332288", "#cc6677", "#117733", "#56b4e9", "#882255", "#44aa99", "#999933", "#aa4499",
    "#c9a227",
)  # fmt: skip
"""Told apart without seeing red or green, after Paul Tol's muted scheme; black is the baseline."""

SHAPES = "osD^vPX<>p"
"""Told apart in black and white too; as many as colours, the baseline's included, or more."""

LONGEST = 28
"""Letters of a label that a legend has room for."""

BELOW = 0.28
"""How far below their median the scores of an entry are drawn, in lines."""

WIDE = 10.0
"""Values whose largest is so many times the smallest are drawn on a logarithmic axis."""

AXES = {
    "update": "critic updates",
    "seconds": "seconds of training, scoring included",
    "time_ratio": "time of a critic update, × without a regularizer",
    "flops_ratio": "FLOPs of a critic update, × without a regularizer",
}

Found = Mapping[str, Any]
Point = tuple[float, float]


class Look(NamedTuple):
    """How an entry is drawn."""

    colour: str
    shape: str


class Curve(NamedTuple):
    """An entry's scores while it trained: of each run, and their median at each update."""

    runs: list[list[Point]]
    median: list[Point]


def looks(found: Found) -> dict[str, Look]:
    """Return how each entry is drawn, by its name."""
    others = [entry["name"] for entry in found["entries"] if entry["name"] != found["baseline"]]
    pairs = zip(others, cycle(COLOURS), cycle(SHAPES[1:]), strict=False)
    return {found["baseline"]: Look(BLACK, SHAPES[0])} | {
        name: Look(colour, shape) for name, colour, shape in pairs
    }


def scored(found: Found) -> list[Mapping[str, Any]]:
    """Return the entries that have the score that ranks, from best to worst."""
    return [entry for entry in found["entries"] if found["metric"] in entry["scores"]]


def pareto(points: Sequence[Point], *, higher_is_better: bool) -> list[bool]:
    """Return of each (cost, score) whether no other is as good in both and better in one."""
    sign = -1 if higher_is_better else 1
    signed = [(cost, sign * score) for cost, score in points]
    return [
        not any(one[0] <= mine[0] and one[1] <= mine[1] and one != mine for one in signed)
        for mine in signed
    ]


def curves(found: Found, jobs: Sequence[Job], over: str) -> dict[str, Curve]:
    """Return the scores that finished runs took while they trained, by entry.

    over: update or seconds; the median is then over the seeds' seconds too.
    """
    key = f"score/{found['metric']}"
    drawn = {}
    for entry in found["entries"]:
        runs = [
            [record for record in job.whole_records() if key in record]
            for job in jobs
            if job.entry == entry["name"] and job.state == "done"
        ]
        at: dict[float, list[Point]] = {}
        for record in (record for records in runs for record in records):
            at.setdefault(record["update"], []).append((record[over], record[key]))
        if at:
            drawn[entry["name"]] = Curve(
                [[(record[over], record[key]) for record in records] for records in runs],
                [_median(at[update]) for update in sorted(at)],
            )
    return drawn


def estimates(found: Found, jobs: Sequence[Job]) -> dict[str, list[Point]]:
    """Return each finished run's last D(real) − D(fake) with its score, by entry."""
    last = {
        (job.entry, job.seed): record.values["wasserstein"]
        for job in jobs
        if job.state == "done" and job.has_whole_records()
        for record in [job.run.last_record()]
        if record and "wasserstein" in record.values
    }
    drawn = {}
    for entry in scored(found):
        scores = entry["scores"][found["metric"]]
        drawn[entry["name"]] = [
            (last[entry["name"], seed], value)
            for seed, value in zip(scores["seeds"], scores["values"], strict=True)
            if (entry["name"], seed) in last
        ]
    return drawn


@our_style()
def plot_intervals(found: Found) -> Figure:
    """Draw a line an entry, the best at the top: all scores, their median and its interval."""
    from matplotlib.figure import Figure

    entries, drawn = scored(found), looks(found)
    figure = Figure(figsize=(5.5, 0.9 + 0.35 * len(entries)), layout="constrained")
    axes = figure.subplots()
    for row, entry in enumerate(entries):
        scores, look = entry["scores"][found["metric"]], drawn[entry["name"]]
        axes.plot([scores["low"], scores["high"]], [row, row], color=look.colour, linewidth=2)
        axes.scatter(
            scores["values"], [row + BELOW] * len(scores["values"]),
            s=10, facecolors="none", edgecolors=look.colour, linewidths=0.8,
        )  # fmt: skip
        axes.plot(scores["median"], row, marker=look.shape, color=look.colour, markersize=6)
        if entry["name"] == found["baseline"]:
            axes.axvline(scores["median"], color=look.colour, linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(range(len(entries)), [shown(entry["label"]) for entry in entries], fontsize=8)
    axes.set_ylim(len(entries) - 0.5, -0.5)
    _finish(axes)
    values = [each for entry in entries for each in entry["scores"][found["metric"]]["values"]]
    _score_axis(axes, "x", found, values)
    return figure


@our_style()
def plot_curves(found: Found, drawn: Mapping[str, Curve], over: str) -> Figure:
    """Draw the median of each entry's `curves` as a line, and faintly each run's own."""
    figure, axes = _figure()
    for name, look in looks(found).items():
        if name not in drawn:
            continue
        for points in drawn[name].runs:
            axes.plot(*zip(*points, strict=True), color=look.colour, linewidth=0.6, alpha=0.25)
        axes.plot(
            *zip(*drawn[name].median, strict=True),
            color=look.colour, marker=look.shape, markersize=4, linewidth=1.4, zorder=3,
        )  # fmt: skip
    axes.set_xlabel(AXES[over], fontsize=8)
    _finish(axes)
    values = [y for curve in drawn.values() for points in curve.runs for _, y in points]
    _score_axis(axes, "y", found, values)
    _legend(figure, found, drawn)
    return figure


@our_style()
def plot_cost(found: Found, cost: str) -> Figure:
    """Draw scores with their intervals against a cost, and the Pareto front as steps.

    cost: time_ratio or flops_ratio. Entries without it are left out.
    """
    figure, axes = _figure()
    metric, drawn = found["metric"], looks(found)
    entries = [entry for entry in scored(found) if cost in entry["cost"]]
    points = [(entry["cost"][cost], entry["scores"][metric]["median"]) for entry in entries]
    best = pareto(points, higher_is_better=metric in found["higher_is_better"])
    front = sorted(point for point, on in zip(points, best, strict=True) if on)
    axes.step(
        *zip(*front, strict=True),
        where="post", color="0.45", linewidth=1, zorder=0, label="Pareto front",
    )  # fmt: skip
    for entry, (x, y) in zip(entries, points, strict=True):
        scores, look = entry["scores"][metric], drawn[entry["name"]]
        axes.plot([x, x], [scores["low"], scores["high"]], color=look.colour, alpha=0.5)
        axes.plot(x, y, marker=look.shape, color=look.colour, markersize=7)
    axes.set_xlabel(AXES[cost], fontsize=8)
    _finish(axes)
    _score_axis(axes, "y", found, [y for _, y in points])
    _legend(figure, found, [entry["name"] for entry in entries], front=True)
    return figure


@our_style()
def plot_estimates(found: Found, drawn: Mapping[str, Sequence[Point]]) -> Figure:
    """Draw a dot a run: its score against its D(real) − D(fake), which may be negative."""
    figure, axes = _figure()
    for name, look in looks(found).items():
        if drawn.get(name):
            across, up = zip(*drawn[name], strict=True)
            axes.scatter(
                across, up, marker=look.shape, color=look.colour, s=22, alpha=0.75, linewidths=0,
            )  # fmt: skip
    sizes = [abs(x) for points in drawn.values() for x, _ in points if x]
    if sizes and max(sizes) > WIDE * statistics.median(sizes):
        # a critic that nothing holds is beyond all others
        axes.set_xscale("symlog", linthresh=statistics.median(sizes))
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(GAP, fontsize=8)
    _finish(axes)
    _score_axis(axes, "y", found, [y for points in drawn.values() for _, y in points])
    _legend(figure, found, drawn)
    return figure


def shown(label: str) -> str:
    """Return a label as a figure shows it: short, in one line, and never taken for a formula."""
    text = label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"
    return _plain(f" {text}" if text.startswith("_") else text)  # legends leave out what has a _


def _plain(text: str) -> str:
    """Return text that begins no formula and no new line."""
    return "".join(each if each.isprintable() else " " for each in text).replace("$", r"\$")


def _median(points: Sequence[Point]) -> Point:
    across, up = zip(*points, strict=True)
    return statistics.median(across), statistics.median(up)


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4.4), layout="constrained")
    return figure, figure.subplots()


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _score_axis(
    axes: Axes, which: Literal["x", "y"], found: Found, values: Sequence[float]
) -> None:
    """Name the axis of the score, and make it logarithmic where the values drawn ask for it."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    text = title(found, found["metric"])
    if min(values) > 0 and max(values) > WIDE * min(values):
        text += ", logarithmic"
        axes.set(**{f"{which}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    axis.set_label_text(_plain(text), fontsize=8)


def _legend(
    figure: Figure, found: Found, names: Sequence[str] | Mapping[str, Any], *, front: bool = False
) -> None:
    """Tell below the axes who is who, in the result's order."""
    from matplotlib.lines import Line2D

    drawn = looks(found)
    handles = [
        Line2D(
            [], [],
            color=drawn[entry["name"]].colour, marker=drawn[entry["name"]].shape,
            markersize=5, linestyle="", label=shown(entry["label"]),
        )
        for entry in found["entries"]
        if entry["name"] in names
    ]  # fmt: skip
    if front:
        handles.append(Line2D([], [], color="0.45", linewidth=1, label="Pareto front"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
