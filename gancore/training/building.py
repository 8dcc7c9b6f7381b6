"""From a recipe to a trainer, and from a run folder back to its generator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from gancore import entrypoints, options
from gancore.data import Dataset
from gancore.entrypoints import Kind
from gancore.errors import CheckpointError, InputError, MissingError, PluginError
from gancore.files.reading import expanded, is_there
from gancore.files.storage import refuse_taken, refuse_unwritable
from gancore.isolation.caller import leaving_no_trace
from gancore.isolation.copies import copied
from gancore.isolation.randomness import Stream
from gancore.plugins import Loaded, Plugins, build, load
from gancore.provenance.identity import changes, made_of_in
from gancore.provenance.machine import on_threads
from gancore.recipe import Component, Recipe, Score
from gancore.report import Display
from gancore.scoring import check_scoring, check_section, score_generator, weights_sha256
from gancore.scoring.sampling import Progress, calibrated
from gancore.text import shown
from gancore.training import checkpoint
from gancore.training.device import choose_device, place
from gancore.training.idle import check_idle
from gancore.training.lazy import materialize_critic
from gancore.training.notes import Notes
from gancore.training.optimizers import averaged_weights
from gancore.training.run_folder import Run
from gancore.training.state import COPY_AGAIN
from gancore.training.tally import Tally
from gancore.training.trainer import Trainer
from gancore.training.update import check_compiles


@leaving_no_trace
def run(
    recipe: str | Path | Recipe,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
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
    a folder that can't be written to, or is taken. Raises InputError, ScoreError.
    """
    choose_device(device)
    if folder is not None:
        refuse_unwritable(folder)
        refuse_taken(folder, resume=resume)
    refuse_components(recipe)
    check_section(recipe.score)


@leaving_no_trace
def refuse_components(recipe: Recipe) -> None:
    """Raise PluginError, before data are loaded, for names, options and plugins that are wrong.

    And RecipeError for compiling where torch is too old for it.
    """
    check_compiles(recipe.train)
    for kind, section in _components(recipe).items():
        options.validate(_factory(kind, section), section.options, _section(kind))
    Plugins(load_plugins(recipe))


@leaving_no_trace
def build_trainer(recipe: Recipe, *, device: str = "auto", data: Dataset | None = None) -> Trainer:
    """Build everything that a recipe names.

    data: the recipe's data set where it is loaded already

    Networks are initialized from streams of their own, so that neither depends on the other nor
    on the plugins. Raises InputError for what is missing or does not fit.
    """
    plugins = load_plugins(recipe)
    if data is None:
        data = load_data(recipe)
    seed = recipe.train.seed
    networks = {}
    for kind, section in (("generator", recipe.generator), ("critic", recipe.critic)):
        Stream(seed, f"init/{kind}").seed_global(0)
        networks[kind] = _build(kind, section, data.shape)  # type: ignore[arg-type]
    loss, *others = plugins
    built = Trainer(
        networks["generator"],
        networks["critic"],
        data,
        loss=loss,
        plugins=others,
        train=recipe.train,
        optimizer=recipe.optimizer,
        checkpoint=recipe.checkpoint,
        sample=recipe.sample,
        log=recipe.log,
        score=recipe.score,
        flip=recipe.data.flip,
        device=device,
        recipe={},
    )
    built.recipe = _resolve(recipe, built.plugins)
    built.components = origins(recipe)
    return built


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
    for number, each in enumerate(recipe.plugin):
        Stream(seed, f"build/{each.called}").seed_global(0)
        loaded.append(load(each.name, each.options, alias=each.alias, where=f"plugin.{number}"))
    return loaded


@leaving_no_trace
def load_data(recipe: Recipe) -> Dataset:
    """Load the recipe's data set, which is one for all seeds. Raises PluginError and DataError."""
    Stream(0, f"build/dataset {recipe.data.name}").seed_global(0)
    data = _build("dataset", recipe.data)
    if not isinstance(data, Dataset):
        raise PluginError(
            f"data: {recipe.data.name!r} made a {type(data).__name__}, expected a gancore.Dataset"
        )
    return data


