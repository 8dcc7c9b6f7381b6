"""From a recipe to a trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from gancore import entrypoints, options
from gancore.data import Dataset
from gancore.entrypoints import Kind
from gancore.errors import MissingError, PluginError
from gancore.files.reading import expanded, is_there
from gancore.files.storage import refuse_taken, refuse_unwritable
from gancore.isolation.caller import leaving_no_trace
from gancore.isolation.randomness import Stream
from gancore.options import build
from gancore.plugins import Loaded, Plugins, load
from gancore.provenance.machine import on_threads
from gancore.recipe import Component, Recipe, Settings
from gancore.recipe.overrides import Overrides
from gancore.report import Display
from gancore.scoring import check_section, weights_sha256
from gancore.training.compiled import check_compiles
from gancore.training.device import Host, choose_device
from gancore.training.idle import check_idle
from gancore.training.learner import Learner
from gancore.training.run_folder import Run
from gancore.training.trainer import Trainer


@leaving_no_trace
def run(
    recipe: str | Path | Recipe,
    out: str | Path | None = None,
    overrides: Overrides = (),
    *,
    device: str = "auto",
    resume: bool = False,
    threads: int | None = None,
    display: Display | None = None,
) -> Run:
    """Train and score a recipe; return its run folder, by default runs/<recipe>-seed<seed>.

    threads: how many to compute on; if None, a resumed run's as before, or torch's number now

    Raises GancoreError for whatever stands in the way.
    """
    if isinstance(recipe, Recipe):
        loaded, name = recipe, "recipe"
    else:
        loaded, name = Recipe.load(recipe, overrides), Path(recipe).stem
    folder = Path(out) if out is not None else default_folder(name, loaded)
    refuse(loaded, folder, device=device, resume=resume)
    with on_threads(threads):
        made = build_trainer(loaded, device=device)
        return made.run(folder, resume=resume, threads=threads, display=display)


def default_folder(name: str, recipe: Recipe) -> Path:
    """Return the folder of a run whose user names none."""
    return Path("runs", f"{name}-seed{recipe.train.seed}")


@leaving_no_trace
def refuse(
    recipe: Recipe, folder: Path | None = None, *, device: str = "cpu", resume: bool = False
) -> None:
    """Refuse, before data are loaded, what no data would mend.

    That is a device that is not there, names and options that are wrong, scores that can't be, and
    a folder that can't be written to, or is taken. Plugins are refused by `build_trainer` and
    `resolve`, before data too. Raises InputError, ScoreError.
    """
    choose_device(device)
    if folder is not None:
        refuse_unwritable(folder)
        refuse_taken(folder, resume=resume)
    _refuse_components(recipe)
    check_section(recipe.score)


@leaving_no_trace
def refuse_components(recipe: Recipe) -> None:
    """Raise PluginError, before data are loaded, for names, options and plugins that are wrong.

    And RecipeError for compiling where torch is too old for it.
    """
    _refuse_components(recipe)
    Plugins(load_plugins(recipe))


def _refuse_components(recipe: Recipe) -> None:
    check_compiles(recipe.train)
    for kind, section in _components(recipe).items():
        options.validate(_factory(kind, section), section.options, _section(kind))


@leaving_no_trace
def build_trainer(recipe: Recipe, *, device: str = "auto", data: Dataset | None = None) -> Trainer:
    """Build everything that a recipe names.

    data: the recipe's data set where it is loaded already

    Networks are initialized from streams of their own, so that neither depends on the other nor
    on the plugins. Raises InputError for what is missing or does not fit.
    """
    check_compiles(recipe.train)
    host = Host.join(device, recipe.train.seed)
    plugins = Plugins(load_plugins(recipe), host.randomness)
    if data is None:
        data = load_data(recipe)
    generator = _initialized("generator", recipe.generator, recipe.train.seed, data)
    critic = _initialized("critic", recipe.critic, recipe.train.seed, data)
    settings = Settings.of(recipe)
    learner = Learner(generator, critic, data.to(host.device), plugins, settings, host)
    return Trainer.of(learner, _resolve(recipe, plugins), origins(recipe))


def _initialized(kind: Kind, section: Component, seed: int, data: Dataset) -> nn.Module:
    Stream(seed, f"init/{kind}").seed_global(0)
    network: nn.Module = build_component(kind, section, data.shape)
    return network


def resolve(recipe: Recipe) -> dict[str, Any]:
    """Return the table that a run of this recipe saves: every option, absolute data paths.

    Neither data nor networks are built. Raises as `refuse`.
    """
    refuse(recipe)
    return _resolve(recipe, Plugins(load_plugins(recipe)))


@leaving_no_trace
def load_plugins(recipe: Recipe) -> list[Loaded]:
    """Load the loss, then the plugins that the recipe names, and no others.

    What a plugin draws when it is built depends on the seed and its name alone.
    """
    seed = recipe.train.seed
    Stream(seed, f"build/{recipe.loss.name}").seed_global(0)
    loaded = [load(recipe.loss.name, recipe.loss.options, where="loss")]
    for number, section in enumerate(recipe.plugin):
        Stream(seed, f"build/{section.called}").seed_global(0)
        where = f"plugin.{number}"
        loaded.append(load(section.name, section.options, alias=section.alias, where=where))
    return loaded


@leaving_no_trace
def load_data(recipe: Recipe) -> Dataset:
    """Load the recipe's data set, which is one for all seeds. Raises PluginError and DataError."""
    Stream(0, f"build/dataset {recipe.data.name}").seed_global(0)
    data = build_component("dataset", recipe.data)
    if not isinstance(data, Dataset):
        raise PluginError(
            f"data: {recipe.data.name!r} made a {type(data).__name__}, expected a gancore.Dataset"
        )
    return data


