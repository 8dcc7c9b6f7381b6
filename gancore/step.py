"""Steps: what a plugin sees of one update, in which each forward pass is made once and shared."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gancore.checks.compiling import refuse_unfit, uncompiled
from gancore.checks.dependence import refuse_dependence
from gancore.checks.samples import refuse_unusable as refuse_unusable
from gancore.critics import Critic as Critic
from gancore.critics import Uniform as Uniform
from gancore.critics import as_leaf, gradient_of
from gancore.critics import critic_scores as critic_scores
from gancore.critics import input_gradient as input_gradient
from gancore.critics import interpolate as interpolate
from gancore.critics import uniform_like as uniform_like
from gancore.critics.piecewise_linear import StructuralZeros
from gancore.errors import ContractError
from gancore.isolation.randomness import Count as Count
from gancore.isolation.randomness import Randomness

Average = Callable[[Tensor], Tensor]
"""Makes the mean over all processes of what each has."""

NAME = re.compile(r"[a-z0-9_]{1,64}")
"""A name of a note."""


class _Known(NamedTuple):
    """Scores computed before. It holds x: while it does, no other tensor can have its id."""

    x: Tensor
    version: int
    scores: Tensor
    with_grad: bool
    x_required_grad: bool


def _version(x: Tensor) -> int:
    """Return how often x was changed in place, where that can be told."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


_Key = tuple[int, torch.dtype | None]
"""A tensor's id, and the precision of autocast; None without autocast."""


def _keys(x: Tensor) -> list[_Key]:
    """Return the keys of what may serve for x; the last is that of what is computed now."""
    kind, own = x.device.type, (id(x), None)
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return [own]
    return [own, (id(x), torch.get_autocast_dtype(kind))]


@dataclass
class _Asker:
    """Whose hook is called, and how many numbers and scores of its own it has asked for."""

    who: str
    plugin: str
    drawings: int = 0
    scorings: int = 0


