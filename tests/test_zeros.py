"""Structural zeros: the same values and gradients, with nothing left to drag zeros through."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gancore import CriticStep, input_gradient
from gancore.critics.piecewise_linear import StructuralZeros

Maps = Callable[[Tensor], Tensor]

FORMS: dict[str, Maps] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda h: F.relu(h, inplace=True),
    "F.relu by keyword": lambda h: F.relu(input=h),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "x.relu": lambda h: h.relu(),
    "x.relu_": lambda h: h.relu_(),
    "relu in place, by its side effect": lambda h: (F.relu(h, inplace=True), h)[1],
    "relu in place of a view": lambda h: (F.relu_(h[:, :2]), h)[1],
    "nn.LeakyReLU": nn.LeakyReLU(0.2),
    "nn.LeakyReLU in place": nn.LeakyReLU(0.2, inplace=True),
    "nn.LeakyReLU, slope 0": nn.LeakyReLU(0.0),
    "nn.LeakyReLU, slope below 0": nn.LeakyReLU(-0.3),
    "F.leaky_relu": F.leaky_relu,
    "F.leaky_relu, then in place": lambda h: F.leaky_relu(h).mul_(2),
    "F.leaky_relu_": lambda h: F.leaky_relu_(h, 0.3),
    "torch._C._nn.leaky_relu": lambda h: torch._C._nn.leaky_relu(h, 0.1),
    "nn.AvgPool2d": nn.AvgPool2d(2),
    "nn.AvgPool2d with all": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "nn.AvgPool2d, divisor": nn.AvgPool2d(2, divisor_override=3),
    "F.avg_pool2d by keyword": lambda h: F.avg_pool2d(input=h, kernel_size=(3, 1)),
    "F.avg_pool1d": lambda h: F.avg_pool1d(h.flatten(2), 4, 3),
    "nn.AvgPool3d": nn.AvgPool3d((1, 2, 2)),
    "nn.AdaptiveAvgPool2d": nn.AdaptiveAvgPool2d((3, None)),
    "nn.AdaptiveAvgPool2d to one": nn.AdaptiveAvgPool2d(1),
    "nn.AdaptiveAvgPool1d": lambda h: nn.AdaptiveAvgPool1d(5)(h.flatten(2)),
    "nn.AdaptiveAvgPool3d": nn.AdaptiveAvgPool3d((2, 4, 3)),
    "pooled, then relu in place": lambda h: F.relu_(F.avg_pool2d(h, 2)),
}


def layer() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, 3, 3, padding=1, dtype=torch.float64)


def samples() -> Tensor:
    numbers = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 8, 9, dtype=torch.float64, generator=numbers).requires_grad_()


def derivatives(form: Maps, mode: AbstractContextManager[Any]) -> dict[str, Tensor]:
    """Return a map's values, first derivatives, and those of a penalty on these."""
    conv, x = layer(), samples()
    with mode:
        h = form(conv(x)).flatten(1)
    (first,) = torch.autograd.grad(h.tanh().sum(), x, create_graph=True)
    penalty = (first.flatten(1).norm(dim=1) - 1).square().mean() + h.square().mean()
    wanted = {**dict(conv.named_parameters()), "x": x}
    second = torch.autograd.grad(penalty, list(wanted.values()))
    return {"h": h, "first": first, **dict(zip(wanted, second, strict=True))}


def nodes(tensor: Tensor) -> set[str]:
    """Return the names of all nodes in a tensor's graph."""
    seen: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return {node.name() for node in seen}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_values_and_derivatives_are_those_without(form: Maps) -> None:
    without, found = derivatives(form, nullcontext()), derivatives(form, StructuralZeros())
    for name, expected in without.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_derivative_leads_to_no_layer_before(form: Maps) -> None:
    """That of the convolution's output by its input is linear in nothing but the weights."""
    conv, x = layer(), samples()
    with StructuralZeros():
        h = form(conv(x))
    (first,) = torch.autograd.grad(h.sum(), x, create_graph=True)
    found = nodes(first)
    assert "ConvolutionBackwardBackward0" in found  # the graph is there …
    assert "ConvolutionBackward0" not in found  # … and goes not through the layer's output


def test_without_the_mode_it_does() -> None:
    """The test above can fail."""
    for form in (F.relu, F.leaky_relu, nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3)):
        conv, x = layer(), samples()
        (first,) = torch.autograd.grad(form(conv(x)).sum(), x, create_graph=True)
        assert "ConvolutionBackward0" in nodes(first)


UNTOUCHED: dict[str, Maps] = {
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "silu": nn.SiLU(inplace=True),
    "prelu": nn.PReLU(dtype=torch.float64),
    "layer norm": nn.LayerNorm([3, 8, 9], dtype=torch.float64),
    "group norm": nn.GroupNorm(3, 3, dtype=torch.float64),
    "max pooling": nn.MaxPool2d(2),
    "mean": lambda h: h.mean((2, 3)),
}


@pytest.mark.parametrize("form", UNTOUCHED.values(), ids=UNTOUCHED)
def test_everything_else_is_untouched(form: Maps) -> None:
    h = samples() * 1
    with StructuralZeros():
        found = form(h)
    assert nodes(found) == nodes(form(samples() * 1))


