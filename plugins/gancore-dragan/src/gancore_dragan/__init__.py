"""DRAGAN's gradient penalty (Kodali et al., 2017, "On Convergence and Stability of GANs")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from gancore import CriticStep, hookimpl, input_gradient, plugin
from gancore.step import Critic, refuse_unusable, uniform_like

__all__ = ["DRAGAN", "dragan_penalty"]


def dragan_penalty(
    critic: Critic,
    real: Tensor,
    *,
    weight: float = 10.0,
    target: float = 1.0,
    noise: Literal["authors", "gaussian"] = "authors",
    scale: float = 0.5,
    generator: torch.Generator | None = None,
    allow_batch_statistics: bool = False,
) -> Tensor:
    """Return λ·E[(‖∇D(x + δ)‖₂ − k)²] over real samples x and noise δ.

    Kodali et al., 2017. The norm is taken over all non-batch dimensions.

    critic     any callable (B, *) → (B,), (B, 1) or (B, 1, 1, 1)
    real       (B, *), left as it was
    weight     λ
    target     k, the norm to pull to
    noise      "authors": δ = α·scale·std·u, where α ~ U(0, 1) is one number a sample, u ~ U(0, 1)
               one a dimension, and std the standard deviation of all numbers in `real` (the
               authors' code); "gaussian": δ ~ N(0, scale²·I) (the paper)
    scale      the size of the noise: in units of that std, or of the data
    generator  where the noise is drawn from; torch's global generator if None
    allow_batch_statistics
               let scores depend on other samples: the gradient is then that of Σ D

    Returns a scalar with the graph to the critic's parameters, in the dtype of `real`. Under
    torch.autocast the critic and its gradient are computed in autocast's precision; outside of it,
    in their own. Raises ValueError for another `noise`, and gancore.errors.ContractError for
    samples that are no floating-point tensor, or none, and for a critic whose scores have no path
    to its input, or depend on other samples than their own.
    """
    refuse_unusable(real=real)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=real.dtype, device=real.device)

    x = _around(real, noise, scale, uniform_like(real, generator), normal)
    gradient = input_gradient(critic, x, allow_batch_statistics=allow_batch_statistics)
    return weight * _distance(gradient, target)


@plugin
class DRAGAN:
    """λ·E[(‖∇D(x + δ)‖₂ − k)²] around real samples (Kodali et al., 2017).

    weight: λ.
    target: k, the gradient norm to pull to.
    noise: "authors" for uniform noise as in the authors' code, "gaussian" as in the paper.
    scale: the size of the noise, in units of the batch's standard deviation ("authors") or of
        the data ("gaussian").
    """

    weight: Annotated[float, Gt(0)] = 10.0
    target: Annotated[float, Ge(0)] = 1.0
    noise: Literal["authors", "gaussian"] = "authors"
    scale: Annotated[float, Ge(0)] = 0.5

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        """Answer the penalty around the step's real samples."""
        x = _around(step.real, self.noise, self.scale, step.rand, step.randn, step.averaged)
        return self.weight * _distance(step.input_gradient(x), self.target)


@torch.no_grad()
def _around(
    real: Tensor,
    noise: str,
    scale: float,
    uniform: Callable[..., Tensor],
    normal: Callable[..., Tensor],
    average: Callable[[Tensor], Tensor] = torch.Tensor.detach,
) -> Tensor:
    match noise:
        case "authors":
            center = average(real.mean())  # of all numbers in the batch, and so is std
            std = average((real - center).square().mean()).sqrt()
            alpha = uniform(len(real), *[1] * (real.dim() - 1))
            delta = alpha * std * uniform(*real.shape)
        case "gaussian":
            delta = normal(*real.shape)
        case _:
            raise ValueError(f"noise is {noise!r}, expected 'authors' or 'gaussian'")
    return (real + scale * delta).requires_grad_()


def _distance(gradient: Tensor, target: float) -> Tensor:
    # vector_norm, unlike sqrt of a sum, has derivative 0 at a zero gradient, not nan
    norm: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (norm - target).square().mean()
