"""Steps: what a plugin sees of one update, and the mathematics that penalties share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gancore.checks import guard
from gancore.checks.compiling import refuse_unfit, uncompiled
from gancore.checks.dependence import refuse_dependence
from gancore.checks.samples import refuse_unusable as refuse_unusable
from gancore.errors import ContractError
from gancore.isolation.randomness import Randomness
from gancore.piecewise_linear import StructuralZeros

Critic = Callable[[Tensor], Tensor]
"""Any callable (B, *) → (B,), (B, 1) or (B, 1, 1, 1): an nn.Module, a function, a lambda."""


def critic_scores(critic: Critic, x: Tensor) -> Tensor:
    """Return the critic's outputs for x (B, *) as (B,), in float32 at least.

    The critic is given a copy, which it may change in place: x stays, and the scores are functions
    of it. Raises ContractError when the critic answers anything but one number a sample.
    """
    out = _answer(critic, x)
    if not isinstance(out, Tensor):
        raise ContractError(
            f"the critic returned {type(out).__name__}, expected a tensor of one score a sample: "
            "for a critic that returns more, pass a lambda that picks the score"
        )
    if out.shape[:1] != x.shape[:1] or out.numel() != x.shape[0]:
        raise ContractError(
            f"the critic returned shape {tuple(out.shape)} for {x.shape[0]} samples, expected "
            "(B,), (B, 1) or (B, 1, 1, 1): reduce its output to one score a sample"
        )
    if not out.is_floating_point():
        raise ContractError(
            f"the critic returned scores of {out.dtype}, from which nothing can be learned: let it "
            "return floating-point numbers"
        )
    if out.dim() != 1:
        out = out.reshape(x.shape[0])
    return out.float() if out.dtype in (torch.float16, torch.bfloat16) else out


def _answer(critic: Critic, x: Tensor) -> object:
    """Return what a critic makes of a copy of x; what it raises is told of it, not of who asks."""
    if torch.compiler.is_compiling():
        return critic(x.clone())
    try:
        return critic(x.clone())
    except BaseException as error:
        guard.name(error, f"the critic, given {x.dtype} {tuple(x.shape)} on {x.device}")
        raise


Uniform = Callable[..., Tensor]
"""Makes numbers, uniform in [0, 1), of the shape in its arguments: `step.rand`, say."""


def uniform_like(x: Tensor, generator: torch.Generator | None = None) -> Uniform:
    """Return what `step.rand` is to a step, for plain functions: it draws from torch's generator.

    x: whose dtype and device the numbers have.
    """
    return lambda *shape: torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)


def interpolate(
    real: Tensor,
    fake: Tensor,
    *,
    generator: torch.Generator | None = None,
    uniform: Uniform | None = None,
) -> Tensor:
    """Return x̂ = α·real + (1 − α)·fake, one α ~ U(0, 1) a sample, as a leaf that requires grad.

    real, fake  (B, *), left as they were
    generator   where α is drawn from; torch's global generator if None
    uniform     what draws α instead, such as `step.rand`

    Gulrajani et al., 2017, Algorithm 1, lines 4 to 6. Raises ContractError when their shapes or
    devices differ, and for what are no floating-point samples.
    """
    refuse_unusable(real=real, fake=fake)
    if real.device != fake.device:
        raise ContractError(
            f"real is on {real.device}, fake on {fake.device}: move one to the other"
        )
    if real.shape != fake.shape:
        raise ContractError(
            f"real has shape {tuple(real.shape)}, fake {tuple(fake.shape)}: "
            "interpolates need as many of one as of the other"
        )
    with torch.no_grad():
        draw = uniform or uniform_like(real, generator)
        alpha = draw(real.shape[0], *[1] * (real.dim() - 1))
        x = torch.lerp(fake.to(real.dtype), real, alpha)
    return x.requires_grad_()


def _leaf(x: Tensor) -> Tensor:
    """Return x as a leaf that requires grad; of samples made in inference mode, a copy."""
    if torch.compiler.is_compiling() or not x.is_inference():
        return x.detach().requires_grad_()
    return x.clone().requires_grad_()


@uncompiled
def input_gradient(critic: Critic, x: Tensor, *, allow_batch_statistics: bool = False) -> Tensor:
    """Return ∇ₓ Σ D(x), the gradient of each score by its own sample, differentiable once more.

    x: (B, *), left as it was; the answer has its shape. Raises ContractError for x that is no
    floating-point tensor, or empty, and for a critic whose scores have no path to x, whose scores
    depend on other samples than their own, or that can't be differentiated twice (`refuse_unfit`).
    Within a function of yours that is compiled it runs uncompiled. With allow_batch_statistics
    scores may depend on others: it is then the gradient of their sum.
    """
    refuse_unusable(x=x)
    refuse_unfit(critic)
    x = _leaf(x)
    with StructuralZeros():
        scores = critic_scores(critic, x)
    gradient = gradient_of(scores, x)
    refuse_dependence(critic, scores, x, allow_batch_statistics=allow_batch_statistics)
    return gradient


def gradient_of(scores: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of Σ scores by x, with a graph.

    Raises ContractError where there is no path from the scores to x, or gradients are switched off.
    """
    if not torch.is_grad_enabled():
        raise ContractError("an input gradient was asked for under torch.no_grad: leave that first")
    gradient = None
    if scores.requires_grad:
        (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True, allow_unused=True)
    if gradient is None:
        raise ContractError(
            "the critic's scores have no path to its input, so there is no gradient to penalize: "
            "don't detach the input, nor score it under torch.no_grad (freeze an extractor by "
            "requires_grad_(False) instead)"
        )
    return gradient


