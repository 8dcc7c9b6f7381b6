"""Curves: the records of a run as one picture."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gancore import entrypoints
from gancore.errors import PluginError
from gancore.files.writing import replacing
from gancore.plugins import plugin_class
from gancore.report.style import our_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = "D(real) − D(fake)"
ESTIMATE = "Wasserstein estimate"
"""The title of GAP where the loss makes it one, and a plugin bounds the critic."""

PANELS = (
    (GAP, ("wasserstein",)),
    ("critic's scores", ("d_real", "d_fake")),
    ("losses", ("critic_loss", "generator_loss")),
    ("penalties", ("penalty/", "generator_penalty/")),
    ("gradient norms", ("critic_grad_norm", "generator_grad_norm")),
    ("scores", ("score/",)),
)
"""Each panel's title and the keys it shows; a key that ends in / stands for all below it."""

Records = Iterable[Mapping[str, float]]

Columns = Mapping[str, tuple["array[float]", "array[float]"]]
"""The steps and values of each key of records."""


def bounding(recipe: Mapping[str, Any]) -> list[str]:
    """Return the plugins that make D(real) − D(fake) of a run a Wasserstein estimate, if it is one.

    With the Wasserstein loss it is one, but for the factor of the critic's Lipschitz constant,
    where a plugin acts on the critic. recipe: the run's table.
    """
    if recipe["loss"]["name"] != "wasserstein":
        return []
    plugins = recipe.get("plugin", [])
    return [one.get("as", one["name"]) for one in plugins if _acts_on_critic(one["name"])]


@our_style()
def plot_curves(records: Records, path: Path, recipe: Mapping[str, Any]) -> None:
    """Draw the records of a run over generator updates as a PNG; nothing without records.

    recipe: the run's table
    """
    from matplotlib.figure import Figure

    columns = _columns(records)
    panels = _panels(columns, is_bounded=bool(bounding(recipe)))
    if not panels:
        return
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 3 * rows), layout="constrained")
    grid = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for (title, keys), axes in zip(panels.items(), grid, strict=False):
        _draw(axes, columns, keys)
        axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=10)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=100)


@our_style()
def curve_figures(records: Records, *, is_bounded: bool) -> dict[str, Figure]:
    """Draw the records of a run over generator updates: a figure a panel, by its title.

    is_bounded: whether `bounding` names a plugin
    """
    from matplotlib.figure import Figure

    figures, columns = {}, _columns(records)
    for title, keys in _panels(columns, is_bounded=is_bounded).items():
        figures[title] = Figure(figsize=(5.5, 3), layout="constrained")
        _draw(figures[title].subplots(), columns, keys)
    return figures


def _columns(records: Records) -> Columns:
    """Return what is drawn of records, which are not held themselves: they may be many."""
    columns: dict[str, tuple[array[float], array[float]]] = {}
    for record in records:
        for key, value in record.items():
            steps, values = columns.setdefault(key, (array("d"), array("d")))
            steps.append(record["step"])
            values.append(value)
    return columns


def _panels(keys: Iterable[str], *, is_bounded: bool) -> dict[str, list[str]]:
    """Return the keys of each panel that has any, by its title."""
    gap = ESTIMATE if is_bounded else GAP
    panels = {
        gap if title == GAP else title: [
            key for key in keys if any(_belongs(key, prefix) for prefix in prefixes)
        ]
        for title, prefixes in PANELS
    }
    for key in keys:
        if key.startswith("note/"):
            plugin = key.removeprefix("note/").rpartition("/")[0]
            panels.setdefault(f"notes of {plugin}", []).append(key)
    return {title: shown for title, shown in panels.items() if shown}


def _draw(axes: Axes, columns: Columns, keys: Sequence[str]) -> None:
    for key in keys:
        steps, values = columns[key]
        name = GAP if key == "wasserstein" else key
        label = name.replace("$", r"\$")  # a plugin's name may hold what begins a formula
        axes.plot(steps, values, label=label, marker="." if len(steps) < 20 else "")
    axes.set_xlabel("generator updates", fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _belongs(key: str, prefix: str) -> bool:
    return key.startswith(prefix) if prefix.endswith("/") else key == prefix


def _acts_on_critic(name: str) -> bool:
    """Whether an installed plugin trains or changes the critic; one that can't be asked may."""
    try:
        cls = plugin_class(entrypoints.get("plugin", name))
    except PluginError:
        return True
    hooks = ("penalty", "prepare_critic", "post_step")
    return not getattr(cls, "only_notes", False) and any(hasattr(cls, hook) for hook in hooks)
