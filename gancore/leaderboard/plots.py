"""Plots: the result of a board as figures, an entry in the same colour and shape in each."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, cycle
from typing import TYPE_CHECKING, Literal, NamedTuple

from gancore.leaderboard.job import Job
from gancore.leaderboard.result import Result
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

Cost = Literal["time_ratio", "flops_ratio"]
"""The ratios that scores are drawn against."""

Point = tuple[float, float]


class Style(NamedTuple):
    """How an entry is drawn."""

    colour: str
    shape: str


class Curve(NamedTuple):
    """An entry's scores while it trained: of each run, and their median at each update."""

    runs: list[list[Point]]
    median: list[Point]


def styles(result: Result) -> dict[str, Style]:
    """Return how each entry is drawn, by its name."""
    others = [entry.name for entry in result.entries if entry.name != result.baseline]
    drawn = zip(others, cycle(COLOURS), cycle(SHAPES[1:]), strict=False)
    return {result.baseline: Style(BLACK, SHAPES[0])} | {
        name: Style(colour, shape) for name, colour, shape in drawn
    }


def pareto(points: Sequence[Point], *, higher_is_better: bool) -> list[bool]:
    """Return of each (cost, score) whether no other is as good in both and better in one."""
    sign = -1 if higher_is_better else 1
    signed = [(cost, sign * score) for cost, score in points]
    return [
        not any(one[0] <= mine[0] and one[1] <= mine[1] and one != mine for one in signed)
        for mine in signed
    ]


def curves(result: Result, jobs: Sequence[Job], over: str) -> dict[str, Curve]:
    """Return the scores that finished runs took while they trained, by entry.

    over: update or seconds; the median is then over the seeds' seconds too.
    """
    key = f"score/{result.metric}"
    drawn = {}
    for entry in result.entries:
        runs = [
            [
                (record.values["update"], (record.values[over], record.values[key]))
                for record in job.whole_records()
                if key in record.values
            ]
            for job in jobs
            if job.entry == entry.name and job.state == "done"
        ]
        at: dict[float, list[Point]] = {}
        for update, point in chain.from_iterable(runs):
            at.setdefault(update, []).append(point)
        if at:
            lines = [[point for _, point in run] for run in runs]
            drawn[entry.name] = Curve(lines, [_median(at[update]) for update in sorted(at)])
    return drawn


def estimates(result: Result, jobs: Sequence[Job]) -> dict[str, list[Point]]:
    """Return each finished run's last D(real) − D(fake) with its score, by entry."""
    last = {
        (job.entry, job.seed): records[-1].values["wasserstein"]
        for job in jobs
        if job.state == "done"
        and (records := [*job.whole_records()])
        and "wasserstein" in records[-1].values
    }
    return {
        entry.name: [
            (last[entry.name, seed], value)
            for seed, value in zip(score.seeds, score.values, strict=True)
            if (entry.name, seed) in last
        ]
        for entry, score in result.ranked()
    }


@our_style()
def plot_intervals(result: Result) -> Figure:
    """Draw a line an entry, the best at the top: all scores, their median and its interval."""
    from matplotlib.figure import Figure

    ranked, drawn = result.ranked(), styles(result)
    figure = Figure(figsize=(5.5, 0.9 + 0.35 * len(ranked)), layout="constrained")
    axes = figure.subplots()
    for row, (entry, score) in enumerate(ranked):
        colour, shape = drawn[entry.name]
        axes.plot([score.low, score.high], [row, row], color=colour, linewidth=2)
        axes.scatter(
            score.values, [row + BELOW] * len(score.values),
            s=10, facecolors="none", edgecolors=colour, linewidths=0.8,
        )  # fmt: skip
        axes.plot(score.median, row, marker=shape, color=colour, markersize=6)
        if entry.name == result.baseline:
            axes.axvline(score.median, color=colour, linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(range(len(ranked)), [in_figure(entry.label) for entry, _ in ranked], fontsize=8)
    axes.set_ylim(len(ranked) - 0.5, -0.5)
    _finish(axes, result, [value for _, score in ranked for value in score.values])
    return figure


@our_style()
def plot_curves(result: Result, drawn: Mapping[str, Curve], over: str) -> Figure:
    """Draw the median of each entry's `curves` as a line, and faintly each run's own."""
    figure, axes = _figure()
    for name, (colour, shape) in styles(result).items():
        if name not in drawn:
            continue
        for points in drawn[name].runs:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.6, alpha=0.25)
        axes.plot(
            *zip(*drawn[name].median, strict=True),
            color=colour, marker=shape, markersize=4, linewidth=1.4, zorder=3,
        )  # fmt: skip
    values = [y for curve in drawn.values() for points in curve.runs for _, y in points]
    _finish(axes, result, values, AXES[over])
    return _with_legend(figure, result, drawn)


