"""Steps: what a plugin sees of one update, and the mathematics that penalties share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gancore.errors import ContractError
from gancore.zeros import StructuralZeros

Critic = Callable[[Tensor], Tensor]
"""Any callable (B, *) → (B,), (B, 1) or (B, 1, 1, 1): an nn.Module, a function, a lambda."""


def critic_scores(critic: Critic, x: Tensor) -> Tensor:
    """Return the critic's outputs for x (B, *) as (B,), in float32 at least.

    Raises ContractError when the critic answers anything but one number a sample.
    """
    out = critic(x)
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
    if out.dim() != 1:
        out = out.reshape(x.shape[0])
    return out.float() if out.dtype in (torch.float16, torch.bfloat16) else out


def interpolate(real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Return x̂ = α·real + (1 − α)·fake, one α ~ U(0, 1) a sample, as a leaf that requires grad.

    real, fake: (B, *), left as they were. Gulrajani et al., 2017, Algorithm 1, lines 4 to 6.
    Raises ContractError when their shapes differ.
    """
    if real.shape != fake.shape:
        raise ContractError(
            f"real has shape {tuple(real.shape)}, fake {tuple(fake.shape)}: "
            "interpolates need as many of one as of the other"
        )
    with torch.no_grad():
        alpha = torch.rand(
            real.shape[0],
            *[1] * (real.dim() - 1),
            generator=generator,
            dtype=real.dtype,
            device=real.device,
        )
        x = torch.lerp(fake.to(real.dtype), real, alpha)
    return x.requires_grad_()


def input_gradient(critic: Critic, x: Tensor) -> Tensor:
    """Return ∇ₓ Σ D(x), the gradient of each score by its own sample, differentiable once more.

    x: (B, *), left as it was; the answer has its shape. Zeros where the critic ignores x.
    Raises ContractError for a critic whose scores do not belong to one sample alone, or can't
    be differentiated twice (`refuse_unfit`).
    """
    refuse_unfit(critic)
    x = x.detach().requires_grad_()
    with StructuralZeros():
        scores = critic_scores(critic, x)
    return gradient_of(scores, x)


def gradient_of(scores: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of Σ scores by x, with a graph; zeros where there is no dependence.

    Raises ContractError where gradients are switched off, which would look like no dependence.
    """
    if not torch.is_grad_enabled():
        raise ContractError("an input gradient was asked for under torch.no_grad: leave that first")
    if not scores.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True, materialize_grads=True)
    return gradient


def refuse_unfit(critic: Critic, *, allow_batchnorm: bool = False) -> None:
    """Raise ContractError for a critic whose input gradients mean nothing, or can't be had.

    That is batch normalization that uses batch statistics, which makes each score depend on all
    samples, and torch.compile around the critic alone, which can't be differentiated twice.
    """
    if not isinstance(critic, nn.Module):
        return
    for name, module in critic.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise ContractError(
                f"the critic's {name or 'whole'!r} is torch.compile'd, and its gradient can't be "
                "differentiated a second time: give the module itself"
            )
        uses_batch = isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        )
        if uses_batch and not allow_batchnorm:
            raise ContractError(
                f"the critic's {name or type(module).__name__!r} is batch normalization with batch "
                "statistics, so each score depends on the whole batch and a per-sample gradient "
                "penalty means nothing: use layer, group, instance or no normalization in the "
                "critic (or, knowing this, set train.allow_batchnorm = true)"
            )


Count = int | Callable[[], int]
"""A number, or what tells it: a compiled update depends on its number only where that is asked."""


Average = Callable[[Tensor], Tensor]
"""Makes the mean over all processes of what each has."""


class _Known(NamedTuple):
    """Scores computed before. It holds x: while it does, no other tensor can have its id."""

    x: Tensor
    scores: Tensor
    with_grad: bool
    x_required_grad: bool


class _Scores:
    """A critic and the scores that it gave in this step, each computed once."""

    def __init__(
        self, critic: Critic, labels: Tensor | None, update: Count, average: Average | None
    ) -> None:
        self.critic = critic
        self.labels = labels
        self._update = update
        self._average = average
        self._known: dict[int, _Known] = {}
        self._handed: list[tuple[str, Tensor, int]] = []
        """Tensors that all plugins share: what each is, and its version when it was new."""

    def _hand(self, what: str, tensor: Tensor) -> Tensor:
        if not (torch.compiler.is_compiling() or tensor.is_inference()):
            self._handed.append((what, tensor, tensor._version))
        return tensor

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
        """Return D(x) as (B,) for x (B, *): one forward pass, however often asked."""
        known = self._known.get(id(x))
        if known is None or (torch.is_grad_enabled() and not known.with_grad):
            # scores that were only looked at, under no_grad, can't serve a loss
            scores = critic_scores(self.critic, x)
            known = _Known(x, scores, torch.is_grad_enabled(), x.requires_grad)
            self._hand("the answer of step.scores", scores)
            self._known[id(x)] = known
        return known.scores


class CriticStep(_Scores):
    """One critic update, as its loss and penalties see it.

    critic   the module that is trained
    real     (B, *) real samples, a leaf that requires grad
    fake     (B, *) generated samples, a leaf that requires grad
    labels   (B,) one vector for real and fake, or None
    update   which critic update this is, from 0
    """

    def __init__(
        self,
        critic: Critic,
        real: Tensor,
        fake: Tensor,
        *,
        labels: Tensor | None = None,
        update: Count = 0,
        allow_batchnorm: bool = False,
        average: Average | None = None,
    ) -> None:
        super().__init__(critic, labels, update, average)
        self.real = real.detach().requires_grad_()
        self.fake = fake.detach().requires_grad_()
        self._allow_batchnorm = allow_batchnorm
        self._gradients: dict[int, Tensor] = {}
        self._interpolates: Tensor | None = None

    @property
    def interpolates(self) -> Tensor:
        """(B, *) uniform points on the lines between real and fake, drawn once a step."""
        if self._interpolates is None:
            self._interpolates = self._hand("step.interpolates", interpolate(self.real, self.fake))
        return self._interpolates

    def input_gradient(self, x: Tensor) -> Tensor:
        """Return ∇ₓ Σ D(x) in the shape of x, differentiable once more: computed once a step.

        x is `real`, `fake`, `interpolates` or any tensor that required grad before its first
        use in this step. Raises ContractError otherwise, and for an unfit critic
        (`refuse_unfit`).
        """
        if id(x) not in self._gradients:
            refuse_unfit(self.critic, allow_batchnorm=self._allow_batchnorm)
            known = self._known.get(id(x))
            if not (x.requires_grad if known is None else known.x_required_grad):
                raise ContractError(
                    f"input_gradient was asked for a tensor {tuple(x.shape)} that does not require "
                    "grad, or did not when it was scored: call x.requires_grad_() before its first "
                    "use in this step"
                )
            with StructuralZeros():
                scores = self.scores(x)
            gradient = gradient_of(scores, x)
            self._gradients[id(x)] = self._hand("the answer of step.input_gradient", gradient)
        return self._gradients[id(x)]


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
    ) -> None:
        super().__init__(critic, labels, update, average)
        self.generator = generator
        self.real = real
        self.fake = fake
        self.latents = latents