class _Step:
    """A critic, the scores that it gave in this step, each computed once, and random numbers."""

    real: Tensor
    _side: ClassVar[str]

    def __init__(
        self,
        critic: Critic,
        labels: Tensor | None,
        update: Count,
        average: Average | None,
        randomness: Randomness | None,
    ) -> None:
        self.critic = critic
        self.labels = labels
        self._update = update
        self._average = average
        self._randomness = randomness
        self._asker = _Asker("step", "step")
        self._known: dict[_Key, _Known] = {}
        self._notes: dict[str, Tensor] = {}
        self._handed: list[tuple[str, Tensor, int]] = []
        """Tensors that all plugins share: what each is, and its version when it was new."""

    @property
    def update(self) -> int:
        """Which update this is, from 0."""
        return self._update if isinstance(self._update, int) else self._update()

    def scores(self, x: Tensor) -> Tensor:
        """Return D(x) as (B,) for x (B, *): one forward pass, however often asked.

        Scores of full precision serve under autocast too. Scores made under autocast serve there
        only.
        """
        return self._scored(x).scores

    def rand(self, *shape: int, shared: bool = False) -> Tensor:
        """Return numbers uniform in [0, 1), of the dtype and device of `real`.

        shape   whose first dimension, if it is B, has a row for each sample
        shared  the first dimension is no batch, whatever its size

        In a run each number is a function of the seed, the plugin, the hook, the update, which of
        the hook's calls this is, and the index. Other plugins, the number of processes and
        compiling do not change it. A step of your own draws from torch's global generator.
        """
        return self._drawn(shape, shared, normal=False)

    def randn(self, *shape: int, shared: bool = False) -> Tensor:
        """Return normal numbers, of mean 0 and variance 1; otherwise as `rand`."""
        return self._drawn(shape, shared, normal=True)

    def averaged(self, statistic: Tensor) -> Tensor:
        """Return the mean of a statistic of this batch over all processes of the run, detached.

        Under torchrun a step has this process's part of the batch alone. Penalties that are means
        over samples need no care. Average every other statistic of the batch by this: a moving
        average of scores, say, or a standard deviation. On one process it is the statistic.
        """
        value = statistic.detach()
        return value if self._average is None else self._average(value)

    def note(self, name: str, value: Tensor | float) -> None:
        """Record a number beside the penalties: `note/<plugin>/<name>` in metrics.jsonl.

        name   1 to 64 of a–z, 0–9 and _
        value  a scalar tensor, or a number. The note keeps a copy without the graph.

        The device is not waited for, and a compiled update may note too. Of two values of one name
        in one step the later counts. A value that is inf or nan does not end the run. Raises
        ContractError, which names the plugin, for another name or value.
        """
        about = f"plugin {self._asker.plugin}: step.note got"
        if not torch.compiler.is_compiling() and not (
            isinstance(name, str) and NAME.fullmatch(name)
        ):
            raise ContractError(f"{about} the name {name!r}, expected 1 to 64 of a–z, 0–9 and _")
        if isinstance(value, Tensor) and not value.dim() and not value.is_complex():
            number = torch.empty_like(value, dtype=self.real.dtype, device=self.real.device)
            number = number.copy_(value.detach(), non_blocking=True)
        elif isinstance(value, int | float):
            number = torch.zeros((), dtype=self.real.dtype, device=self.real.device) + float(value)
        else:
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            raise ContractError(
                f"{about} a {type(value).__name__}{shape} as {name!r}, expected a real scalar "
                "tensor or a number: note its mean, say"
            )
        self._notes[f"note/{self._asker.plugin}/{name}"] = number

    @property
    def notes(self) -> dict[str, Tensor]:
        """What was noted so far, by record key: scalars of the dtype and device of `real`."""
        return dict(self._notes)

    def _asked_by(self, who: str, plugin: str = "step") -> None:
        """Say whose hook is called next: it draws its own numbers, from the first on."""
        self._asker = _Asker(who, plugin)

    def _hand(self, what: str, tensor: Tensor) -> Tensor:
        if not (torch.compiler.is_compiling() or tensor.is_inference()):
            self._handed.append((what, tensor, tensor._version))
        return tensor

    def _drawn(self, shape: tuple[Any, ...], shared: bool, *, normal: bool) -> Tensor:
        size = tuple(shape[0]) if shape and isinstance(shape[0], Sequence) else shape
        self._asker.drawings += 1
        return self._numbers(self._asker.who, self._asker.drawings, size, shared, normal)

    def _numbers(
        self, who: str, call: int, size: tuple[int, ...], shared: bool = False, normal: bool = False
    ) -> Tensor:
        if self._randomness is None:
            draw = torch.randn if normal else torch.rand
            return draw(size, dtype=self.real.dtype, device=self.real.device)
        is_batch = not shared and size[:1] == self.real.shape[:1]
        return self._randomness.numbers(
            who, call, self._update, size, self.real, is_batch=is_batch, normal=normal
        )

    def _apart(self, x: Tensor) -> AbstractContextManager[None]:
        """Return the context in which the critic draws (dropout) apart from who asks for scores.

        Its draws on x are its own where x is the step's own, else the asker's.
        """
        if self._randomness is None or self._randomness.clock is not None:
            return nullcontext()
        for name in ("real", "fake", "_interpolates"):
            if getattr(self, name, None) is x:
                who = f"{self._side}/scores of {name.strip('_')}"
                return self._randomness.apart(who, self.update)
        self._asker.scorings += 1
        who = f"{self._asker.who}/scores {self._asker.scorings}"
        return self._randomness.apart(who, self.update)

    def _scored(self, x: Tensor) -> _Known:
        for key in (keys := _keys(x)):
            known = self._known.get(key)
            # scores that were only looked at, under no_grad, can't serve a loss
            if (
                known is not None
                and known.version == _version(x)
                and (known.with_grad or not torch.is_grad_enabled())
            ):
                return known
        with self._apart(x):
            scores = critic_scores(self.critic, x)
        if scores.dtype == torch.float64 != self.real.dtype:  # of a critic that casts by itself
            scores = scores.float()
        known = _Known(x, _version(x), scores, torch.is_grad_enabled(), x.requires_grad)
        self._hand("the answer of step.scores", scores)
        self._known[keys[-1]] = known
        return known


