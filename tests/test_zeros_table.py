"""Whatever runs with plain double backward runs with structural zeros, with equal gradients.

A table of critics: activations and pools in all their forms, what may follow them in place, and
the contexts that a critic may call them in. Each is held against torch alone, and against central
differences of R1's penalty in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from gancore_r1 import r1_penalty

Maps = Callable[[Tensor], Tensor]
Around = Callable[[Maps, Tensor], Tensor]

WIDTH = 3


def relu_of_a_view(h: Tensor) -> Tensor:
    F.relu_(h[:, ::2])
    return h


def relu_then_its_input_changes(h: Tensor) -> Tensor:
    out = F.relu(h)
    h.mul_(2)
    return out + h


FORMS: dict[str, Maps] = {
    "relu": F.relu,
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "x.relu_": lambda h: h.relu_(),
    "torch.relu by keyword": lambda h: torch.relu(input=h),
    "relu_ of a view": relu_of_a_view,
    "relu_ of a transposed view": lambda h: h.transpose(1, 2).relu_(),
    "relu, then its input changes": relu_then_its_input_changes,
    "leaky": lambda h: F.leaky_relu(h, 0.2),
    "nn.LeakyReLU in place": nn.LeakyReLU(0.3, inplace=True),
    "leaky, slope a tensor": lambda h: F.leaky_relu(h, torch.tensor(0.2)),
    "leaky_, slope a tensor": lambda h: F.leaky_relu_(h, torch.tensor(0.2)),
    "leaky, slope below 0": lambda h: F.leaky_relu(h, -0.3),
    "leaky, slope 0": lambda h: F.leaky_relu(h, 0.0),
    "leaky_, slope 0": lambda h: F.leaky_relu_(h, 0.0),
    "leaky, slope 1": lambda h: F.leaky_relu(h, 1),
    "leaky, slope above 1": lambda h: F.leaky_relu(h, 2.5),
    "avg_pool2d": lambda h: F.avg_pool2d(h, 2),
    "avg_pool2d, one by one": lambda h: F.avg_pool2d(h, 1),
    "avg_pool1d": lambda h: F.avg_pool1d(h.flatten(2), 3, 2),
    "avg_pool3d": lambda h: F.avg_pool3d(h, (1, 2, 2)),
    "adaptive_avg_pool2d": lambda h: F.adaptive_avg_pool2d(h, 3),
    "adaptive_avg_pool2d, to one": lambda h: F.adaptive_avg_pool2d(h, 1),
    "adaptive_avg_pool2d, to its size": lambda h: F.adaptive_avg_pool2d(h, (None, None)),
    "adaptive_avg_pool1d": lambda h: F.adaptive_avg_pool1d(h.flatten(2), 5),
    "adaptive_avg_pool3d": lambda h: F.adaptive_avg_pool3d(h, (2, 3, 1)),
    # what has no stand-in
    "aten.relu": lambda h: torch.ops.aten.relu(h),
    "relu6": F.relu6,
    "hardtanh_": lambda h: F.hardtanh_(h, -0.5, 0.5),
    "threshold_": lambda h: F.threshold_(h, 0.1, -0.2),
    "rrelu, in evaluation": lambda h: F.rrelu(h),
    "prelu": lambda h: F.prelu(h, torch.tensor([0.2, -0.3, 0.4], dtype=h.dtype)),
    "elu_": lambda h: F.elu_(h),
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
    "glu": lambda h: F.glu(h, 2),
    "max_pool2d": lambda h: F.max_pool2d(h, 2),
    "lp_pool2d": lambda h: F.lp_pool2d(h.exp(), 2, 2),
    "interpolate": lambda h: F.interpolate(h, scale_factor=1.5, mode="bilinear"),
    "layer_norm": lambda h: F.layer_norm(h, h.shape[1:]),
    "group_norm": lambda h: F.group_norm(h, 3),
    "instance_norm": lambda h: F.instance_norm(h),
    "normalize": lambda h: F.normalize(h, dim=1),
}
"""What a critic may do between its layers; h: (B, 3, 4, 4), an output of a convolution."""


def iadd(h: Tensor) -> Tensor:
    h += 1
    return h


def set_item(h: Tensor) -> Tensor:
    h[:, 0] = 0.5
    return h


def drop(h: Tensor) -> Tensor:
    torch.manual_seed(0)
    return F.dropout(h, 0.5, training=True, inplace=True)


def part_times_three(h: Tensor) -> Tensor:
    h.flatten(1)[:, :3].mul_(3)
    return h


IN_PLACE: dict[str, Maps] = {
    "mul_": lambda h: h.mul_(2),
    "+=": iadd,
    "lerp_": lambda h: h.lerp_(torch.ones_like(h), 0.3),
    "index assignment": set_item,
    "masked_fill_": lambda h: h.masked_fill_(h > 0.2, 0.1),
    "clamp_": lambda h: h.clamp_(-0.1, 0.1),
    "dropout": drop,
    "pow_": lambda h: h.pow_(2),
    "relu_": lambda h: h.relu_(),
    "leaky_relu_": lambda h: F.leaky_relu_(h, 0.1),
    "relu_ of a view": relu_of_a_view,
    "a part": part_times_three,
    "copy_": lambda h: h.copy_(2 * h),
    "unsqueeze_": lambda h: h.unsqueeze_(0).squeeze_(0),
    "sub_": lambda h: h.sub_(h.mean((1, 2), keepdim=True)),
}
FOLLOWED = ("leaky", "leaky, slope 0", "leaky, slope below 0", "avg_pool2d", "adaptive_avg_pool2d")
"""What does not keep its output, so that torch lets it be changed."""


class Renamed(Tensor):
    """A subclass that changes nothing."""


class Softened(Tensor):
    """A subclass with a ReLU of its own."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = F.softplus if func in (F.relu, F.leaky_relu, Tensor.relu_) else func
        return super().__torch_function__(func, types, args[:1] if func is F.softplus else args)


