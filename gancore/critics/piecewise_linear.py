"""Structural zeros: a second derivative that is zero everywhere leaves no edge in the graph.

ReLU, LeakyReLU and average pooling are linear wherever they have a derivative at all. PyTorch's
double backward answers a tensor of zeros for them, and then drags it backwards through every
convolution before them. Here the same functions are written so that their derivative does not
depend on their input, and nothing is dragged: WGAN-GP on a piecewise-linear critic takes 10
forward passes of half a batch where it took 12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class StructuralZeros(TorchFunctionMode):
    """While it is on, ReLU, LeakyReLU and average pooling leave no second-order edge.

    In all their forms: modules, functions and methods, in place or not, adaptive pooling too.
    Values and gradients stay what they were, to rounding; everything else is untouched. The
    forward passes that a penalty differentiates run in it, whatever the critic.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        """Call `func`, or what stands for it."""
        kwargs = kwargs or {}
        stand_in = STAND_INS.get(func)
        if stand_in is None or not _ordinary(args[0] if args else kwargs.get("input")):
            return func(*args, **kwargs)
        return stand_in(*args, **kwargs)


def _ordinary(input: object) -> bool:
    """Whether there is a second derivative to leave out, and reverse mode alone that takes it.

    The transforms of torch.func, forward-mode AD and subclasses with an arithmetic of their own
    get the function that they know.
    """
    if not isinstance(input, Tensor) or type(input) not in (Tensor, nn.Parameter):
        return False
    if input.is_nested or not (torch.is_grad_enabled() and input.requires_grad):
        return False
    return torch.compiler.is_compiling() or (
        torch._C._functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0
    )


class _Rectify(torch.autograd.Function):
    """ReLU, or LeakyReLU in place, by its output alone, which whatever comes next keeps anyway."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, slope: float, inplace: bool) -> Tensor:
        ctx.set_materialize_grads(False)  # or zeros would be dragged after all
        if inplace:
            ctx.mark_dirty(input)
        ctx.slope = slope
        out = F.leaky_relu(input, slope, inplace) if slope else F.relu(input, inplace)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None, None]:
        if gradient is None:
            return None, None, None
        (out,) = ctx.saved_tensors
        return _times_slope(gradient, out.detach(), ctx.slope), None, None


def _times_slope(x: Tensor, sign: Tensor, slope: float) -> Tensor:
    answer: Tensor = (
        aten.leaky_relu_backward(x, sign, slope, False)
        if slope
        else aten.threshold_backward(x, sign, 0)
    )
    return answer


def _relu(input: Tensor, inplace: bool = False) -> Tensor:
    return _rectified(input, 0.0, inplace)


def _relu_(input: Tensor) -> Tensor:
    return _rectified(input, 0.0, inplace=True)


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    if not isinstance(negative_slope, float | int) or (inplace and not negative_slope > 0):
        return F.leaky_relu(input, negative_slope, inplace)
    if inplace:
        return _rectified(input, negative_slope, inplace)
    # saves the input, as torch does, since the output may be changed by what follows
    answer: Tensor = aten.leaky_relu_backward(input, input.detach(), negative_slope, False)
    return answer


def _leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    return _leaky_relu(input, negative_slope, inplace=True)


def _rectified(input: Tensor, slope: float, inplace: bool) -> Tensor:
    if torch.compiler.is_compiling():
        # an autograd.Function loses its second derivative when compiled, and says nothing
        out = _times_slope(input, input.detach().clone(), slope)
        return input.copy_(out) if inplace else out
    answer: Tensor = _Rectify.apply(input, slope, inplace)
    return answer


class _Pool(torch.autograd.Function):
    """A linear function, differentiated in a graph of its own, where its input is a leaf."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.set_materialize_grads(False)
        with torch.enable_grad():
            ctx.leaf = input.detach().requires_grad_()
            ctx.pooled = pool(ctx.leaf)
        pooled: Tensor = ctx.pooled.detach()
        return pooled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        if gradient is None:
            return None, None
        again = torch.is_grad_enabled()
        (answer,) = torch.autograd.grad(
            ctx.pooled, ctx.leaf, gradient, create_graph=again, retain_graph=True
        )
        return answer, None


def _pooling(pool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def pooled(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return pool(input, *args, **kwargs)
        answer: Tensor = _Pool.apply(input, lambda leaf: pool(leaf, *args, **kwargs))
        return answer

    return pooled


POOLS = (
    F.avg_pool1d,
    F.avg_pool2d,
    F.avg_pool3d,
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
)

STAND_INS: dict[object, Callable[..., Tensor]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_), _relu_),
    **dict.fromkeys((F.leaky_relu, torch._C._nn.leaky_relu), _leaky_relu),
    F.leaky_relu_: _leaky_relu_,
    **{pool: _pooling(pool) for pool in POOLS},
}
"""What stands for each function."""
