"""The trainer: two networks, their data, loss and plugins, and the two updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gancore.data import Dataset
from gancore.distributed.ranks import Ranks
from gancore.errors import InputError
from gancore.files.storage import locked, told_when_full
from gancore.isolation.buffers import buffers_kept, buffers_of
from gancore.isolation.caller import leaving_no_trace
from gancore.isolation.randomness import Order, Randomness, Stream
from gancore.plugins import Loaded, Plugins, load, wrap
from gancore.provenance.identity import network_origin
from gancore.provenance.machine import on_threads
from gancore.recipe import Checkpoint as CheckpointSection
from gancore.recipe import Log, Optimizer, Sample, Score, Train
from gancore.report import Display
from gancore.scoring import check_scoring, score_generator
from gancore.scoring.sampling import Progress, calibrated, latent_size
from gancore.step import Average, Count, CriticStep, GeneratorStep, critic_scores
from gancore.training.checkpoint import Tensors
from gancore.training.device import arranged, choose_device, dense, place
from gancore.training.fit import fitting, into_training, refuse_other_samples
from gancore.training.idle import warn_idle
from gancore.training.lazy import Settled, materialize_critic, materialize_generator
from gancore.training.notes import Notes
from gancore.training.objective import to_host
from gancore.training.optimizers import (
    apply_gradients,
    decay_factor,
    make_optimizer,
    moving_average,
    optimizer_state,
    restore_optimizer,
    trainable,
)
from gancore.training.run_folder import Run
from gancore.training.session import Session
from gancore.training.state import join_state, split_state
from gancore.training.update import Update, check_compiles
from gancore.training.use import Use


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
    device     auto, cpu or cuda
    recipe     the table saved as the run's recipe; made from the arguments if None

    The modules are moved to the device and changed in place; one that is in eval mode as a whole is
    put into training mode, which a ModeWarning says, and parts in eval mode stay frozen. Under
    torchrun the processes train together: each has its part of every batch. The process is left as
    it was, after each call: random generators, cuDNN's switches, threads, default dtype. Raises
    InputError (RecipeError, PluginError, DataError) for arguments that don't fit.
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
        train: Train | Mapping[str, Any],
        optimizer: Optimizer | Mapping[str, Any] | None = None,
        checkpoint: CheckpointSection | Mapping[str, Any] | None = None,
        sample: Sample | Mapping[str, Any] | None = None,
        log: Log | Mapping[str, Any] | None = None,
        score: Score | Mapping[str, Any] | None = None,
        flip: bool = False,
        device: str = "auto",
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.train = Train.of(train)
        check_compiles(self.train)
        self.optimizer = Optimizer.of(optimizer)
        self.checkpoint = CheckpointSection.of(checkpoint)
        self.sample = Sample.of(sample)
        self.log = Log.of(log)
        self.score = Score.of(score)
        self.device = choose_device(device)
        self.ranks = Ranks.join(self.device)
        self._critic_batch = self.ranks.share(self.train.batch_size, "train.batch_size")
        self._generator_batch = self.ranks.share(
            self.train.generator_batch, "train.generator_batch_size"
        )
        seed = self.train.seed
        self.randomness = Randomness(seed, self.device, index=self.ranks.index)
        self.plugins = _plugins(loss, plugins, self.randomness)
        self.use = Use(self.plugins)
        self.data = (data if isinstance(data, Dataset) else Dataset("tensor", data)).to(self.device)
        self.flip = flip
        if flip and not self.data.is_images:
            raise InputError("data.flip mirrors images, and this data set is points: leave it out")
        self.latent = latent_size(generator)
        for side, network in (("generator", generator), ("critic", critic)):
            into_training(network, side)
        materialize_generator(generator, self._critic_batch, seed)
        materialize_critic(critic, self.data, self._critic_batch, seed)
        self.plugins.prepare_critic(critic)
        self.generator = place(generator, self.device)
        self.critic = place(critic, self.device)
        shape = tuple(self.data.samples.shape[1:])
        self.plugins.setup(self.generator, self.critic, shape, self.device)
        self.plugins.guard.watch(generator=self.generator, critic=self.critic)

        self.generator_parameters = trainable(generator, "generator")
        self.critic_parameters = trainable(critic, "critic")
        self.generator_optimizer = make_optimizer(self.optimizer, self.generator_parameters)
        self.critic_optimizer = make_optimizer(self.optimizer, self.critic_parameters)
        self.ema = moving_average(generator, self.train.ema)
        self.settled = Settled(generator=generator, critic=critic)
        self.recipe = dict(recipe) if recipe is not None else self._described()
        self.components = {
            "generator": network_origin(generator),
            "critic": network_origin(critic),
        }

        self._orders = {
            side: Order(seed, f"order/{side}", len(self.data), self.device) for side in SIDES
        }
        self._latents = {side: Stream(seed, f"latents/{side}", self.device) for side in SIDES}
        self._mirrors = {side: Stream(seed, f"mirror/{side}", self.device) for side in SIDES}
        self._updates = {
            side: Update(
                side,
                self.plugins,
                step,
                trained,
                (self.generator, self.critic),
                autocast=self._autocast,
                ranks=self.ranks,
                randomness=self.randomness,
                tolerance=TOLERANCE[self.train.precision],
                compiled=self.train.compile,
            )
            for side, step, trained in (
                ("critic", self._critic_step, self.critic_parameters),
                ("generator", self._generator_step, self.generator_parameters),
            )
        }
        self._session: Session | None = None
        self.notes: Notes | None = None
        self.calibrated: nn.Module | None = None
        """What `sampler` made after the update that the session is at, which makes it once."""

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
        with buffers_kept([self.generator, self.critic]):
            self._try()  # which may raise, and has left no trace yet
        run = Run(Path(out))
        warn_idle(self)
        display = display if display and self.ranks.is_first else Display()
        session = self._session = Session(self, run, display)
        for each in self._updates.values():
            each.tell = display.say
        with on_threads(threads), told_when_full(run.path), ExitStack() as stack:

            def enter() -> bytes:
                check_scoring(self.data, self.score)
                stack.enter_context(locked(run.path))
                return b""

            self.ranks.from_first(enter)
            session.go(resume=resume, force=force, threads=threads)
        return run

    def stop(self, reason: str) -> None:
        """Ask the run that goes on to save and stop after the generator update that it is in."""
        if self._session is not None:
            self._session.stopped = reason

    @leaving_no_trace
    def critic_update(self, update: int) -> dict[str, float]:
        """Make one critic update, from 0; return its terms. Raises as `update_critic`."""
        return self.update_critic(update, *self.critic_samples(update))

    @leaving_no_trace
    def critic_samples(self, update: int) -> tuple[Tensor, Tensor]:
        """Draw the real and the generated samples of a critic update.

        Raises InputError for a generator whose samples are not like the data's.
        """
        self.use.note()
        return self._draw(update)

    def _draw(self, update: int) -> tuple[Tensor, Tensor]:
        size = self._critic_batch
        self.randomness.seed("critic/generator", update, alone=True)
        with torch.no_grad(), self._autocast():
            noise = self._noise("critic", update, size)
            with fitting(self.generator, "generator", noise):
                fake = self.generator(noise.clone())
            refuse_other_samples(fake, noise, self.data)
            fake = dense(fake.float())
        return self._real("critic", update, size), fake

    def _try(self) -> None:
        """Let both networks make a pass. Raises InputError and ContractError as they don't fit."""
        for x in self._draw(0):
            with fitting(self.critic, "critic", x), self._autocast():
                critic_scores(self.critic, x.detach().requires_grad_())

    @leaving_no_trace
    def update_critic(self, update: int, real: Tensor, fake: Tensor) -> dict[str, float]:
        """Make a critic update with these samples; return its terms.

        Raises NonFiniteError before the optimizer step, and ContractError.
        """
        self.use.note()
        found = self._updates["critic"](update, real, fake)
        self.settled.check_once()
        values = to_host(found, update)
        if self.notes is not None:
            self.notes.samples(fake, update // self.train.critic_steps)
            self.notes.gradients("critic", update, found.gradients)
        apply_gradients(self.critic_optimizer, self.critic_parameters, found.gradients)
        with torch.no_grad():
            self.plugins.call("post_step", critic=self.critic, update=update)
        self.ranks.equalize(self.critic.buffers())
        return values

    @leaving_no_trace
    def generator_update(self, update: int) -> dict[str, float]:
        """Make one generator update, from 0; return its terms. Raises as `critic_update`."""
        self.use.note()
        size = self._generator_batch
        latents = self._noise("generator", update, size)
        real = self._real("generator", update, size)
        found = self._updates["generator"](update, latents, real)
        self.settled.check_once()
        values = to_host(found, update)
        if self.notes is not None:
            self.notes.gradients("generator", update, found.gradients)
        apply_gradients(self.generator_optimizer, self.generator_parameters, found.gradients)
        self.ranks.equalize(self.generator.buffers())
        if self.ema is not None:
            self.ema.update_parameters(self.generator)
        return values

    @property
    def were_due(self) -> set[str]:
        """The penalties, by record key, that have been called."""
        return self._updates["critic"].were_due | self._updates["generator"].were_due

    @leaving_no_trace
    def sampler(self, progress: Progress | None = None) -> nn.Module:
        """Return the generator to sample from: the moving average if there is one, calibrated."""
        generator = self.generator if self.ema is None else self.ema.module
        return calibrated(generator, self.train.seed, progress=progress)

    @leaving_no_trace
    def scores(self, progress: Progress | None = None) -> dict[str, Any]:
        """Return scores and protocol of the generator as it is now; {} but on the first process."""
        return score_generator(
            self.sampler(progress) if self.calibrated is None else self.calibrated,
            self.data,
            self.score,
            seed=self.train.seed,
            device=self.device,
            progress=progress,
            ranks=self.ranks,
        )

    def equalize(self) -> None:
        """Give all processes the first one's networks."""
        modules = [self.generator, self.critic, *([self.ema] if self.ema is not None else [])]
        for module in modules:
            self.ranks.equalize([*module.parameters(), *module.buffers()])

    def set_rates(self, step: int) -> None:
        """Set both learning rates to what they are at a generator update."""
        rate = self.optimizer.lr * decay_factor(self.optimizer.decay, step, self.train.steps)
        for optimizer in (self.generator_optimizer, self.critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def state(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """Return all that training has changed: tensors by file, and what plugins keep as JSON.

        Raises CheckpointError for a plugin that keeps anything else, ContractError for a network
        that has got parameters meanwhile.
        """
        self.settled.check()
        plugin_tensors, plugin_scalars = split_state(self.plugins.state_dict())
        tensors: dict[str, Tensors] = {
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizers": {
                **optimizer_state("generator", self.generator_optimizer, self.generator),
                **optimizer_state("critic", self.critic_optimizer, self.critic),
            },
            "plugins": plugin_tensors,
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.state_dict()
        if self.calibrated is not None and (statistics := buffers_of(self.calibrated)):
            tensors["calibrated"] = statistics
        return tensors, plugin_scalars

    def load_state(
        self,
        tensors: Mapping[str, Tensors],
        plugins: Mapping[str, Mapping[str, Any]],
        *,
        by_position: bool = False,
    ) -> list[str]:
        """Go on from what `state` returned; return what there is to say of it, in lines.

        by_position: whether the optimizers' states are of format 1, which goes by positions

        Raises RuntimeError, KeyError where it does not fit.
        """
        self.generator.load_state_dict(tensors["generator"])
        self.critic.load_state_dict(tensors["critic"])
        if self.ema is not None:
            self.ema.load_state_dict(tensors["ema"])
        told = [
            line
            for name, optimizer, module in (
                ("generator", self.generator_optimizer, self.generator),
                ("critic", self.critic_optimizer, self.critic),
            )
            for line in restore_optimizer(
                name, optimizer, module, tensors["optimizers"], by_position=by_position
            )
        ]
        self.plugins.load_state_dict(join_state(tensors["plugins"], plugins))
        return told

    def _noise(self, side: str, update: int, size: int) -> Tensor:
        generator, whole = self._latents[side].at(update), size * self.ranks.count
        noise = torch.randn(whole, self.latent, generator=generator, device=self.device)
        return self.ranks.part(noise)

    def _real(self, side: str, update: int, size: int) -> Tensor:
        mirror, whole = None, size * self.ranks.count
        if self.flip:
            generator = self._mirrors[side].at(update)
            mirrors = torch.rand(whole, generator=generator, device=self.device)
            mirror = self.ranks.part(mirrors) < 0.5
        index = self.ranks.part(self._orders[side].take(update * whole, whole))
        return arranged(self.data.batch(index, mirror=mirror))

    def _critic_step(self, real: Tensor, fake: Tensor, *, update: Count) -> CriticStep:
        return CriticStep(
            self.critic,
            real,
            fake,
            update=update,
            allow_batch_statistics=self.train.allow_batch_statistics,
            average=self._average,
            randomness=self.randomness,
        )

    def _generator_step(self, latents: Tensor, real: Tensor, *, update: Count) -> GeneratorStep:
        latents = latents.detach().requires_grad_()
        if isinstance(update, int):  # a graph can't hold a seeding
            self.randomness.seed("generator/generator", update, alone=True)
        with self._autocast():
            fake = dense(self.generator(latents.clone()).float())
        return GeneratorStep(
            self.generator,
            self.critic,
            real,
            fake,
            latents=latents,
            update=update,
            average=self._average,
            randomness=self.randomness,
        )

    @property
    def _average(self) -> Average | None:
        return self.ranks.mean if self.ranks.count > 1 else None

    def _autocast(self) -> AbstractContextManager[None]:
        if self.train.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _described(self) -> dict[str, Any]:
        """Return a recipe table for networks and data that no recipe can name."""
        return {
            "data": {"name": f"python:{self.data.name}", "flip": self.flip},
            "generator": {"name": f"python:{type(self.generator).__qualname__}"},
            "critic": {"name": f"python:{type(self.critic).__qualname__}"},
            **self.plugins.tables(),
            **{
                name: getattr(self, name).model_dump(mode="json", exclude_none=True)
                for name in ("optimizer", "train", "checkpoint", "sample", "log", "score")
            },
        }


SIDES = ("critic", "generator")

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""How far gradients of a compiled update may be from those without, in units of their norm."""


def _plugins(
    loss: object, plugins: Sequence[object] | Mapping[str, object], randomness: Randomness
) -> Plugins:
    named: list[Loaded] = (
        [wrap(instance, name) for name, instance in plugins.items()]
        if isinstance(plugins, Mapping)
        else [wrap(instance) for instance in plugins]
    )
    return Plugins([load(loss) if isinstance(loss, str) else wrap(loss), *named], randomness)