def test_numbers_that_are_none_pass_as_they_do_without() -> None:
    numbers = [math.nan, -math.inf, -0.0, 0.0, math.inf, -2.0]
    functions: list[Maps] = [F.relu, *(partial(F.leaky_relu, negative_slope=s) for s in (0.2, 0.0))]
    for function in functions:
        odd = torch.tensor(numbers, requires_grad=True)
        with StructuralZeros():
            found = function(odd)
        torch.testing.assert_close(found, function(odd), rtol=0, atol=0, equal_nan=True)


def test_leaky_relu_may_be_followed_in_place() -> None:
    """By hand: h = (−1, −1), ∂D/∂h = 2·0.4²·h = −0.32, ∂D/∂x = −0.64, and R1 = 5·2·0.64²."""
    x, weight = torch.tensor([[1.0, -2.0]]), torch.ones(2, 2, requires_grad=True)

    def critic(samples: Tensor) -> Tensor:
        return F.leaky_relu(samples @ weight, 0.2).mul_(2).square().sum(1)

    penalty = 5 * input_gradient(critic, x).square().sum()
    assert penalty.item() == pytest.approx(4.096)
    penalty.backward()
    assert weight.grad is not None
    assert weight.grad.sum().item() == pytest.approx(4 * 4.096)  # R1 is of degree 4 in w


def test_in_place_with_a_slope_below_zero_is_refused_as_torch_does() -> None:
    """The sign of the input, which is gone, can't be told by that of the output."""
    critic = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(-0.1, inplace=True))
    for mode in (nullcontext(), StructuralZeros()):
        with mode:
            scores = critic(torch.randn(2, 3, requires_grad=True)).sum()
        with pytest.raises(RuntimeError, match="non-positive slope|negative slope"):
            scores.backward()


@pytest.mark.parametrize("grad", [True, False])
def test_out_is_taken_where_torch_takes_it(grad: bool) -> None:
    """That is where there is no graph: under no_grad, or where the input requires none."""
    x, out = torch.randn(1, 2, 4, requires_grad=not grad), torch.empty(1, 1, 2)
    with torch.set_grad_enabled(grad), StructuralZeros():
        F.avg_pool2d(x, 2, out=out)
    torch.testing.assert_close(out, F.avg_pool2d(x.detach(), 2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_pass_as_they_do_without() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    with StructuralZeros():
        rows = F.relu(torch.nested.as_nested_tensor([x[:2], x[2:]]))
    torch.testing.assert_close(rows.to_padded_tensor(0.0)[1, 0], x[2].relu())


@pytest.mark.parametrize("form", [F.relu, nn.AvgPool2d(2)])
def test_the_layout_in_memory_stays(form: Maps) -> None:
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    with StructuralZeros():
        h = form(x)
    (gradient,) = torch.autograd.grad(h.sum(), x)
    assert h.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_nothing_more_is_kept_in_memory_for_relu() -> None:
    """Its output, which the next layer keeps too; not its input."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x = torch.randn(5, requires_grad=True)
        with StructuralZeros():
            h = F.relu(x)
    assert kept == [h.data_ptr()]
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), StructuralZeros():
        F.leaky_relu(x)
    assert kept == [x.data_ptr()]  # as torch does: what follows may change its output


ACTIVATIONS = st.sampled_from(["nn.ReLU", "nn.ReLU in place", "nn.LeakyReLU", "nn.AvgPool2d"])


@settings(max_examples=25, deadline=None)
@given(st.lists(ACTIVATIONS, min_size=1, max_size=4), st.booleans())
def test_a_penalty_on_any_such_critic(forms: list[str], smooth: bool) -> None:
    def critic() -> nn.Sequential:
        torch.manual_seed(3)
        layers: list[nn.Module] = []
        for form in forms:
            chosen = FORMS[form]
            assert isinstance(chosen, nn.Module)
            layers += [
                nn.Conv2d(3, 3, 3, padding=1, dtype=torch.float64),
                chosen if "Pool" not in form else nn.AvgPool2d(3, 1, 1),
                *([nn.Tanh()] if smooth else []),
            ]
        head = nn.Linear(3, 1, dtype=torch.float64)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)

    def penalty(gradient: Tensor) -> Tensor:
        norm: Tensor = gradient.flatten(1).norm(dim=1)
        return (norm - 1).square().mean()

    x = samples()
    ours, plain = critic(), critic()
    step = CriticStep(ours, x, x)
    value = penalty(step.input_gradient(step.real)) + step.scores(step.real).sum()
    (gradient,) = torch.autograd.grad(plain(x).sum(), x, create_graph=True)
    expected = penalty(gradient) + plain(x).sum()
    torch.testing.assert_close(value, expected)
    for one, other in zip(
        torch.autograd.grad(value, list(ours.parameters())),
        torch.autograd.grad(expected, list(plain.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["alone", "in a step"])
def test_input_gradients_are_taken_so(how: str) -> None:
    critic = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    x = torch.randn(5, 3)
    if how == "alone":
        gradient = input_gradient(critic, x)
    else:
        step = CriticStep(critic, x, x)
        gradient = step.input_gradient(step.real)
    assert "MmBackward0" in nodes(gradient)
    assert "AddmmBackward0" not in nodes(gradient)
