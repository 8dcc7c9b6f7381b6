"""R1 against hand-made mathematics, never against its own output."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gancore import CriticStep
from gancore.checks.dependence import BatchStatisticsWarning
from gancore.errors import ContractError, PluginError
from gancore.losses import Wasserstein
from gancore.plugins import Plugins, load, wrap
from gancore_r1 import R1, r1_penalty

CARD = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SHAPES = [(1, 5), (7, 5), (1, 1, 8, 8), (3, 1, 8, 8), (1, 3, 32, 32), (2, 3, 32, 32)]
finite = st.floats(-10, 10, allow_subnormal=False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def linear(w: Tensor):
    return lambda x: (x * w).flatten(1).sum(1)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def conv() -> nn.Module:
    torch.manual_seed(1)
    head = [nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Softplus()]
    return nn.Sequential(*head, nn.Flatten(), nn.Linear(12, 1)).double()


def central_differences(function, parameter: Tensor, h: float = 1e-6) -> Tensor:
    entries, slopes = parameter.detach().view(-1), []
    for i in range(len(entries)):
        middle = entries[i].item()
        values = []
        for entries[i] in (middle + h, middle - h):
            values.append(function().item())
        entries[i] = middle
        slopes.append((values[0] - values[1]) / (2 * h))
    return torch.tensor(slopes, dtype=torch.float64).view_as(parameter)


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_critic(shape: tuple[int, ...]) -> None:
    w = normal(*shape[1:])
    found = r1_penalty(linear(w), normal(*shape, seed=1), gamma=3.0)
    assert found.shape == ()
    assert found.item() == pytest.approx(1.5 * np.sum(w.numpy() ** 2), rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    w=st.lists(finite, min_size=1, max_size=6),
    batch=st.integers(1, 4),
    gamma=st.floats(1e-3, 1e3),
)
def test_any_linear_critic(w: list[float], batch: int, gamma: float) -> None:
    critic = linear(torch.tensor(w, dtype=torch.float64))
    found = r1_penalty(critic, normal(batch, len(w)), gamma=gamma)
    assert found.item() == pytest.approx(gamma / 2 * np.dot(w, w), rel=1e-12, abs=1e-300)


def test_tanh_critic_by_hand() -> None:
    critic, real = mlp(), normal(9, 32)
    first, bias, last = (p.detach().numpy() for p in list(critic.parameters())[:3])
    slope = 1 - np.tanh(real.numpy() @ first.T + bias) ** 2
    squares = np.sum(((slope * last) @ first) ** 2, axis=1)
    assert np.ptp(squares) > 0.01
    assert r1_penalty(critic, real).item() == pytest.approx(5 * np.mean(squares), rel=1e-12)


@pytest.mark.parametrize("make", [mlp, conv])
def test_parameter_gradients_are_central_differences(make) -> None:
    critic, real = make(), normal(3, 2, 4, 4)

    def penalty() -> Tensor:
        return r1_penalty(critic, real)

    parameters = list(critic.parameters())
    gradients = torch.autograd.grad(penalty(), parameters, materialize_grads=True)
    assert gradients[0].abs().max() > 1e-3
    for parameter, gradient in zip(parameters, gradients, strict=True):
        expected = central_differences(penalty, parameter)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["zero weights", "zero mlp"])
def test_zero_gradient_is_finite(kind: str) -> None:
    critic = {
        "zero weights": nn.Linear(4, 1),
        "zero mlp": nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)),
    }[kind]
    for parameter in critic.parameters():
        nn.init.zeros_(parameter)
    value = r1_penalty(critic, torch.ones(3, 4))
    assert value.item() == 0
    gradients = torch.autograd.grad(value, list(critic.parameters()), materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("source", ["data", "data that requires grad", "generator"])
def test_arguments_are_left_as_they_were(training: bool, source: str) -> None:
    generator = nn.Linear(3, 4)
    critic = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).train(training)
    weight = critic[0].weight
    real = torch.randn(5, 4, requires_grad=source == "data that requires grad")
    if source == "generator":
        real = generator(torch.randn(5, 3))
    values, wants_grad, grad_fn = real.detach().clone(), real.requires_grad, real.grad_fn
    weight.grad = torch.full_like(weight, 7)
    value = r1_penalty(critic, real)
    assert torch.equal(weight.grad, torch.full_like(weight, 7))
    assert critic[0].bias.grad is None
    value.backward()
    assert weight.grad.ne(7).any()
    assert (real.requires_grad, real.grad_fn) == (wants_grad, grad_fn)
    assert source == "generator" or real.grad is None
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert critic.training == training
    assert torch.equal(real, values)


def test_critic_output_shapes() -> None:
    w, real = normal(4), normal(3, 4)
    values = {
        r1_penalty(lambda x, s=shape: (x @ w).reshape(s), real).item()
        for shape in [(3,), (3, 1), (3, 1, 1, 1)]
    }
    assert values == {r1_penalty(linear(w), real).item()}


@pytest.mark.parametrize("answer", [lambda x: (x[:, 0], x), lambda x: x[:, :2], lambda x: x.sum()])
def test_wrong_critic_outputs(answer) -> None:
    with pytest.raises(ContractError, match="one score a sample"):
        r1_penalty(answer, normal(3, 4))


@pytest.mark.parametrize("how", ["detached", "no_grad in front"])
def test_a_critic_without_a_path_to_its_input(how: str) -> None:
    body, head = nn.Linear(4, 3).double(), nn.Linear(3, 1).double()
    x = normal(6, 4), normal(6, 4, seed=1)

    def critic(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(how == "detached"):
            features = body(x)
        return head(features.detach())

    with pytest.raises(ContractError, match=r"no path to its input.*requires_grad_\(False\)"):
        r1_penalty(critic, x[0])
    with pytest.raises(ContractError, match="no path"):
        R1().penalty(CriticStep(critic, *x))


def test_under_autocast_it_is_of_the_critic_there() -> None:
    """Its rounding is that of bf16; the value is float32, and outside nothing is rounded."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    x = normal(6, 8).float(), normal(6, 8, seed=1).float()

    def value(critic: nn.Module, *x: Tensor) -> Tensor:
        return r1_penalty(critic, x[0])

    seen = []
    critic[0].register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        low = value(critic, *x)
    single = value(critic, *x)
    assert seen == [torch.bfloat16, torch.float32]
    assert low.dtype == single.dtype == torch.float32
    exact = value(critic.double(), *(each.double() for each in x)).item()
    assert single.item() == pytest.approx(exact, rel=1e-5)
    assert 1e-5 < abs(low.item() / exact - 1) < 0.05


