"""The learner: two networks, their optimizers and the average; one update of each, and the state.

An update, from top to bottom: samples are drawn, a step is made of them, its objective is
differentiated, the gradients are averaged over the processes, and the optimizer makes its step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gancore.data import Dataset
from gancore.errors import InputError
from gancore.files.stored import Json
from gancore.isolation.buffers import buffers_kept, buffers_of
from gancore.plugins import Plugins
from gancore.recipe import Settings
from gancore.scoring import score_generator
from gancore.scoring.protocol import Scores
from gancore.scoring.sampling import Progress, calibrated, latent_size
from gancore.step import Count, CriticStep, GeneratorStep, critic_scores
from gancore.training.checkpoint import Tensors
from gancore.training.compiled import TOLERANCE, Compiled
from gancore.training.device import Host, dense, place
from gancore.training.draws import Draws
from gancore.training.fit import fitting, into_training, refuse_other_samples
from gancore.training.idle import warn_bounded
from gancore.training.lazy import Settled, materialize_critic, materialize_generator
from gancore.training.objective import (
    HOOKS,
    Gradients,
    Scales,
    averaged,
    differentiate,
    possible_terms,
    to_host,
)
from gancore.training.optimizers import (
    apply_gradients,
    decay_factor,
    make_optimizer,
    moving_average,
    optimizer_state,
    restore_optimizer,
    trainable,
)
from gancore.training.plan import Side, Update
from gancore.training.state import join_state, split_state
from gancore.training.use import Use


class Made(NamedTuple):
    """What an update made.

    values   its terms by record key
    reached  for each trained parameter, whether the objective depends on it
    fake     the samples that a critic update saw, (B, *); None of a generator update
    """

    values: dict[str, float]
    reached: tuple[bool, ...]
    fake: Tensor | None = None


class Learner:
    """Trains a generator and a critic, which are moved to the device and changed in place.

    data     the real samples, on the device
    plugins  the loss among them; they draw by the host's random numbers

    Raises InputError and ContractError for what does not fit.
    """

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        data: Dataset,
        plugins: Plugins,
        settings: Settings,
        host: Host,
    ) -> None:
        self.data, self.plugins, self.settings = data, plugins, settings
        self.device, self.ranks, self.randomness = host.device, host.ranks, host.randomness
        self.use = Use(plugins)
        self.were_due: set[str] = set()
        """The penalties, by record key, that have been called."""
        train = settings.train
        if settings.data.flip and not data.is_images:
            raise InputError("data.flip mirrors images, and this data set is points: leave it out")
        size = self.ranks.share(train.batch_size, "train.batch_size")
        sizes = {
            "critic": size,
            "generator": self.ranks.share(train.generator_batch, "train.generator_batch_size"),
        }
        self._latent = latent_size(generator)
        into_training(generator, "generator")
        into_training(critic, "critic")
        materialize_generator(generator, size, train.seed)
        materialize_critic(critic, data, size, train.seed)
        plugins.prepare_critic(critic)
        self.generator, self.critic = place(generator, self.device), place(critic, self.device)
        plugins.setup(self.generator, self.critic, data.shape, self.device)
        plugins.guard.watch(**self.networks)
        self.parameters = {
            side: trainable(network, side) for side, network in self.networks.items()
        }
        self.optimizers = {
            side: make_optimizer(settings.optimizer, parameters)
            for side, parameters in self.parameters.items()
        }
        self.average = moving_average(self.generator, train.ema)
        self._terms = {side: possible_terms(plugins, side) for side in self.networks}
        self._settled = Settled(**self.networks)
        self._draws: dict[Side, Draws] = {
            side: Draws(side, data, settings, self.ranks, sizes[side]) for side in self.networks
        }
        self._differentiate: dict[Side, Callable[..., Gradients]] = {
            "critic": self._differentiate_critic,
            "generator": self._differentiate_generator,
        }
        if train.compile:
            tolerance = TOLERANCE[train.precision]
            for side, function in self._differentiate.items():
                self._differentiate[side] = Compiled(
                    side, function, plugins, self.networks, self.randomness, tolerance=tolerance
                )
        self._looked_at_scores = False
        self._sampler: nn.Module | None = None

    @property
    def networks(self) -> dict[Side, nn.Module]:
        """Both networks by side."""
        return {"generator": self.generator, "critic": self.critic}

    def update(self, update: Update) -> Made:
        """Make one update. Raises as `update_critic`."""
        if update.side == "critic":
            return self.update_critic(update.number, *self.critic_samples(update.number))
        return self.update_generator(update.number)

    def critic_samples(self, update: int) -> tuple[Tensor, Tensor]:
        """Draw the real and the generated samples of a critic update, (B, *) each.

        Raises InputError for a generator whose samples are not like the data's.
        """
        self.use.note()
        return self._critic_samples(update)

    def _critic_samples(self, update: int) -> tuple[Tensor, Tensor]:
        draws = self._draws["critic"]
        self.randomness.seed("critic/generator", update, alone=True)
        with torch.no_grad(), self._autocast():
            latents = draws.latents(update, self._latent)
            with fitting(self.generator, "generator", latents):
                fake = self.generator(latents.clone())
            refuse_other_samples(fake, latents, self.data)
            fake = dense(fake.float())
        return draws.real(update), fake

    def update_critic(self, update: int, real: Tensor, fake: Tensor) -> Made:
        """Make a critic update, from 0, with these samples.

        Raises NonFiniteError before the optimizer step, and ContractError.
        """
        made = self._step("critic", update, real, fake)
        with torch.no_grad():
            self.plugins.call("post_step", critic=self.critic, update=update)
        self.ranks.equalize(self.critic.buffers())
        return made._replace(fake=fake)

    def update_generator(self, update: int) -> Made:
        """Make a generator update, from 0. Raises as `update_critic`."""
        draws = self._draws["generator"]
        latents = draws.latents(update, self._latent)
        made = self._step("generator", update, latents, draws.real(update))
        self.ranks.equalize(self.generator.buffers())
        if self.average is not None:
            self.average.update_parameters(self.generator)
        return made

    def _step(self, side: Side, update: int, *tensors: Tensor) -> Made:
        """Differentiate a network's objective, of these samples or latents, and step with it."""
        self.use.note()
        self.forget_sampler()
        hook = HOOKS[side][1]
        due = self.plugins.due(hook, update)
        self.were_due.update(f"{hook}/{name}" for name in due)
        gradients = averaged(
            self._differentiate[side](due, *tensors, update=update),
            self.parameters[side],
            self.ranks,
            self._terms[side],
        )
        self._settled.check_once()
        values = to_host(gradients, update, self.ranks)
        reached = tuple(gradient is not None for gradient in gradients.gradients)
        apply_gradients(self.optimizers[side], self.parameters[side], gradients.gradients)
        return Made(values, reached)

    def _differentiate_critic(
        self, due: Scales, real: Tensor, fake: Tensor, *, update: Count
    ) -> Gradients:
        step = CriticStep(
            self.critic,
            real,
            fake,
            update=update,
            allow_batch_statistics=self.settings.train.allow_batch_statistics,
            average=self.ranks.mean if self.ranks.count > 1 else None,
            randomness=self.randomness,
        )
        gradients = self._gradients(step, "critic", due)
        if not (torch.compiler.is_compiling() or self._looked_at_scores):
            self._looked_at_scores = True
            with torch.no_grad(), self._autocast():  # as they are known by now
                warn_bounded(self.plugins, step.scores(step.real))
        return gradients

    def _differentiate_generator(
        self, due: Scales, latents: Tensor, real: Tensor, *, update: Count
    ) -> Gradients:
        latents = latents.detach().requires_grad_()
        if isinstance(update, int):  # a graph can't hold a seeding
            self.randomness.seed("generator/generator", update, alone=True)
        with self._autocast():
            fake = dense(self.generator(latents.clone()).float())
        step = GeneratorStep(
            self.generator,
            self.critic,
            real,
            fake,
            latents=latents,
            update=update,
            average=self.ranks.mean if self.ranks.count > 1 else None,
            randomness=self.randomness,
        )
        return self._gradients(step, "generator", due)

    def _gradients(self, step: CriticStep | GeneratorStep, side: Side, due: Scales) -> Gradients:
        return differentiate(self.plugins, step, self.parameters[side], self._autocast(), due)

    def _autocast(self) -> AbstractContextManager[None]:
        if self.settings.train.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def set_rates(self, step: int) -> None:
        """Set both learning rates to what they are at a step."""
        section = self.settings.optimizer
        rate = section.lr * decay_factor(section.decay, step, self.settings.train.steps)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate

    def try_passes(self) -> None:
        """Let both networks make a pass, and leave no trace of it.

        Raises InputError and ContractError for networks that don't fit the data or each other.
        """
        with buffers_kept(self.networks.values()):
            for x in self._critic_samples(0):
                with fitting(self.critic, "critic", x), self._autocast():
                    critic_scores(self.critic, x.detach().requires_grad_())

    def tell_by(self, tell: Callable[[str], None]) -> None:
        """Let what compiles tell so in lines."""
        for function in self._differentiate.values():
            if isinstance(function, Compiled):
                function.tell = tell

    @property
    def sampled(self) -> nn.Module:
        """The generator that samples are of: the moving average, if there is one."""
        return self.generator if self.average is None else self.average.module

    def calibrate(self, progress: Progress | None = None) -> nn.Module:
        """Return a copy of the generator to sample from, its statistics taken anew."""
        return calibrated(self.sampled, self.settings.train.seed, progress=progress)

    def sampler(self, progress: Progress | None = None) -> nn.Module:
        """Return what `calibrate` does, which is made once after each update.

        Grids, scores and the checkpoint share it.
        """
        if self._sampler is None:
            self._sampler = self.calibrate(progress)
        return self._sampler

    def forget_sampler(self) -> None:
        """Let the next `sampler` be made anew."""
        self._sampler = None

    def scores(self, progress: Progress | None = None) -> Scores | None:
        """Return scores and protocol of the generator as it is now; {} but on the first process."""
        return score_generator(
            self.sampler(progress),
            self.data,
            self.settings.score,
            seed=self.settings.train.seed,
            device=self.device,
            progress=progress,
            ranks=self.ranks,
        )

    def equalize(self) -> None:
        """Give all processes the first one's networks."""
        average = [] if self.average is None else [self.average]
        for module in (*self.networks.values(), *average):
            self.ranks.equalize([*module.parameters(), *module.buffers()])

    def state(self) -> tuple[dict[str, Tensors], Json]:
        """Return all that training has changed: tensors by file, and what plugins keep as JSON.

        Raises CheckpointError for a plugin that keeps anything else, ContractError for a network
        that has got parameters meanwhile.
        """
        self._settled.check()
        plugin_tensors, plugin_scalars = split_state(self.plugins.state_dict())
        optimizers: dict[str, Tensor] = {}
        for side, network in self.networks.items():
            optimizers |= optimizer_state(side, self.optimizers[side], network)
        tensors: dict[str, Tensors] = {
            **{side: network.state_dict() for side, network in self.networks.items()},
            "optimizers": optimizers,
            "plugins": plugin_tensors,
        }
        if self.average is not None:
            tensors["ema"] = self.average.state_dict()
        if self._sampler is not None and (statistics := buffers_of(self._sampler)):
            tensors["calibrated"] = statistics
        return tensors, plugin_scalars

    def load_state(
        self,
        tensors: Mapping[str, Tensors],
        plugins: Json,
        *,
        by_position: bool = False,
    ) -> list[str]:
        """Go on from what `state` returned; return what there is to say of it, in lines.

        by_position: whether the optimizers' states are of format 1, which goes by positions

        Raises RuntimeError, KeyError where it does not fit.
        """
        self.forget_sampler()
        lines = []
        for side, network in self.networks.items():
            network.load_state_dict(tensors[side])
        if self.average is not None:
            self.average.load_state_dict(tensors["ema"])
        for side, network in self.networks.items():
            lines += restore_optimizer(
                side,
                self.optimizers[side],
                network,
                tensors["optimizers"],
                by_position=by_position,
            )
        self.plugins.load_state_dict(join_state(tensors["plugins"], plugins))
        return lines
