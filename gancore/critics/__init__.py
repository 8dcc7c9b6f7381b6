"""A critic as a function of samples: its scores, its input gradient, and points to take them at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gancore.checks import guard
from gancore.checks.compiling import refuse_unfit, uncompiled
from gancore.checks.dependence import refuse_dependence
from gancore.checks.samples import refuse_unusable
from gancore.critics.piecewise_linear import StructuralZeros
from gancore.errors import ContractError

Critic = Callable[[Tensor], Tensor]
"""Any callable (B, *) → (B,), (B, 1) or (B, 1, 1, 1): an nn.Module, a function, a lambda."""

Uniform = Callable[..., Tensor]
"""Makes numbers, uniform in [0, 1), of the shape in its arguments: `step.rand`, say."""


def critic_scores(critic: Critic, x: Tensor) -> Tensor:
    """Return the critic's outputs for x (B, *) as (B,), in float32 at least.

    The critic gets a copy of x, which it may change in place. The scores are functions of x.
    Raises ContractError when the critic answers anything but one number a sample.
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
    """Return the critic's output for a copy of x. An error in it names the critic."""
    if torch.compiler.is_compiling():
        return critic(x.clone())
    try:
        return critic(x.clone())
    except BaseException as error:
        guard.name(error, f"the critic, given {x.dtype} {tuple(x.shape)} on {x.device}")
        raise


@uncompiled
def input_gradient(critic: Critic, x: Tensor, *, allow_batch_statistics: bool = False) -> Tensor:
    """Return ∇ₓ Σ D(x), the gradient of each score by its own sample, differentiable once more.

    x: (B, *), left as it was; the answer has its shape. Raises ContractError for x that is no
    floating-point tensor, or empty. Raises it, too, for a critic whose scores have no path to x or
    depend on other samples than their own, and for one that can't be differentiated twice. With
    allow_batch_statistics scores may depend on other samples: the answer is then the gradient of
    their sum. Within a function of yours that is compiled it runs uncompiled.
    """
    refuse_unusable(x=x)
    refuse_unfit(critic)
    x = as_leaf(x)
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


def as_leaf(x: Tensor) -> Tensor:
    """Return x as a leaf that requires grad; of samples made in inference mode, a copy."""
    if torch.compiler.is_compiling() or not x.is_inference():
        return x.detach().requires_grad_()
    return x.clone().requires_grad_()


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