def test_batchnorm() -> None:
    critic = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    x, penalty = (normal(6, 4), normal(6, 4, seed=1)), R1().penalty
    reason = r"whole batch.*layer, group, instance or no normalization"
    with pytest.raises(ContractError, match=reason):
        r1_penalty(critic, x[0])
    with pytest.raises(ContractError, match=reason):
        penalty(CriticStep(critic, *x))
    with pytest.warns(BatchStatisticsWarning):
        allowed = penalty(CriticStep(critic, *x, allow_batch_statistics=True))
    assert allowed.isfinite()
    assert r1_penalty(critic, x[0], allow_batch_statistics=True).isfinite()
    critic.eval()
    assert r1_penalty(critic, x[0]).isfinite()
    assert penalty(CriticStep(critic, *x)).isfinite()


@pytest.mark.parametrize("options", [{}, {"gamma": 0.3}])
def test_hook_is_the_function_and_shares_the_forward_pass(options: dict[str, float]) -> None:
    critic, real, fake = conv(), normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    expected = r1_penalty(critic, real, **options)
    plugins = Plugins([wrap(Wasserstein()), wrap(R1(**options))])
    step, seen = CriticStep(critic, real, fake), []
    critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ((loaded, scale, value),) = plugins.answer_penalties("penalty", step)
    loss = plugins.answer_loss("critic_loss", step)
    assert (loaded.name, scale) == ("r1", 1)
    assert torch.equal(value, expected)
    assert len(seen) == 2
    assert torch.equal(seen[0], step.real)
    assert torch.equal(seen[1], step.fake)
    (loss + value).backward()  # both graphs are whole
    assert loss.item() == pytest.approx((critic(fake).mean() - critic(real).mean()).item())


@pytest.mark.parametrize("call", ["function", "hook"])
def test_meta_device(call: str) -> None:
    critic, x = nn.Linear(4, 1, device="meta"), torch.empty(3, 4, device="meta")
    value = r1_penalty(critic, x) if call == "function" else R1().penalty(CriticStep(critic, x, x))
    value.backward()
    assert (value.device.type, value.shape, critic.weight.grad.device.type) == ("meta", (), "meta")


@pytest.mark.parametrize("wrong", [0, -1.0, "3", True, float("inf"), float("nan"), [1.0]])
def test_wrong_options(wrong: object) -> None:
    with pytest.raises(PluginError, match="r1: gamma: expected"):
        load("r1", {"gamma": wrong})
    with pytest.raises(PluginError, match=r"gama.*Did you mean 'gamma'"):
        load("r1", {"gama": wrong})
    assert load("r1", {"gamma": 5}).options == {"gamma": 5.0}


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", CARD, re.DOTALL))
def test_card_code_runs(code: str) -> None:
    exec(code, {})


def test_card_agrees_with_the_class() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| `(.+?)` \|", CARD, re.MULTILINE)
    defaults = {name: tomllib.loads(f"x = {default}")["x"] for name, default in rows}
    assert defaults == {each.name: each.default for each in fields(R1)}
    (block,) = re.findall(r"```toml\n(.*?)```", CARD, re.DOTALL)
    (table,) = tomllib.loads(block)["plugin"]
    assert isinstance(load(table.pop("name"), table).instance, R1)