@our_style()
def plot_cost(result: Result, cost: Cost) -> Figure:
    """Draw scores with their intervals against a cost, and the Pareto front as steps.

    Entries without the cost are left out.
    """
    figure, axes = _figure()
    drawn = styles(result)
    priced = [
        (entry.name, ratio, score)
        for entry, score in result.ranked()
        if (ratio := getattr(entry.cost, cost)) is not None
    ]
    points = [(ratio, score.median) for _, ratio, score in priced]
    best = pareto(points, higher_is_better=result.metric in result.higher_is_better)
    front = sorted(point for point, on in zip(points, best, strict=True) if on)
    axes.step(
        *zip(*front, strict=True),
        where="post", color="0.45", linewidth=1, zorder=0, label="Pareto front",
    )  # fmt: skip
    for name, ratio, score in priced:
        colour, shape = drawn[name]
        axes.plot([ratio, ratio], [score.low, score.high], color=colour, alpha=0.5)
        axes.plot(ratio, score.median, marker=shape, color=colour, markersize=7)
    _finish(axes, result, [y for _, y in points], AXES[cost])
    return _with_legend(figure, result, [name for name, *_ in priced], front=True)


@our_style()
def plot_estimates(result: Result, drawn: Mapping[str, Sequence[Point]]) -> Figure:
    """Draw a dot a run: its score against its D(real) − D(fake), which may be negative."""
    figure, axes = _figure()
    for name, (colour, shape) in styles(result).items():
        if drawn.get(name):
            across, up = zip(*drawn[name], strict=True)
            axes.scatter(
                across, up, marker=shape, color=colour, s=22, alpha=0.75, linewidths=0,
            )  # fmt: skip
    sizes = [abs(x) for points in drawn.values() for x, _ in points if x]
    if sizes and max(sizes) > WIDE * statistics.median(sizes):
        # a critic that nothing holds is beyond all others
        axes.set_xscale("symlog", linthresh=statistics.median(sizes))
        axes.xaxis.set_major_formatter("{x:g}")
    _finish(axes, result, [y for points in drawn.values() for _, y in points], GAP)
    return _with_legend(figure, result, drawn)


def in_figure(label: str) -> str:
    """Return a label as a figure shows it: short, in one line, and never taken for a formula."""
    text = label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"
    return _plain(f" {text}" if text.startswith("_") else text)  # legends leave out what has a _


def _plain(text: str) -> str:
    """Return text that begins no formula and no new line."""
    return "".join(letter if letter.isprintable() else " " for letter in text).replace("$", r"\$")


def _median(points: Sequence[Point]) -> Point:
    across, up = zip(*points, strict=True)
    return statistics.median(across), statistics.median(up)


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4.4), layout="constrained")
    return figure, figure.subplots()


def _finish(axes: Axes, result: Result, values: Sequence[float], across: str = "") -> None:
    """Name the axes: scores go up where something else goes across, which `across` names.

    The axis of the scores is logarithmic where the values drawn ask for it.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if across:
        axes.set_xlabel(across, fontsize=8)
    axis = axes.yaxis if across else axes.xaxis
    text = title(result, result.metric)
    if min(values) > 0 and max(values) > WIDE * min(values):
        text += ", logarithmic"
        axes.set(**{"yscale" if across else "xscale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    axis.set_label_text(_plain(text), fontsize=8)


def _with_legend(
    figure: Figure, result: Result, names: Collection[str], *, front: bool = False
) -> Figure:
    """Tell below the axes who is who, in the result's order."""
    from matplotlib.lines import Line2D

    drawn = styles(result)
    handles = [
        Line2D(
            [], [],
            color=drawn[entry.name].colour, marker=drawn[entry.name].shape,
            markersize=5, linestyle="", label=in_figure(entry.label),
        )
        for entry in result.entries
        if entry.name in names
    ]  # fmt: skip
    if front:
        handles.append(Line2D([], [], color="0.45", linewidth=1, label="Pareto front"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return figure