def check_recipe(recipe: Recipe) -> list[str]:
    """Check the names and options in a recipe, without loading data or building networks.

    Returns a line for each component that is not installed, for data and weights that are not here,
    and for each option and plugin that has no effect. Raises PluginError for a name close to an
    installed one, wrong options, and plugins that don't go together.
    """
    missing = []
    for kind, section in _components(recipe).items():
        try:
            options.validate(_factory(kind, section), section.options, _section(kind))
        except MissingError as error:
            if error.close:
                raise
            missing.append(f"{kind} {section.name!r} is not installed here")
    path = recipe.data.options.get("path")
    if isinstance(path, str) and not is_there(expanded(path)):
        missing.append(f"data.path: there is no file or folder {path} here")
    if recipe.score.weights and not Path(recipe.score.weights).is_file():
        missing.append(f"score.weights: there is no file {recipe.score.weights} here")
    try:
        check_section(recipe.score.model_copy(update={"weights": None}))
    except MissingError as error:
        if error.close:
            raise
        missing.append(str(error))
    try:
        idle = check_idle(Settings.of(recipe), Plugins(load_plugins(recipe)))
    except MissingError as error:
        if error.close:
            raise
        return [*missing, str(error)]
    return [*missing, *idle]


def origins(recipe: Recipe) -> dict[str, str]:
    """Return what brought networks, extractor and metrics of a recipe, and its weights' hash.

    What brought the data does not matter: samples have a hash of their own. Raises PluginError.
    """
    made_by: dict[str, str] = {
        kind: entrypoints.origin(entrypoints.get(kind, section.name))
        for kind, section in _components(recipe).items()
        if kind != "dataset"
    }
    for extractor in entrypoints.find("extractor"):  # Inception's is torch-fidelity's
        if extractor.name == recipe.score.extractor:
            made_by["extractor"] = entrypoints.origin(extractor)
    for name in recipe.score.metrics:
        metric = entrypoints.get("metric", name)
        if metric.distribution != "gancore":
            made_by[f"metric {name}"] = entrypoints.origin(metric)
    if recipe.score.weights and is_there(Path(recipe.score.weights)):
        made_by["score.weights"] = weights_sha256(Path(recipe.score.weights))
    return made_by


def _components(recipe: Recipe) -> dict[Kind, Component]:
    return {"dataset": recipe.data, "generator": recipe.generator, "critic": recipe.critic}


def _section(kind: Kind) -> str:
    return "data" if kind == "dataset" else kind


def _factory(kind: Kind, section: Component) -> Callable[..., Any]:
    factory: Callable[..., Any] = entrypoints.load(entrypoints.get(kind, section.name))
    return factory


def build_component(kind: Kind, section: Component, *arguments: Any) -> Any:
    """Build what a section names, with its options. Raises PluginError."""
    return build(_factory(kind, section), section.options, _section(kind), *arguments)


def _resolve(recipe: Recipe, plugins: Plugins) -> dict[str, Any]:
    return {
        **recipe.table(),
        "data": {**_resolved("dataset", recipe.data), "flip": recipe.data.flip},
        "generator": _resolved("generator", recipe.generator),
        "critic": _resolved("critic", recipe.critic),
        **plugins.tables(),
    }


def _resolved(kind: Kind, section: Component) -> dict[str, Any]:
    """Return a section with every option, so that it means the same from any folder."""
    table = options.complete(_factory(kind, section), section.options)
    if "path" in table:
        table["path"] = str(expanded(table["path"]).absolute())
    return {"name": section.name, **table}