def saved_through_hooks(body: Maps, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
        return body(x)


def saved_on_the_cpu(body: Maps, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return body(x)


def watched(body: Maps, x: Tensor) -> Tensor:
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        return body(x)


def of_one(body: Maps) -> Maps:
    return lambda sample: body(sample[None])[0]


def tangent(body: Maps, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        out = body(forward_ad.make_dual(x, x.sin()))
        found: Tensor = forward_ad.unpack_dual(out).tangent
    return found


def pulled_back(body: Maps, x: Tensor) -> Tensor:
    out, pull = torch.func.vjp(body, x)
    found: Tensor = pull(out)[0]
    return found


def sums(body: Maps) -> Maps:
    return lambda x: body(x).square().flatten(1).sum(1)


def inner_gradient(body: Maps, x: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(sums(body)(x).sum(), x, create_graph=True)
    return found


def inner_gradients(body: Maps, x: Tensor) -> Tensor:
    """Of two outputs at once: a backward pass under vmap."""
    out = body(x).square().flatten(1).sum(0)[:2]
    (found,) = torch.autograd.grad(
        out, x, torch.eye(2, dtype=x.dtype), is_grads_batched=True, create_graph=True
    )
    return found.transpose(0, 1)


def beside_no_graph(body: Maps, x: Tensor) -> Tensor:
    with torch.no_grad():
        mask = body(x) > 0
    with torch.inference_mode():
        factor = 2 + torch.sign(body(x.detach()).mean()).item()
    integers = F.relu(torch.tensor([-1, 2])).sum()
    return body(x) * mask * factor + body(torch.ones_like(x[:1])).mean() * integers


def with_a_hook(body: Maps, x: Tensor) -> Tensor:
    out = body(x)
    out.register_hook(torch.clone)
    return out


def ensemble(body: Maps, x: Tensor) -> Tensor:
    return torch.vmap(lambda scale: body(x * scale))(torch.tensor([1.0, 1.5])).transpose(0, 1)


AROUND: dict[str, Around] = {
    "channels last": lambda body, x: body(x.to(memory_format=torch.channels_last)),
    "checkpoint": partial(checkpoint, use_reentrant=False),
    "checkpoint in a checkpoint": lambda body, x: checkpoint(
        partial(checkpoint, body, use_reentrant=False), x, use_reentrant=False
    ),
    "saved-tensor hooks": saved_through_hooks,
    "save_on_cpu": saved_on_the_cpu,
    "anomaly mode": watched,
    "a tensor hook": with_a_hook,
    "beside no_grad": beside_no_graph,
    "halves, one after the other": lambda body, x: torch.cat([body(x[:2]), body(x[2:])]),
    "twice": lambda body, x: torch.cat([body(x).flatten(1), body(x.flip(3)).flatten(1)], 1),
    "a subclass": lambda body, x: body(x.as_subclass(Renamed)).as_subclass(Tensor),
    "a subclass of its own mind": lambda body, x: body(x.as_subclass(Softened)).as_subclass(Tensor),
    "autograd.grad": inner_gradient,
    "autograd.grad, batched": inner_gradients,
    "vmap over samples": lambda body, x: torch.vmap(of_one(body))(x),
    "vmap, nested": lambda body, x: torch.vmap(torch.vmap(of_one(body)))(x[None])[0],
    "vmapped ensemble": ensemble,
    "func.grad": lambda body, x: torch.func.grad(lambda t: sums(body)(t).sum())(x),
    "func.vjp": pulled_back,
    "func.jvp": lambda body, x: torch.func.jvp(body, (x,), (x.sin(),))[1],
    "func.jacrev": lambda body, x: torch.func.jacrev(sums(body))(x).sum(0),
    "func.jacfwd": lambda body, x: torch.func.jacfwd(sums(body))(x).sum(0),
    "vmap of func.grad": lambda body, x: torch.vmap(
        torch.func.grad(lambda t: of_one(body)(t).square().sum())
    )(x),
    "forward_ad": tangent,
}
WITHIN = ("relu", "x.relu_", "leaky", "nn.LeakyReLU in place", "avg_pool2d", "adaptive_avg_pool2d")

CRITICS: dict[str, tuple[Maps, Around]] = {
    **{name: (form, lambda body, x: body(x)) for name, form in FORMS.items()},
    **{
        f"{first}, then {then}": (
            lambda h, first=first, then=then: IN_PLACE[then](FORMS[first](h)),
            lambda body, x: body(x),
        )
        for first in FOLLOWED
        for then in IN_PLACE
    },
    **{
        f"{name} in {how}": (FORMS[name], around)
        for how, around in AROUND.items()
        for name in WITHIN
    },
}


class Critic(nn.Module):
    """A convolution, `form` after it, and a smooth score of all that comes out."""

    def __init__(self, form: Maps, around: Around) -> None:
        super().__init__()
        numbers = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, dtype=torch.float64, generator=numbers)
        self.weight = nn.Parameter(draw(WIDTH, 2, 3, 3) / 3)
        self.bias = nn.Parameter(draw(WIDTH) / 3)
        self.form, self.around = form, around

    def forward(self, x: Tensor) -> Tensor:
        h = self.around(self.body, x).flatten(1)
        return (h * torch.arange(1, h.shape[1] + 1).cos()).sum(1).tanh()

    def body(self, x: Tensor) -> Tensor:
        return self.form(F.conv2d(x, self.weight, self.bias, padding=1))


def plain_penalty(critic: Critic, x: Tensor, *, twice: bool) -> Tensor:
    """R1 with γ = 10, by torch alone."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=twice)
    return 5 * gradient.square().flatten(1).sum(1).mean()


def slope_along(critic: Critic, x: Tensor, direction: list[Tensor], step: float = 1e-6) -> Tensor:
    """Return the penalty's derivative along a direction of the weights, by central difference."""
    values = []
    for size in (step, -2 * step):
        with torch.no_grad():
            for parameter, part in zip(critic.parameters(), direction, strict=True):
                parameter.add_(part, alpha=size)
        values.append(plain_penalty(critic, x, twice=False))
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
@pytest.mark.parametrize(("form", "around"), CRITICS.values(), ids=CRITICS)
def test_the_penalty_and_its_gradient(form: Maps, around: Around) -> None:
    critic, numbers = Critic(form, around), torch.Generator().manual_seed(1)
    x = torch.randn(4, 2, 4, 4, dtype=torch.float64, generator=numbers)
    direction = [
        torch.randn(p.shape, dtype=p.dtype, generator=numbers) for p in critic.parameters()
    ]

    def gradients(penalty: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(penalty, list(critic.parameters()), materialize_grads=True))

    penalty, expected = r1_penalty(critic, x, gamma=10), plain_penalty(critic, x, twice=True)
    torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=1e-15)
    found = gradients(penalty)
    for one, other in zip(found, gradients(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    slope = sum((one * part).sum() for one, part in zip(found, direction, strict=True))
    assert slope != 0
    torch.testing.assert_close(slope, slope_along(critic, x, direction), rtol=1e-6, atol=1e-8)