class CriticStep(_Step):
    """One critic update, as its loss and penalties see it.

    critic   the module that is trained
    real     (B, *) real samples, a leaf that requires grad
    fake     (B, *) generated samples, a leaf that requires grad
    labels   (B,) one vector for real and fake, or None
    update   which critic update this is, from 0

    allow_batch_statistics lets `input_gradient` meet scores that depend on other samples;
    allow_batchnorm is its old name.
    """

    _side = "critic"

    def __init__(
        self,
        critic: Critic,
        real: Tensor,
        fake: Tensor,
        *,
        labels: Tensor | None = None,
        update: Count = 0,
        allow_batch_statistics: bool = False,
        average: Average | None = None,
        randomness: Randomness | None = None,
        allow_batchnorm: bool = False,
    ) -> None:
        refuse_unusable(real=real, fake=fake)
        super().__init__(critic, labels, update, average, randomness)
        self.real = as_leaf(real)
        self.fake = as_leaf(fake)
        self._allow_batch_statistics = allow_batch_statistics or allow_batchnorm
        self._gradients: dict[_Key, tuple[int, Tensor]] = {}
        self._interpolates: Tensor | None = None

    @property
    def interpolates(self) -> Tensor:
        """(B, *) uniform points on the lines between real and fake, drawn once a step."""
        if self._interpolates is None:
            interpolates = interpolate(self.real, self.fake, uniform=self._alpha)
            self._interpolates = self._hand("step.interpolates", interpolates)
        return self._interpolates

    def _alpha(self, *shape: int) -> Tensor:
        return self._numbers("interpolates", 0, shape)

    @uncompiled
    def input_gradient(self, x: Tensor) -> Tensor:
        """Return ∇ₓ Σ D(x) in the shape of x, differentiable once more: computed once a step.

        x is `real`, `fake`, `interpolates` or any tensor that required grad before its first
        use in this step. Raises ContractError otherwise, and as the function `input_gradient`.
        """
        for key in (keys := _keys(x)):
            version, gradient = self._gradients.get(key, (-1, x))
            if version == _version(x):
                return gradient
        refuse_unfit(self.critic)
        with StructuralZeros():
            known = self._scored(x) if x.requires_grad else None
        if known is None or not known.x_required_grad:
            raise ContractError(
                f"input_gradient was asked for a tensor {tuple(x.shape)} that does not require "
                "grad, or did not when it was scored: call x.requires_grad_() before its first "
                "use in this step"
            )
        gradient = gradient_of(known.scores, x)
        allow = self._allow_batch_statistics
        refuse_dependence(self.critic, known.scores, x, allow_batch_statistics=allow)
        self._hand("the answer of step.input_gradient", gradient)
        self._gradients[keys[-1]] = (_version(x), gradient)
        return gradient


class GeneratorStep(_Step):
    """One generator update, as its loss and penalties see it.

    generator  the module that is trained
    critic     the critic, fixed for this update
    real       (B, *) fresh real samples
    fake       (B, *) generated samples, with the graph to the generator
    latents    (B, latent) what `fake` was made from, a leaf that requires grad; None if unknown
    labels     (B,) one vector for real and fake, or None
    update     which generator update this is, from 0
    """

    _side = "generator"

    def __init__(
        self,
        generator: Callable[[Tensor], Tensor],
        critic: Critic,
        real: Tensor,
        fake: Tensor,
        *,
        latents: Tensor | None = None,
        labels: Tensor | None = None,
        update: Count = 0,
        average: Average | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        refuse_unusable(real=real, fake=fake)
        super().__init__(critic, labels, update, average, randomness)
        self.generator = generator
        self.real = real
        self.fake = fake
        self.latents = latents
