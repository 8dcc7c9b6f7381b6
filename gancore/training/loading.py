"""From a run folder back to its networks and data, and to scores of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gancore import entrypoints
from gancore.data import Dataset
from gancore.errors import CheckpointError, InputError, PluginError
from gancore.files.storage import refuse_unwritable
from gancore.isolation.caller import leaving_no_trace
from gancore.isolation.copies import copied
from gancore.plugins import Plugins
from gancore.provenance.identity import MadeOf, changes
from gancore.recipe import Component, Recipe, Score, Value
from gancore.scoring import check_scoring, check_section, score_generator
from gancore.scoring.protocol import Scores
from gancore.scoring.sampling import Progress, calibrated
from gancore.text import shown
from gancore.training import checkpoint
from gancore.training.building import build_component, load_data, load_plugins
from gancore.training.checkpoint import Checkpoint
from gancore.training.device import choose_device, place
from gancore.training.lazy import materialize_critic
from gancore.training.notes import Notes
from gancore.training.optimizers import averaged_weights
from gancore.training.run_folder import Run
from gancore.training.tally import Tally

Tell = Callable[[str], None]


class Loader:
    """Makes the networks of a run anew from its recipe and one of its checkpoints.

    recipe  what the run's recipe.toml holds
    saved   the checkpoint
    data    the samples of a run that was made from Python; by default the recipe's, which are
            loaded when they are first needed, and once
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        saved: Checkpoint,
        *,
        data: Dataset | Tensor | None = None,
    ) -> None:
        self.run, self.recipe, self.saved = run, recipe, saved
        self._data = data

    @classmethod
    def of(cls, run: str | Path | Run, *, best: bool = False) -> Loader:
        """Read the recipe and the latest checkpoint of a run, or that of the best step.

        Raises InputError, CheckpointError.
        """
        run = run if isinstance(run, Run) else Run.open(run)
        saved = checkpoint.load_best(run.checkpoints) if best else latest(run)
        return cls(run, run.read_recipe(), saved)

    @cached_property
    def data(self) -> Dataset:
        """The samples that the run was trained on. Raises PluginError, DataError."""
        if self._data is None:
            return load_data(self.recipe)
        if isinstance(self._data, Dataset):
            return self._data
        return Dataset(self.recipe.data.name.removeprefix(entrypoints.MADE_IN_PYTHON), self._data)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample. An earlier gancore's checkpoint lacks it, and the data tell."""
        shape = self.saved.about().shape
        return self.data.shape if shape is None else tuple(shape)

    @leaving_no_trace
    def generator(
        self, given: nn.Module | None = None, *, device: str, progress: Progress | None = None
    ) -> nn.Module:
        """Return the trained generator in eval mode, calibrated. Raises as `load_generator`."""
        network = given if given is not None else self._rebuilt("generator")
        frozen = self.saved.about().frozen
        statistics = self.saved.tensors.get("calibrated", {})
        self._fill(network, {**averaged_weights(self.saved.tensors), **statistics})
        network = place(network, choose_device(device))
        if statistics:
            return copied(network, "generator").eval()
        return calibrated(network, self.recipe.train.seed, frozen=frozen, progress=progress)

    @leaving_no_trace
    def critic(self, given: nn.Module | None = None, *, device: str) -> nn.Module:
        """Return the trained critic in eval mode. Raises as `load_critic`."""
        network = given
        if network is None:
            network = self._rebuilt("critic")
            dtype = torch.uint8 if len(self.shape) == 3 else torch.float32
            samples = Dataset("zeros", torch.zeros(2, *self.shape, dtype=dtype))
            materialize_critic(network, samples, 2, self.recipe.train.seed)
            Plugins(load_plugins(self.recipe)).prepare_critic(network)
        self._fill(network, self.saved.tensors["critic"])
        return place(network, choose_device(device)).eval()

    def _rebuilt(self, kind: Literal["generator", "critic"]) -> nn.Module:
        """Build a network as the recipe says."""
        section = self.recipe.generator if kind == "generator" else self.recipe.critic
        refuse_python(self.run, f"gancore.load_{kind}({{run!r}}, {kind}=…)", (section, None))
        network: nn.Module = build_component(kind, section, self.shape)
        return network

    def _fill(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        try:
            module.load_state_dict(weights)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            reason = shown(" ".join(str(error).split()), 1000)
            raise CheckpointError(f"{self.run.path}: its weights do not fit: {reason}") from error


@leaving_no_trace
def score_run(
    run: str | Path | Run,
    section: Score | Mapping[str, Value] | None = None,
    *,
    generator: nn.Module | None = None,
    data: Dataset | Tensor | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    tell: Tell = lambda line: None,
) -> Scores:
    """Score a run, write its scores.json, and return what that holds.

    section    `[score]`, whole or the keys in which it differs from the run's own
    generator, data
               those of a run that was made from Python: a network of the same build, the samples

    Scores under the same protocol are added to those there; under another they replace them.
    A line tells when the run was trained on other data. Raises InputError and ScoreError, before
    it samples where that can be known by then.
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
    before = run.read_scores()  # a broken file is told before the work, not after it
    again = "gancore.score_run({run!r}, generator=…, data=…)"
    refuse_python(run, again, (recipe.generator, generator), (recipe.data, data))
    loader = Loader(run, recipe, latest(run, tell), data=data)
    check_scoring(loader.data, section)
    if lines := changes(loader.saved.about().made_of, MadeOf(data=loader.data.fingerprint)):
        tell(f"scored against other data than the run was trained on: {lines[0]}")
    taken = score_generator(
        loader.generator(generator, device=device, progress=progress),
        loader.data,
        section,
        seed=recipe.train.seed,
        device=choose_device(device),
        progress=progress,
    )
    notes = Notes({}, loader.data, Tally.of(loader.saved.state), lambda text: None)
    assert taken is not None  # this process is the first
    return run.write_scores(notes.scored(taken, loader.saved.step), before)


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

    It has the moving average's weights where there are any. The data set is not needed. For a run
    made from Python, whose recipe can't name the network, give a `generator` of the same build.
    Raises InputError, CheckpointError.
    """
    return Loader.of(run, best=best).generator(generator, device=device, progress=progress)


def load_critic(
    run: str | Path | Run,
    *,
    critic: nn.Module | None = None,
    device: str = "cpu",
) -> nn.Module:
    """Return a run's critic as its latest checkpoint has it, in eval mode.

    The data set is not needed. For a run made from Python, whose recipe can't name the network,
    give a `critic` of the same build, prepared by the plugins that prepare one (spectral norm).
    Raises InputError, CheckpointError.
    """
    return Loader.of(run).critic(critic, device=device)


def latest(run: Run, tell: Tell = warnings.warn) -> Checkpoint:
    """Load a run's latest checkpoint. Raises CheckpointError where there is none to use."""
    saved = checkpoint.latest(run.checkpoints, tell=tell)
    if saved is None:
        raise CheckpointError(f"{run.path} has no checkpoint yet: run it first")
    return saved


def refuse_python(
    run: Run, call: str, *parts: tuple[Component, nn.Module | Dataset | Tensor | None]
) -> None:
    """Refuse what a run was given in Python, and no recipe can name, unless it is given again.

    call   by which that is
    parts  sections of the recipe, and what is given for them
    """
    for section, given in parts:
        if given is None and section.name.startswith(entrypoints.MADE_IN_PYTHON):
            raise PluginError(
                f"{shown(str(run.path), 4096)} was made from Python with {shown(section.name)}, "
                f"which no recipe can build: from Python, {call.format(run=str(run.path))}"
            )
