"""From a run folder back to its networks and data, and to scores of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from gancore import entrypoints
from gancore.data import Dataset
from gancore.errors import CheckpointError, InputError, PluginError
from gancore.files.storage import refuse_unwritable
from gancore.isolation.caller import leaving_no_trace
from gancore.isolation.copies import copied
from gancore.plugins import Plugins
from gancore.provenance.identity import MadeOf, changes, made_of_in
from gancore.recipe import Component, Score
from gancore.scoring import check_scoring, check_section, score_generator
from gancore.scoring.protocol import Scores
from gancore.scoring.sampling import Progress, calibrated
from gancore.text import shown
from gancore.training import checkpoint
from gancore.training.building import build_component, load_data, load_plugins
from gancore.training.device import choose_device, place
from gancore.training.lazy import materialize_critic
from gancore.training.notes import Notes
from gancore.training.optimizers import averaged_weights
from gancore.training.run_folder import Run
from gancore.training.state import COPY_AGAIN
from gancore.training.tally import Tally


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
) -> Scores:
    """Score a run and write its scores.json; return what is in it.

    section    `[score]`, whole or the keys in which it differs from the run's own
    generator, data
               those of a run that was made from Python: a network of the same build, the samples

    Scores under the same protocol are added to those there; under another they replace them.
    That the run was trained on other data is told. Raises InputError and ScoreError, and does so
    before it samples for what can be known by then.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    recipe = run.read_recipe()
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
    run.read_scores()  # a broken file is told before the work, not after it
    for made, given in ((recipe.generator, generator), (recipe.data, data)):
        refuse_python(run, made, given, "gancore.score_run({run!r}, generator=…, data=…)")
    saved = _latest(run, tell)
    data = dataset_of(run, data)
    check_scoring(data, section)
    if lines := changes(made_of_in(saved.state), MadeOf(data=data.fingerprint)):
        tell(f"scored against other data than the run was trained on: {lines[0]}")
    found = score_generator(
        _generator(run, saved, generator, device, progress),
        data,
        section,
        seed=recipe.train.seed,
        device=choose_device(device),
        progress=progress,
    )
    notes = Notes({}, data, Tally.of(saved.state), lambda text: None)
    scored = {**notes.scored(found, saved.step), "step": saved.step}
    return run.write_scores(Scores.model_validate(scored))


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
    return calibrated(generator, run.read_recipe().train.seed, frozen=frozen, progress=progress)


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
        recipe = run.read_recipe()
        materialize_critic(critic, load_data(recipe), 2, recipe.train.seed)
        Plugins(load_plugins(recipe)).prepare_critic(critic)
    _fill(critic, found.tensors["critic"], run)
    return place(critic, choose_device(device)).eval()


def _latest(run: Run, tell: Callable[[str], None] = warnings.warn) -> checkpoint.Checkpoint:
    found = checkpoint.latest(run.checkpoints, tell=tell)
    if found is None:
        raise CheckpointError(f"{run.path} has no checkpoint yet: run it first")
    return found


def _rebuild(run: Run, kind: Literal["generator", "critic"]) -> nn.Module:
    """Build a run's network as its recipe says."""
    recipe = run.read_recipe()
    section = recipe.generator if kind == "generator" else recipe.critic
    refuse_python(run, section, None, f"gancore.load_{kind}({{run!r}}, {kind}=…)")
    network: nn.Module = build_component(kind, section, load_data(recipe).shape)
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
        return load_data(run.read_recipe())
    name = run.read_recipe().data.name.removeprefix(entrypoints.MADE_IN_PYTHON)
    return data if isinstance(data, Dataset) else Dataset(name, data)


def _fill(module: nn.Module, weights: Mapping[str, Tensor], run: Run) -> None:
    try:
        module.load_state_dict(weights)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = shown(" ".join(str(error).split()), 1000)
        raise CheckpointError(f"{run.path}: its weights do not fit: {reason}") from error