def check(recipe: Recipe) -> list[str]:
    """Check the names and options in a recipe, without loading data or building networks.

    Returns a line for each component that is not installed, and for each option and plugin that
    has no effect. Raises PluginError for a name close
    to an installed one, wrong options, and plugins that don't go together.
    """
    missing = []
    for kind, section in _components(recipe).items():
        try:
            options.validate(_factory(kind, section), section.options, _section(kind))
        except MissingError as error:
            if error.close:
                raise
            missing.append(f"{kind} {section.name!r} is not installed here")
    if recipe.score.weights and not Path(recipe.score.weights).is_file():
        missing.append(f"score.weights: there is no file {recipe.score.weights} here")
    try:
        check_section(recipe.score.model_copy(update={"weights": None}))
    except MissingError as error:
        if error.close:
            raise
        missing.append(str(error))
    try:
        idle = check_idle(recipe, Plugins(load_plugins(recipe)))
    except MissingError as error:
        if error.close:
            raise
        return [*missing, str(error)]
    return [*missing, *idle]


def origins(recipe: Recipe) -> dict[str, str]:
    """Return what brought the networks and extractor of a recipe, and its weights file's hash.

    What brought the data does not matter: samples have a hash of their own. Raises PluginError.
    """
    found = {
        kind: entrypoints.origin(entrypoints.get(kind, section.name))
        for kind, section in _components(recipe).items()
        if kind != "dataset"
    }
    for each in entrypoints.find("extractor"):  # Inception's is torch-fidelity's
        if each.name == recipe.score.extractor:
            found["extractor"] = entrypoints.origin(each)
    weights = Path(recipe.score.weights or "")
    is_named = recipe.score.weights and is_there(weights)
    named = {"score.weights": weights_sha256(weights)} if is_named else {}
    return {**{str(kind): each for kind, each in found.items()}, **named}


