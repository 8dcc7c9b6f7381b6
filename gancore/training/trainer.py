"""The trainer: the loop, its two updates, and everything a run writes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gancore.data import Dataset
from gancore.errors import CheckpointError, InputError
from gancore.plugins import Loaded, Plugins, load, wrap
from gancore.randomness import Order, Stream
from gancore.recipe import Checkpoint as CheckpointSection
from gancore.recipe import Log, Optimizer, Sample, Score, Train, differences
from gancore.report import Display, plot_curves, save_grid
from gancore.sampling import Progress, calibrated, generate, latent_size
from gancore.scoring import check_scoring, score_generator
from gancore.step import Count, CriticStep, GeneratorStep
from gancore.training import checkpoint
from gancore.training.checkpoint import Checkpoint, join_state, split_state
from gancore.training.environment import arranged, choose_device, environment, place
from gancore.training.folder import Run
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
from gancore.training.storage import LOCK, locked, told_when_full
from gancore.training.tally import Tally
from gancore.training.update import Update


class Trainer:
    """Trains a generator against a critic with a loss and plugins.

    generator  any module (B, latent) → (B, *) with an attribute `latent`, the noise's length
    critic     any module (B, *) → (B,), (B, 1) or (B, 1, 1, 1)
    data       a Dataset, or its samples: uint8 (N, C, H, W) or float32 (N, d)
    loss       an installed loss by name, or a plugin
    plugins    plugins, or a mapping of names to plugins, in the order in which they act
    train, optimizer, checkpoint, sample, log, score
               sections of the recipe, or tables of their keys
    device     auto, cpu or cuda
    recipe     the table saved as the run's recipe; made from the arguments if None

    The modules are moved to the device and changed in place. Raises InputError (RecipeError,
    PluginError, DataError) for arguments that don't fit.
    """

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
        self.optimizer = Optimizer.of(optimizer)
        self.checkpoint = CheckpointSection.of(checkpoint)
        self.sample = Sample.of(sample)
        self.log = Log.of(log)
        self.score = Score.of(score)
        self.device = choose_device(device)
        self.plugins = _plugins(loss, plugins)
        seed = self.train.seed
        if self.device.type == "cuda":
            torch.backends.cudnn.deterministic = True  # or a resumed run would drift

        Stream(seed, "init/plugins").seed_global(0)
        self.plugins.prepare_critic(critic)
        self.generator = place(generator, self.device)
        self.critic = place(critic, self.device)
        self.data = (data if isinstance(data, Dataset) else Dataset("tensor", data)).to(self.device)
        self.flip = flip
        if flip and not self.data.is_images:
            raise InputError("data.flip mirrors images, and this data set is points: leave it out")
        self.latent = latent_size(generator)

        self.generator_parameters = trainable(generator, "generator")
        self.critic_parameters = trainable(critic, "critic")
        self.generator_optimizer = make_optimizer(self.optimizer, self.generator_parameters)
        self.critic_optimizer = make_optimizer(self.optimizer, self.critic_parameters)
        self.ema = moving_average(generator, self.train.ema)
        self.recipe = dict(recipe) if recipe is not None else self._described()

        self._orders = {
            side: Order(seed, f"order/{side}", len(self.data), self.device) for side in SIDES
        }
        self._latents = {side: Stream(seed, f"latents/{side}", self.device) for side in SIDES}
        self._mirrors = {side: Stream(seed, f"mirror/{side}", self.device) for side in SIDES}
        self._globals = {side: Stream(seed, f"global/{side}", self.device) for side in SIDES}
        self._updates = {
            side: Update(
                side,
                self.plugins,
                step,
                trained,
                (self.generator, self.critic),
                autocast=self._autocast,
                tolerance=TOLERANCE[self.train.precision],
                compiled=self.train.compile,
            )
            for side, step, trained in (
                ("critic", self._critic_step, self.critic_parameters),
                ("generator", self._generator_step, self.generator_parameters),
            )
        }
        self.tally = Tally()
        self._final: dict[str, Any] | None = None
        self._stopped = ""

    def run(
        self,
        out: str | Path,
        *,
        resume: bool = False,
        force: bool = False,
        display: Display | None = None,
    ) -> Run:
        """Train, sample, score and save into the run folder `out`.

        resume  go on from the latest checkpoint, if there is one
        force   resume although the recipe has changed

        Raises InputError when another process runs there, the folder is not empty and resume was
        not asked for, or the recipe has changed; RunError when the disk is full; ScoreError for
        scores that can't be taken; NonFiniteError and ContractError before the optimizer step they
        concern.
        """
        check_scoring(self.data, self.score)
        display = display or Display()
        run = Run(Path(out))
        with locked(run.path), told_when_full(run.path):
            self._run(run, display, resume=resume, force=force)
        return run

    def _run(self, run: Run, display: Display, *, resume: bool, force: bool) -> None:
        steps = self.train.steps
        self._stopped = ""
        start = self._open(run, display, resume=resume, force=force)
        self.plugins.start(run.path, start)
        display.begin(self._title(run, start), start, steps)
        for each in self._updates.values():
            each.tell = display.say
        try:
            self._loop(run, start, display)
            plot_curves(run.records, run.curves_path)
            if self._stopped:
                display.say(f"{self._stopped}: saved in {run.path}; go on with --resume")
            elif self.score.metrics:
                run.write_json(run.scores_path, self._final or self.scores(display.count))
            if self.tally.best:
                display.say("best: {score} {value:.4g} at step {step}".format(**self.tally.best))
        finally:
            display.end()

    def stop(self, reason: str) -> None:
        """Ask the loop to save and stop after the generator update that it is in."""
        self._stopped = reason

    def critic_update(self, update: int) -> dict[str, float]:
        """Make one critic update, from 0; return its terms. Raises as `update_critic`."""
        return self.update_critic(update, *self.critic_samples(update))

    def critic_samples(self, update: int) -> tuple[Tensor, Tensor]:
        """Draw the real and the generated samples of a critic update; seed what plugins draw."""
        size = self.train.batch_size
        self._globals["critic"].seed_global(update)
        with torch.no_grad(), self._autocast():
            fake = self.generator(self._noise("critic", update, size)).float()
        return self._real("critic", update, size), fake

    def update_critic(self, update: int, real: Tensor, fake: Tensor) -> dict[str, float]:
        """Make a critic update with these samples; return its terms.

        Raises NonFiniteError before the optimizer step, and ContractError.
        """
        found = self._updates["critic"](update, real, fake)
        values = to_host(found, update)
        apply_gradients(self.critic_optimizer, self.critic_parameters, found.gradients)
        with torch.no_grad():
            self.plugins.post_step(self.critic, update)
        return values

    def generator_update(self, update: int) -> dict[str, float]:
        """Make one generator update, from 0; return its terms. Raises as `critic_update`."""
        size = self.train.generator_batch
        self._globals["generator"].seed_global(update)
        latents = self._noise("generator", update, size)
        real = self._real("generator", update, size)
        found = self._updates["generator"](update, latents, real)
        values = to_host(found, update)
        apply_gradients(self.generator_optimizer, self.generator_parameters, found.gradients)
        if self.ema is not None:
            self.ema.update_parameters(self.generator)
        return values

    def sampler(self) -> nn.Module:
        """Return the generator to sample from: the moving average if there is one, calibrated."""
        generator = self.generator if self.ema is None else self.ema.module
        return calibrated(generator, self.train.seed)

    def scores(self, progress: Progress | None = None) -> dict[str, Any]:
        """Return scores and protocol of the generator as it is now."""
        return score_generator(
            self.sampler(),
            self.data,
            self.score,
            seed=self.train.seed,
            device=self.device,
            progress=progress,
        )

    def _loop(self, run: Run, start: int, display: Display) -> None:
        steps, critic_steps = self.train.steps, self.train.critic_steps
        began = time.perf_counter() - self.tally.seconds
        session = time.perf_counter()
        for step in range(start, steps):
            self._set_rates(step)
            for number in range(critic_steps):
                values = self.critic_update(step * critic_steps + number)
                self.tally.remember_penalties(values)
            values |= self.generator_update(step)
            self.tally.remember_penalties(values)
            done = step + 1
            last = done == steps
            self.tally.seconds = time.perf_counter() - began
            record = self._record(done, values)
            display.advance(done, record)
            scored = self.score.every and self.score.metrics and done % self.score.every == 0
            if scored:
                found = self.scores(display.count)
                record |= {f"score/{key}": value for key, value in found["scores"].items()}
                self.tally.remember_best(done, found["scores"])
                self._final = found if last else None
            if last or step == 0 or done % self.log.every == 0 or scored:
                run.append(record)
                self.plugins.log(record)
                display.record(record)
            if last or done % self.sample.every == 0:
                self._save_samples(run, done)
            if self.train.max_seconds and time.perf_counter() - session > self.train.max_seconds:
                self.stop(f"train.max_seconds is over after step {done}")
            if last or scored or self._stopped or done % self.checkpoint.every == 0:
                self._save(run, done)
            if self._stopped and not last:
                return
        self._stopped = ""

    def _record(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        terms = {key: value for key, value in values.items() if "/" not in key}
        return {
            "update": step * self.train.critic_steps,
            "step": step,
            "seconds": round(self.tally.seconds, 3),
            **terms,
            "wasserstein": values["d_real"] - values["d_fake"],
            **self.tally.penalties,
        }

    def _save_samples(self, run: Run, step: int) -> None:
        samples = generate(self.sampler(), self.sample.count, seed=self.train.seed)
        save_grid(samples, run.sample_path(step), like=self.data.samples)
        self.plugins.sample(samples, step)

    def _save(self, run: Run, step: int) -> None:
        plugin_tensors, plugin_scalars = split_state(self.plugins.state_dict())
        tensors = {
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizers": {
                **optimizer_state("generator", self.generator_optimizer),
                **optimizer_state("critic", self.critic_optimizer),
            },
            "plugins": plugin_tensors,
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.state_dict()
        state = {
            **self.tally.state(),
            "plugins": plugin_scalars,
            "recipe": self.recipe,
        }
        checkpoint.save(
            run.checkpoints,
            Checkpoint(step, tensors, state),
            keep=self.checkpoint.keep,
            best=self.tally.best["step"] if self.tally.best else None,
        )
        checkpoint.mark_best(run.checkpoints, self.tally.best)

    def _open(self, run: Run, display: Display, *, resume: bool, force: bool) -> int:
        """Prepare the folder and return the step to start at."""
        found = checkpoint.latest(run.checkpoints, mend=display.say) if resume else None
        if not resume and any(path.name != LOCK for path in run.path.iterdir()):
            raise InputError(
                f"{run.path} is not empty: go on with it by --resume, or choose another --out"
            )
        if found is not None:
            self._restore(found, force=force)
        start = found.step if found else 0
        run.write_recipe(self.recipe)
        run.write_json(run.environment_path, environment(self.device, self.plugins.loaded))
        run.cut_records(start)
        if run.scores is not None and start < self.train.steps:
            run.scores_path.unlink()
        return start

    def _restore(self, found: Checkpoint, *, force: bool) -> None:
        saved = found.state.get("recipe")
        if not isinstance(saved, dict):
            raise CheckpointError("the checkpoint does not say of which recipe it is: train again")
        changes = differences(saved, self.recipe)
        if changes and not force:
            raise InputError(
                "the recipe has changed since the checkpoint, so this would be another run:\n"
                + "\n".join(f"  {line}" for line in changes)
                + "\nUndo that, choose another --out, or resume all the same by --force"
            )
        if found.step > self.train.steps:
            raise InputError(
                f"the checkpoint is at step {found.step}, beyond train.steps = {self.train.steps}: "
                "raise train.steps, or choose another --out"
            )
        try:
            self.generator.load_state_dict(found.tensors["generator"])
            self.critic.load_state_dict(found.tensors["critic"])
            if self.ema is not None:
                self.ema.load_state_dict(found.tensors["ema"])
            restore_optimizer("generator", self.generator_optimizer, found.tensors["optimizers"])
            restore_optimizer("critic", self.critic_optimizer, found.tensors["optimizers"])
            self.plugins.load_state_dict(
                join_state(found.tensors["plugins"], found.state["plugins"])
            )
            self.tally = Tally.of(found.state)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit this run: {error}") from error

    def _title(self, run: Run, start: int) -> str:
        names = ", ".join(each.name for each in self.plugins.loaded)
        begin = f"from step {start} " if start else ""
        return (
            f"{run.path}: {names}; {self.data.name} on {self.device}; {begin}seed {self.train.seed}"
        )

    def _noise(self, side: str, update: int, size: int) -> Tensor:
        generator = self._latents[side].at(update)
        return torch.randn(size, self.latent, generator=generator, device=self.device)

    def _real(self, side: str, update: int, size: int) -> Tensor:
        mirror = None
        if self.flip:
            generator = self._mirrors[side].at(update)
            mirror = torch.rand(size, generator=generator, device=self.device) < 0.5
        index = self._orders[side].take(update * size, size)
        return arranged(self.data.batch(index, mirror=mirror))

    def _critic_step(self, real: Tensor, fake: Tensor, *, update: Count) -> CriticStep:
        allow = self.train.allow_batchnorm
        return CriticStep(self.critic, real, fake, update=update, allow_batchnorm=allow)

    def _generator_step(self, latents: Tensor, real: Tensor, *, update: Count) -> GeneratorStep:
        latents = latents.detach().requires_grad_()
        with self._autocast():
            fake = self.generator(latents).float()
        return GeneratorStep(
            self.generator, self.critic, real, fake, latents=latents, update=update
        )

    def _autocast(self) -> AbstractContextManager[None]:
        if self.train.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _set_rates(self, step: int) -> None:
        rate = self.optimizer.lr * decay_factor(self.optimizer.decay, step, self.train.steps)
        for optimizer in (self.generator_optimizer, self.critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = rate

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


def _plugins(loss: object, plugins: Sequence[object] | Mapping[str, object]) -> Plugins:
    named: list[Loaded] = (
        [wrap(instance, name) for name, instance in plugins.items()]
        if isinstance(plugins, Mapping)
        else [wrap(instance) for instance in plugins]
    )
    return Plugins([load(loss) if isinstance(loss, str) else wrap(loss), *named])
