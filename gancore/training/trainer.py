"""The trainer: what Python users make and call; a learner, and the session that runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from gancore.data import Dataset
from gancore.files.stored import Json
from gancore.isolation.caller import leaving_no_trace
from gancore.plugins import Loaded, Plugins, load, wrap
from gancore.provenance.identity import network_origin
from gancore.recipe import (
    CheckpointSection,
    DataSection,
    Log,
    Optimizer,
    Sample,
    Score,
    Settings,
    Train,
    Value,
)
from gancore.report import Display
from gancore.scoring.protocol import Scores
from gancore.scoring.sampling import Progress
from gancore.training.checkpoint import Tensors
from gancore.training.compiled import check_compiles
from gancore.training.device import Host
from gancore.training.idle import warn_idle
from gancore.training.learner import Learner
from gancore.training.plan import Update
from gancore.training.run_folder import Run
from gancore.training.session import Session


class Trainer:
    """Trains a generator against a critic with a loss and plugins.

    generator  any module (B, latent) → (B, *) with an attribute `latent`, the noise's length;
               its samples have the data's shape, and images lie in [−1, 1]
    critic     any module (B, *) → (B,), (B, 1) or (B, 1, 1, 1)
    data       a Dataset, or its samples: uint8 (N, C, H, W), which the networks see in [−1, 1],
               or float32 (N, d)
    loss       an installed loss by name, or a plugin
    plugins    plugins, or a mapping of names to plugins, in the order in which they act
    train, optimizer, checkpoint, sample, log, score
               sections of the recipe, or tables of their keys
    flip       mirror real images at random
    device     auto, cpu or cuda
    recipe     the table saved as the run's recipe; made from the arguments if None

    `settings` holds the sections, `learner` all that is trained. The modules are moved to the
    device and changed in place. One that is in eval mode as a whole is put into training mode,
    which a ModeWarning says; parts in eval mode stay frozen. Under torchrun the processes train
    together: each has its part of every batch. Each call leaves the process as it was: random
    generators, cuDNN's switches, threads, default dtype. Raises InputError (RecipeError,
    PluginError, DataError) for arguments that don't fit.
    """

    @leaving_no_trace
    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        data: Dataset | Tensor,
        *,
        loss: str | object = "wasserstein",
        plugins: Sequence[object] | Mapping[str, object] = (),
        train: Train | Mapping[str, Value],
        optimizer: Optimizer | Mapping[str, Value] | None = None,
        checkpoint: CheckpointSection | Mapping[str, Value] | None = None,
        sample: Sample | Mapping[str, Value] | None = None,
        log: Log | Mapping[str, Value] | None = None,
        score: Score | Mapping[str, Value] | None = None,
        flip: bool = False,
        device: str = "auto",
        recipe: Mapping[str, Json] | None = None,
    ) -> None:
        data = data if isinstance(data, Dataset) else Dataset("tensor", data)
        settings = Settings(
            DataSection.of({"name": f"python:{data.name}", "flip": flip}),
            Train.of(train),
            Optimizer.of(optimizer),
            CheckpointSection.of(checkpoint),
            Sample.of(sample),
            Log.of(log),
            Score.of(score),
        )
        check_compiles(settings.train)
        host = Host.join(device, settings.train.seed)
        made = Plugins(_loaded(loss, plugins), host.randomness)
        self.learner = Learner(generator, critic, data.to(host.device), made, settings, host)
        networks = self.learner.networks.items()
        tables = settings.tables()
        self.recipe: Mapping[str, Json] = recipe or {
            "data": tables.pop("data"),
            **{side: {"name": f"python:{type(one).__qualname__}"} for side, one in networks},
            **made.tables(),
            **tables,
        }
        self._components: Mapping[str, str] = {side: network_origin(one) for side, one in networks}
        self._session: Session | None = None

    @classmethod
    def of(
        cls, learner: Learner, recipe: Mapping[str, Json], components: Mapping[str, str]
    ) -> Self:
        """Return a trainer of a learner that is made already.

        recipe      the table saved as the run's recipe
        components  what made the networks, which tells whether a resumed run is the same
        """
        trainer = cls.__new__(cls)
        trainer.learner, trainer.recipe, trainer._components = learner, recipe, components
        trainer._session = None
        return trainer

    @property
    def settings(self) -> Settings:
        """The sections of the recipe, or of the arguments."""
        return self.learner.settings

    @property
    def generator(self) -> nn.Module:
        """The generator that is trained."""
        return self.learner.generator

    @property
    def critic(self) -> nn.Module:
        """The critic that is trained."""
        return self.learner.critic

    @property
    def data(self) -> Dataset:
        """The real samples, on the device."""
        return self.learner.data

    @property
    def device(self) -> torch.device:
        """Where both networks are."""
        return self.learner.device

    @property
    def plugins(self) -> Plugins:
        """The plugins, the loss among them."""
        return self.learner.plugins

    @leaving_no_trace
    def run(
        self,
        out: str | Path,
        *,
        resume: bool = False,
        force: bool = False,
        threads: int | None = None,
        display: Display | None = None,
    ) -> Run:
        """Train, sample, score and save into the run folder `out`.

        resume  go on from the latest checkpoint, if there is one
        force   resume although the recipe, data, code, or the number of processes or threads has
                changed
        threads
                how many to compute on; if None, a resumed run's as before, or torch's number now

        Warns of what has no effect (`gancore.training.idle.IdleWarning`).

        What it needs later on is tried before the first update (`gancore.training.rehearsal`).

        Raises InputError when another process runs there, the folder is not empty and resume was
        not asked for, what decides its updates has changed, this Trainer has trained and finds no
        checkpoint to go on from, generated samples have another shape than the data's, or the
        generator can't be copied or sampled in eval mode; CheckpointError for what can't be saved
        and read back; RunError when the disk is full; ScoreError for scores that can't be taken;
        NonFiniteError and ContractError before the optimizer step they concern.
        """
        learner, run = self.learner, Run(Path(out))
        learner.try_passes()  # which may raise, and has left no trace yet
        if learner.ranks.is_first:
            warn_idle(self.settings, self.plugins, self.data)
        display = display if display and learner.ranks.is_first else Display()
        self._session = Session(learner, run, display, self.recipe, self._components)
        self._session.go(resume=resume, force=force, threads=threads)
        return run

    def stop(self, reason: str) -> None:
        """Ask the run that goes on to save and stop after the generator update that it is in."""
        if self._session is not None:
            self._session.stopped = reason

    @leaving_no_trace
    def critic_update(self, update: int) -> dict[str, float]:
        """Make one critic update, from 0; return its terms. Raises as `update_critic`."""
        return self.learner.update(Update("critic", update)).values

    @leaving_no_trace
    def critic_samples(self, update: int) -> tuple[Tensor, Tensor]:
        """Draw the real and the generated samples of a critic update, (B, *) each.

        Raises InputError for a generator whose samples are not like the data's.
        """
        return self.learner.critic_samples(update)

    @leaving_no_trace
    def update_critic(self, update: int, real: Tensor, fake: Tensor) -> dict[str, float]:
        """Make a critic update with these samples; return its terms.

        Raises NonFiniteError before the optimizer step, and ContractError.
        """
        return self.learner.update_critic(update, real, fake).values

    @leaving_no_trace
    def generator_update(self, update: int) -> dict[str, float]:
        """Make one generator update, from 0; return its terms. Raises as `critic_update`."""
        return self.learner.update_generator(update).values

    @leaving_no_trace
    def sampler(self, progress: Progress | None = None) -> nn.Module:
        """Return the generator to sample from: the moving average if there is one, calibrated."""
        return self.learner.calibrate(progress)

    @leaving_no_trace
    def scores(self, progress: Progress | None = None) -> Scores | None:
        """Return scores of the generator as it is now; None but on the first process."""
        return self.learner.scores(progress)

    def state(self) -> tuple[dict[str, Tensors], Json]:
        """Return all that training has changed: tensors by file, and what plugins keep as JSON."""
        return self.learner.state()


def _loaded(loss: object, plugins: Sequence[object] | Mapping[str, object]) -> list[Loaded]:
    named: list[Loaded] = (
        [wrap(instance, name) for name, instance in plugins.items()]
        if isinstance(plugins, Mapping)
        else [wrap(instance) for instance in plugins]
    )
    return [load(loss) if isinstance(loss, str) else wrap(loss), *named]