Count = int | Callable[[], int]
"""A number, or what tells it: a compiled update depends on its number only where that is asked."""


Average = Callable[[Tensor], Tensor]
"""Makes the mean over all processes of what each has."""


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
"""Of a tensor, by its id, in the precision of autocast; None is its own."""


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
    drawings: int = 0
    scorings: int = 0


class _Scores:
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
        self._asker = _Asker("step")
        self._known: dict[_Key, _Known] = {}
        self._notes: dict[str, Tensor] = {}
        self._handed: list[tuple[str, Tensor, int]] = []
        """Tensors that all plugins share: what each is, and its version when it was new."""

    def _hand(self, what: str, tensor: Tensor) -> Tensor:
        if not (torch.compiler.is_compiling() or tensor.is_inference()):
            self._handed.append((what, tensor, tensor._version))
        return tensor

    def note(self, name: str, value: Tensor) -> None:
        """Record a number beside penalties."""
        plugin = self._asker.who.partition("/")[2]
        self._notes[f"note/{plugin}/{name}"] = value.detach()

    @property
    def notes(self) -> dict[str, Tensor]:
        """What was noted so far, by record key."""
        return dict(self._notes)

    def _asked_by(self, who: str) -> None:
        """Say whose hook is called next: it draws its own numbers, from the first on."""
        self._asker = _Asker(who)

    def rand(self, *shape: int, shared: bool = False) -> Tensor:
        """Return numbers uniform in [0, 1), of the dtype and device of `real`.

        shape   whose first dimension, if it is B, has a row for each sample
        shared  the first dimension is no batch, whatever its size

        In a run each number is a function of the seed, the plugin, the hook, the update, which of
        the hook's calls this is, and the index: whatever other plugins draw, on however many
        processes, compiled or not. A step of your own draws from torch's global generator.
        """
        return self._drawn(shape, shared, normal=False)

    def randn(self, *shape: int, shared: bool = False) -> Tensor:
        """Return normal numbers, of mean 0 and variance 1; otherwise as `rand`."""
        return self._drawn(shape, shared, normal=True)

    def _drawn(self, shape: tuple[Any, ...], shared: bool, *, normal: bool) -> Tensor:
        size = tuple(shape[0]) if shape and isinstance(shape[0], Sequence) else shape
        asker = self._asker
        asker.drawings += 1
        return self._numbers(asker.who, asker.drawings, size, shared=shared, normal=normal)

    def _numbers(
        self, who: str, call: int, size: tuple[int, ...], *, shared: bool, normal: bool
    ) -> Tensor:
        if self._randomness is None:
            draw = torch.randn if normal else torch.rand
            return draw(size, dtype=self.real.dtype, device=self.real.device)
        is_batch = not shared and size[:1] == self.real.shape[:1]
        update = self.update if self._randomness.clock is None else 0
        return self._randomness.numbers(
            who, call, update, size, self.real, is_batch=is_batch, normal=normal
        )

    def _name(self, x: Tensor) -> str:
        """Return whose draws those of the critic on x are: its own where x is the step's own."""
        for name in ("real", "fake", "_interpolates"):
            if getattr(self, name, None) is x:
                return f"{self._side}/scores of {name.strip('_')}"
        self._asker.scorings += 1
        return f"{self._asker.who}/scores {self._asker.scorings}"

    def _apart(self, x: Tensor) -> AbstractContextManager[None]:
        """Return the context in which the critic draws (dropout) apart from who asks for scores."""
        if self._randomness is None or self._randomness.clock is not None:
            return nullcontext()
        return self._randomness.apart(self._name(x), self.update)

    @property
    def _known_scores(self) -> list[Tensor]:
        """Scores with a graph that were computed so far."""
        return [known.scores for known in self._known.values() if known.with_grad]

    @property
    def update(self) -> int:
        """Which update this is, from 0."""
        return self._update if isinstance(self._update, int) else self._update()

    def averaged(self, statistic: Tensor) -> Tensor:
        """Return the mean of a statistic of this batch over all processes of the run, detached.

        Under torchrun a step has this process's part of the batch alone. Penalties that are means
        over samples need not care; whatever else is made of the batch (a moving average of scores,
        a standard deviation) has to be the same everywhere. On one process it is the statistic.
        """
        value = statistic.detach()
        return value if self._average is None else self._average(value)

    def scores(self, x: Tensor) -> Tensor:
        """Return D(x) as (B,) for x (B, *): one forward pass, however often asked.

        Under autocast a second one is made where those outside can't be served: scores of full
        precision serve both.
        """
        return self._scored(x).scores

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


class CriticStep(_Scores):
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
        self.real = _leaf(real)
        self.fake = _leaf(fake)
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
        return self._numbers("interpolates", 0, shape, shared=False, normal=False)

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


class GeneratorStep(_Scores):
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
