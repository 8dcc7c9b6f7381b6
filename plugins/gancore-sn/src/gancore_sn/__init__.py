"""Spectral normalization (Miyato et al., 2018, "Spectral Normalization for GANs")."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
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
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def apply_spectral_norm(module: M, *, n_power_iterations: int = 1) -> M:
    """Divide each layer's weight by an estimate of its largest singular value σ, in place.

    A convolution's weight (out, in, kh, kw) counts as the matrix (out, in·kh·kw) (Miyato et al.,
    2018, section 2.1). In training mode each forward pass of `module` begins with
    `n_power_iterations` of the power method on every layer (Algorithm 1); outside of one, as in
    `module.forward(x)` or a layer called alone, each use of a weight begins with them. Inside a
    backward, where a checkpoint recomputes a pass, there are none. Where other parametrizations
    make the weight, σ is that of what they make. Returns the module.

    Raises ValueError for n_power_iterations < 1, for a module that has no linear, convolution
    or embedding layer, or is normalized already, for a layer whose weights are all zero, and for
    one whose weight is not its parameter (torch's old weight_norm, say). Warns once of parameters
    that it leaves alone.
    """
    if n_power_iterations < 1:
        raise ValueError(f"n_power_iterations is {n_power_iterations}, expected 1 or more")
    _normalize(module)
    for norm, _ in _normalized(module):
        norm.steps = n_power_iterations
    module.register_forward_pre_hook(_begin_pass)
    module.register_forward_hook(_end_pass, always_call=True)
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
        """Reparametrize every linear, convolution and embedding layer.

        A critic that an earlier run has normalized goes on as it is.
        """
        if not _is_normalized(critic):
            _normalize(critic)

    @hookimpl
    def post_step(self, critic: nn.Module) -> None:
        """Follow the new weights with the power method."""
        _iterate(critic, self.n_power_iterations)


class _SpectralNorm(nn.Module):
    """The parametrization W ↦ W / σ with σ = uᵀWv, where u and v count as constants."""

    u: Tensor
    v: Tensor
    steps = 0
    """At each pass in training mode; 0 where a run iterates once an update."""
    in_pass = False
    """Whether the whole module runs, which began with these steps for all layers."""
    begun = 0
    """Passes since the last one that was recomputed."""

    def __init__(self, weight: Tensor, output_dim: int) -> None:
        super().__init__()
        self.output_dim = output_dim
        rows, columns = self._matrix(weight).shape
        self.register_buffer("u", normalize(weight.new_empty(rows).normal_(), dim=0))
        self.register_buffer("v", weight.new_empty(columns))
        self.iterate(weight, WARM_UP)

    def forward(self, weight: Tensor) -> Tensor:
        if self.steps and self.training and not self.in_pass:
            self.begin(weight)
        # clones: a later power iteration must not change what this graph has saved
        with _no_autocast(weight):
            return weight / torch.dot(self.u.clone(), self._matrix(weight) @ self.v.clone())

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def begin(self, weight: Tensor) -> None:
        """Iterate for a pass that begins, unless it is one that a backward recomputes."""
        if torch.compiler.is_compiling():
            self.iterate(weight, self.steps)
        elif torch._C._current_graph_task_id() == -1:
            self.iterate(weight, self.steps)
            self.begun += 1
        else:
            if self.begun > 1:
                warnings.warn(
                    "a checkpoint recomputes a forward pass with the u and v of a later one, so "
                    "its gradients are slightly off: use SpectralNorm().prepare_critic(critic) "
                    "instead, and its post_step(critic) after each update, which iterates there",
                    stacklevel=2,
                )
            self.begun = 0

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


def _begin_pass(module: nn.Module, inputs: object) -> None:
    for norm, weight in _normalized(module):
        if module.training:
            norm.begin(weight())
        norm.in_pass = True


def _end_pass(module: nn.Module, inputs: object, output: object) -> None:
    for norm, _ in _normalized(module):
        norm.in_pass = False


def _normalize(module: nn.Module) -> None:
    if next(_normalized(module), None):
        raise ValueError(
            f"{type(module).__name__} has spectral normalization already: on some of its layers, "
            "or such that each pass iterates (apply_spectral_norm). Give a module without it"
        )
    layers = {
        name or type(part).__name__: part
        for name, part in module.named_modules()
        if isinstance(part, LAYERS)
    }
    if not layers:
        raise ValueError(
            f"{type(module).__name__} has no linear, convolution or embedding layer to normalize"
        )
    for name, layer in layers.items():
        if not (
            "weight" in layer._parameters
            or "weight" in layer._buffers
            or parametrize.is_parametrized(layer, "weight")
        ):
            made_of = ", ".join(key for key in layer._parameters if key.startswith("weight_"))
            raise ValueError(
                f"the weight of {name!r} is no parameter, but made of {made_of or 'others'} before "
                "each call (as torch's old weight_norm and spectral_norm do, and its pruning): "
                "remove that, or use torch.nn.utils.parametrizations"
            )
        if not (layer.weight.is_meta or layer.weight.any()):
            raise ValueError(
                f"the weights of {name!r} are all zero and so is their "
                "spectral norm, by which they would be divided: initialize them otherwise"
            )
    _tell_what_is_left_alone(module, list(layers.values()))
    for layer in layers.values():
        norm = _SpectralNorm(layer.weight.detach(), 1 if isinstance(layer, TRANSPOSED) else 0)
        parametrize.register_parametrization(layer, "weight", norm)


def _tell_what_is_left_alone(module: nn.Module, layers: list[nn.Module]) -> None:
    norms = [part for part in module.modules() if isinstance(part, NORMS)]
    known = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
    for layer in layers:
        known |= {
            id(parameter)
            for name, parameter in layer.named_parameters()
            if name == "weight" or name.startswith("parametrizations.weight.")
        }
    left = [
        name
        for name, parameter in module.named_parameters()
        if id(parameter) not in known and "bias" not in name
    ]
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        warnings.warn(
            f"spectral normalization leaves {', '.join(left[:3])}{more} alone, so nothing bounds "
            "them: only weights of linear, convolution and embedding layers are normalized",
            stacklevel=3,
        )


def _iterate(module: nn.Module, steps: int) -> None:
    for norm, weight in _normalized(module):
        norm.iterate(weight(), steps)


def _is_normalized(module: nn.Module) -> bool:
    """Whether a run's plugin has normalized all of its layers."""
    norms = [norm for norm, _ in _normalized(module)]
    layers = [part for part in module.modules() if isinstance(part, LAYERS)]
    return bool(norms) and len(norms) == len(layers) and not any(norm.steps for norm in norms)


def _normalized(module: nn.Module) -> Iterator[tuple[_SpectralNorm, Callable[[], Tensor]]]:
    """Each normalization, and what makes the weight that it gets."""
    for part in module.modules():
        if isinstance(part, parametrize.ParametrizationList):
            for place, norm in enumerate(part):
                if isinstance(norm, _SpectralNorm):
                    yield norm, partial(_entering, part, place)


@torch.no_grad()
def _entering(part: parametrize.ParametrizationList, place: int) -> Tensor:
    """The parameter, or what the parametrizations before this place make of it, or of several."""
    if part.is_tensor:
        originals = [part.original]
    else:
        originals = [getattr(part, f"original{number}") for number in range(part.ntensors)]
    for earlier in list(part)[:place]:
        originals = [earlier(*originals)]
    (weight,) = originals
    return weight