@leaving_no_trace
def score_run(
    run: str | Path | Run,
    section: Score | Mapping[str, Any] | None = None,
    *,
    generator: nn.Module | None = None,
    data: Dataset | Tensor | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Score a run and write its scores.json; return {"scores": …, "protocol": …, "step": …}.

    section    `[score]`, whole or the keys in which it differs from the run's own
    generator, data
               those of a run that was made from Python: a network of the same build, the samples

    Scores under the same protocol are added to those there; under another they replace them.
    That the run was trained on other data is told. Raises InputError and ScoreError, and does so
    before it samples for what can be known by then.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    recipe = run.recipe
    if not isinstance(section, Score):
        section = Score.of({**recipe.score.model_dump(exclude_none=True), **(section or {})})
    if not section.metrics:
        raise InputError(
            f"{shown(str(run.path), 4096)}: its recipe asks for no scores (score.metrics = []), so "
            "say which: --metrics fid,isc,kid,prc of images, or --metrics w2 of points"
        )
    check_section(section)
    choose_device(device)
    refuse_unwritable(run.path)
    _ = run.scores  # a broken file is told before the work, not after it
    for made, given in ((recipe.generator, generator), (recipe.data, data)):
        refuse_python(run, made, given, "gancore.score_run({run!r}, generator=…, data=…)")
    saved = _latest(run, tell)
    data = dataset_of(run, data)
    check_scoring(data, section)
    if lines := changes(made_of_in(saved.state), {"data": data.fingerprint}):
        tell(f"scored against other data than the run was trained on: {lines[0]}")
    found = score_generator(
        _generator(run, saved, generator, device, progress),
        data,
        section,
        seed=run.seed,
        device=choose_device(device),
        progress=progress,
    )
    notes = Notes({}, data, Tally.of(saved.state), lambda text: None)
    return run.write_scores(notes.scored(found, saved.step), saved.step)


@leaving_no_trace
def load_generator(
    run: str | Path | Run,
    *,
    generator: nn.Module | None = None,
    device: str = "cpu",
    best: bool = False,
    progress: Progress | None = None,
) -> nn.Module:
    """Return a run's trained generator, ready to sample from: in eval mode, calibrated.

    best: that of the step which scored best during the run, not that of the last one
    progress: of the calibration, where the checkpoint's step had neither grid nor scores, and it
    takes longer than two seconds

    It has the moving average's weights where there are any. For a run made from Python, whose
    recipe can't name the network, give a `generator` of the same build. Raises InputError,
    CheckpointError.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    found = checkpoint.load_best(run.checkpoints) if best else _latest(run)
    return _generator(run, found, generator, device, progress)


def _generator(
    run: Run,
    found: checkpoint.Checkpoint,
    generator: nn.Module | None,
    device: str,
    progress: Progress | None,
) -> nn.Module:
    if generator is None:
        generator = _rebuild(run, "generator")
    statistics = found.tensors.get("calibrated", {})
    _fill(generator, {**averaged_weights(found.tensors), **statistics}, run)
    frozen = found.state.get("frozen")  # which older checkpoints don't say
    if frozen is not None and not (isinstance(frozen, list) and all(map(_is_text, frozen))):
        raise CheckpointError(
            f"{run.path}: the checkpoint's state.json: frozen: expected names of modules. "
            f"{COPY_AGAIN}"
        )
    generator = place(generator, choose_device(device))
    if statistics:
        return copied(generator, "generator").eval()
    return calibrated(generator, run.seed, frozen=frozen, progress=progress)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


@leaving_no_trace
def load_critic(
    run: str | Path | Run,
    *,
    critic: nn.Module | None = None,
    device: str = "cpu",
) -> nn.Module:
    """Return a run's critic as its latest checkpoint has it, in eval mode.

    For a run made from Python, whose recipe can't name the network, give a `critic` of the same
    build, prepared by the plugins that prepare one (spectral norm). Raises InputError,
    CheckpointError.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    found = _latest(run)
    if critic is None:
        critic = _rebuild(run, "critic")
        materialize_critic(critic, load_data(run.recipe), 2, run.seed)
        Plugins(load_plugins(run.recipe)).prepare_critic(critic)
    _fill(critic, found.tensors["critic"], run)
    return place(critic, choose_device(device)).eval()


def _latest(run: Run, tell: Callable[[str], None] = warnings.warn) -> checkpoint.Checkpoint:
    found = checkpoint.latest(run.checkpoints, tell=tell)
    if found is None:
        raise CheckpointError(f"{run.path} has no checkpoint yet: run it first")
    return found


def _rebuild(run: Run, kind: Literal["generator", "critic"]) -> nn.Module:
    """Build a run's network as its recipe says."""
    recipe = run.recipe
    section = recipe.generator if kind == "generator" else recipe.critic
    refuse_python(run, section, None, f"gancore.load_{kind}({{run!r}}, {kind}=…)")
    network: nn.Module = _build(kind, section, load_data(recipe).shape)
    return network


def refuse_python(run: Run, section: Component, given: object, call: str) -> None:
    """Refuse what a run was given in Python, and no recipe can name, unless it is given again."""
    if given is None and section.name.startswith(entrypoints.MADE_IN_PYTHON):
        raise PluginError(
            f"{shown(str(run.path), 4096)} was made from Python with {shown(section.name)}, which "
            f"no recipe can build: from Python, {call.format(run=str(run.path))}"
        )


def dataset_of(run: Run, data: Dataset | Tensor | None) -> Dataset:
    """Return a run's data, where they are not given its recipe's."""
    if data is None:
        return load_data(run.recipe)
    name = run.recipe.data.name.removeprefix(entrypoints.MADE_IN_PYTHON)
    return data if isinstance(data, Dataset) else Dataset(name, data)


def _fill(module: nn.Module, weights: Mapping[str, Tensor], run: Run) -> None:
    try:
        module.load_state_dict(weights)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = shown(" ".join(str(error).split()), 1000)
        raise CheckpointError(f"{run.path}: its weights do not fit: {reason}") from error


def _components(recipe: Recipe) -> dict[Kind, Component]:
    return {"dataset": recipe.data, "generator": recipe.generator, "critic": recipe.critic}


def _section(kind: Kind) -> str:
    return "data" if kind == "dataset" else kind


def _factory(kind: Kind, section: Component) -> Callable[..., Any]:
    factory: Callable[..., Any] = entrypoints.load(entrypoints.get(kind, section.name))
    return factory


def _build(kind: Kind, section: Component, *arguments: Any) -> Any:
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
