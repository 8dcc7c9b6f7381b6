"""Spectral normalization (Miyato et al., 2018, "Spectral Normalization for GANs")."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, TypeVar

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import parametrize

from gancore import hookimpl, plugin

__all__ = ["SpectralNorm", "apply_spectral_norm"]

M = TypeVar("M", bound=nn.Module)

WARM_UP = 15
"""Power iterations when the normalization is put on, so that σ starts well estimated."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, *TRANSPOSED)


def apply_spectral_norm(module: M, *, n_power_iterations: int = 1) -> M:
    """Divide each layer's weight by an estimate of its largest singular value σ, in place.

    A convolution's weight (out, in, kh, kw) counts as the matrix (out, in·kh·kw) (Miyato et al.,
    2018, section 2.1). In training mode each forward pass of `module` begins with
    `n_power_iterations` of the power method on every layer (Algorithm 1). Returns the module.

    Raises ValueError for n_power_iterations < 1, for a module that has no linear, convolution
    or embedding layer, or is normalized already, and for a layer whose weights are all zero.
    """
    if n_power_iterations < 1:
        raise ValueError(f"n_power_iterations is {n_power_iterations}, expected 1 or more")
    _normalize(module)

    def iterate_in_training(module: nn.Module, inputs: object) -> None:
        if module.training:
            _iterate(module, n_power_iterations)

    module.register_forward_pre_hook(iterate_in_training)
    return module


@plugin
class SpectralNorm:
    """Divide the critic's weights by their largest singular value (Miyato et al., 2018).

    n_power_iterations: steps of the power method after each critic update; the weights stay
        the same for all critic calls of an update, and for the generator's.
    """

    n_power_iterations: Annotated[int, Ge(1), Le(1000)] = 1

    @hookimpl
    def prepare_critic(self, critic: nn.Module) -> None:
        """Reparametrize every linear, convolution and embedding layer."""
        _normalize(critic)

    @hookimpl
    def post_step(self, critic: nn.Module) -> None:
        """Follow the new weights with the power method."""
        _iterate(critic, self.n_power_iterations)


class _SpectralNorm(nn.Module):
    """The parametrization W ↦ W / σ with σ = uᵀWv, where u and v count as constants."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, output_dim: int) -> None:
        super().__init__()
        self.output_dim = output_dim
        rows, columns = self._matrix(weight).shape
        self.register_buffer("u", normalize(weight.new_empty(rows).normal_(), dim=0))
        self.register_buffer("v", weight.new_empty(columns))
        self.iterate(weight, WARM_UP)

    def forward(self, weight: Tensor) -> Tensor:
        # clones: a later power iteration must not change what this graph has saved
        with _no_autocast(weight):
            return weight / torch.dot(self.u.clone(), self._matrix(weight) @ self.v.clone())

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    @torch.no_grad()
    def iterate(self, weight: Tensor, steps: int) -> None:
        matrix = self._matrix(weight)
        with _no_autocast(weight):
            for _ in range(steps):
                self.v.copy_(normalize(matrix.T @ self.u, dim=0))
                self.u.copy_(normalize(matrix @ self.v, dim=0))

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.movedim(self.output_dim, 0).flatten(1)


def _no_autocast(weight: Tensor) -> AbstractContextManager[None]:
    # it would multiply in half precision, and then refuse to mix that with u
    device = weight.device.type
    if not torch.amp.is_autocast_available(device):  # the meta device
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _normalize(module: nn.Module) -> None:
    if next(_normalized(module), None):
        raise ValueError(f"{type(module).__name__} has spectral normalization already")
    layers = {name: part for name, part in module.named_modules() if isinstance(part, LAYERS)}
    if not layers:
        raise ValueError(
            f"{type(module).__name__} has no linear, convolution or embedding layer to normalize"
        )
    for name, layer in layers.items():
        if not (layer.weight.is_meta or layer.weight.any()):
            raise ValueError(
                f"the weights of {name or type(layer).__name__!r} are all zero and so is their "
                "spectral norm, by which they would be divided: initialize them otherwise"
            )
    for layer in layers.values():
        norm = _SpectralNorm(layer.weight.detach(), 1 if isinstance(layer, TRANSPOSED) else 0)
        parametrize.register_parametrization(layer, "weight", norm)


def _iterate(module: nn.Module, steps: int) -> None:
    for norm, weight in _normalized(module):
        norm.iterate(weight, steps)


def _normalized(module: nn.Module) -> Iterator[tuple[_SpectralNorm, Tensor]]:
    for part in module.modules():
        if isinstance(part, parametrize.ParametrizationList):
            for norm in part:
                if isinstance(norm, _SpectralNorm):
                    yield norm, part.original
