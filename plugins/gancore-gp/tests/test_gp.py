"""The gradient penalty against hand-made mathematics, never against its own output."""

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
from gancore_gp import GradientPenalty, gradient_penalty

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
    return torch.tensor(slopes).double().view_as(parameter)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("one_sided", [False, True])
def test_linear_critic(shape: tuple[int, ...], share: float, one_sided: bool) -> None:
    w = normal(*shape[1:])
    norm = np.sqrt(np.sum(w.numpy() ** 2))
    real, fake = normal(*shape, seed=1), normal(*shape, seed=2)
    found = gradient_penalty(
        linear(w), real, fake, weight=3.0, target=share * norm, one_sided=one_sided
    )
    expected = 0.0 if one_sided and share > 1 else 3 * (norm - share * norm) ** 2
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, rel=1e-10, abs=1e-20)


@settings(deadline=None, max_examples=60)
@given(
    w=st.lists(finite, min_size=1, max_size=6),
    batch=st.integers(1, 4),
    target=st.floats(0, 20),
    weight=st.floats(1e-3, 1e3),
    one_sided=st.booleans(),
)
def test_any_linear_critic(
    w: list[float], batch: int, target: float, weight: float, one_sided: bool
) -> None:
    excess = float(np.linalg.norm(w)) - target
    expected = weight * (max(excess, 0) if one_sided else excess) ** 2
    found = gradient_penalty(
        linear(torch.tensor(w, dtype=torch.float64)),
        normal(batch, len(w)),
        normal(batch, len(w), seed=1),
        weight=weight,
        target=target,
        one_sided=one_sided,
    )
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("one_sided", [False, True])
def test_tanh_critic_by_hand(one_sided: bool) -> None:
    critic, real, fake = mlp(), normal(9, 32), normal(9, 32, seed=1)
    seeded = torch.Generator().manual_seed(5)
    found = gradient_penalty(critic, real, fake, target=0.2, one_sided=one_sided, generator=seeded)
    alpha = torch.rand(9, 1, generator=seeded.manual_seed(5), dtype=torch.float64).numpy()
    x = alpha * real.numpy() + (1 - alpha) * fake.numpy()
    first, bias, last = (p.detach().numpy() for p in list(critic.parameters())[:3])
    slope = 1 - np.tanh(x @ first.T + bias) ** 2
    excess = np.linalg.norm((slope * last) @ first, axis=1) - 0.2
    assert (excess > 0).any()
    assert (excess < 0).any()
    if one_sided:
        excess = np.maximum(excess, 0)
    assert found.item() == pytest.approx(10 * np.mean(excess**2), rel=1e-12)


@pytest.mark.parametrize("make", [mlp, conv])
@pytest.mark.parametrize("options", [{}, {"one_sided": True, "target": 0.1}])
def test_parameter_gradients_are_central_differences(make, options: dict) -> None:
    critic, real, fake = make(), normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    seeded = torch.Generator()

    def penalty() -> Tensor:
        return gradient_penalty(critic, real, fake, generator=seeded.manual_seed(0), **options)

    parameters = list(critic.parameters())
    gradients = torch.autograd.grad(penalty(), parameters, materialize_grads=True)
    assert gradients[0].abs().max() > 1e-3
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(
            gradient, central_differences(penalty, parameter), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("kind", ["zero weights", "zero mlp"])
@pytest.mark.parametrize("one_sided", [False, True])
def test_zero_gradient_is_finite(kind: str, one_sided: bool) -> None:
    critic = {
        "zero weights": nn.Linear(4, 1),
        "zero mlp": nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)),
    }[kind]
    for parameter in critic.parameters():
        nn.init.zeros_(parameter)
    value = gradient_penalty(
        critic, torch.ones(3, 4), torch.zeros(3, 4), weight=2.0, target=3.0, one_sided=one_sided
    )
    assert value.item() == (0 if one_sided else 18)
    gradients = torch.autograd.grad(value, list(critic.parameters()), materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_one_uniform_alpha_a_sample() -> None:
    seen = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    n = 4000
    real, fake = torch.ones(n, 2, 3, 3).double(), torch.zeros(n, 2, 3, 3).double()
    gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(0))
    alpha = seen[0][:, 0, 0, 0]
    assert torch.equal(seen[0], alpha.view(n, 1, 1, 1).expand_as(real))
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    ordered, ranks = np.sort(alpha.numpy()), np.arange(n + 1) / n
    distance = max((ranks[1:] - ordered).max(), (ordered - ranks[:-1]).max())
    assert distance < 1.63 / np.sqrt(n)  # Kolmogorov-Smirnov, 1 %


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wants_grad", [True, False])
def test_arguments_are_left_as_they_were(training: bool, wants_grad: bool) -> None:
    generator = nn.Linear(3, 4)
    critic = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).train(training)
    weight = critic[0].weight
    real = torch.randn(5, 4, requires_grad=wants_grad)
    fake = generator(torch.randn(5, 3))
    before = real.clone(), fake.clone()
    weight.grad = torch.full_like(weight, 7)
    value = gradient_penalty(critic, real, fake, generator=torch.Generator())
    assert torch.equal(weight.grad, torch.full_like(weight, 7))
    assert critic[0].bias.grad is None
    value.backward()
    assert weight.grad.ne(7).any()
    assert real.grad is None
    assert real.requires_grad == wants_grad
    assert fake.grad_fn is not None
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert critic.training == training
    assert torch.equal(real, before[0])
    assert torch.equal(fake, before[1])


def test_critic_output_shapes() -> None:
    w, real, fake = normal(4), normal(3, 4), normal(3, 4, seed=1)
    values = {
        gradient_penalty(lambda x, s=shape: (x @ w).reshape(s), real, fake).item()
        for shape in [(3,), (3, 1), (3, 1, 1, 1)]
    }
    assert values == {gradient_penalty(linear(w), real, fake).item()}


@pytest.mark.parametrize("answer", [lambda x: (x[:, 0], x), lambda x: x[:, :2], lambda x: x.sum()])
def test_wrong_critic_outputs(answer) -> None:
    with pytest.raises(ContractError, match="one score a sample"):
        gradient_penalty(answer, normal(3, 4), normal(3, 4))


def test_wrong_samples() -> None:
    with pytest.raises(ContractError, match=r"real has shape \(3, 4\), fake \(2, 4\)"):
        gradient_penalty(linear(normal(4)), normal(3, 4), normal(2, 4))


@pytest.mark.parametrize("how", ["detached", "no_grad in front"])
def test_a_critic_without_a_path_to_its_input(how: str) -> None:
    body, head = nn.Linear(4, 3).double(), nn.Linear(3, 1).double()
    x = normal(6, 4), normal(6, 4, seed=1)

    def critic(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(how == "detached"):
            features = body(x)
        return head(features.detach())

    with pytest.raises(ContractError, match=r"no path to its input.*requires_grad_\(False\)"):
        gradient_penalty(critic, *x)
    with pytest.raises(ContractError, match="no path"):
        GradientPenalty().penalty(CriticStep(critic, *x))


def test_under_autocast_it_is_of_the_critic_there() -> None:
    """Its rounding is that of bf16; the value is float32, and outside nothing is rounded."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    x = normal(6, 8).float(), normal(6, 8, seed=1).float()

    def value() -> Tensor:
        torch.manual_seed(1)  # the same points
        return gradient_penalty(critic, *x)

    seen = []
    critic[0].register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        low = value()
    single = value()
    assert seen == [torch.bfloat16, torch.float32]
    assert low.dtype == single.dtype == torch.float32
    assert 1e-5 < abs(low.item() / single.item() - 1) < 0.05


def test_batchnorm() -> None:
    critic = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    x, penalty = (normal(6, 4), normal(6, 4, seed=1)), GradientPenalty().penalty
    reason = "whole batch.*layer, group, instance or no normalization"
    with pytest.raises(ContractError, match=reason):
        gradient_penalty(critic, *x)
    with pytest.raises(ContractError, match=reason):
        penalty(CriticStep(critic, *x))
    with pytest.warns(BatchStatisticsWarning):
        allowed = penalty(CriticStep(critic, *x, allow_batch_statistics=True))
    assert allowed.isfinite()
    assert gradient_penalty(critic, *x, allow_batch_statistics=True).isfinite()
    critic.eval()
    assert gradient_penalty(critic, *x).isfinite()
    assert penalty(CriticStep(critic, *x)).isfinite()


@pytest.mark.parametrize("options", [{}, {"weight": 3.0, "target": 0.2, "one_sided": True}])
def test_hook_is_the_function(options: dict) -> None:
    critic, real, fake = conv(), normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    torch.manual_seed(3)
    expected = gradient_penalty(critic, real, fake, **options)
    torch.manual_seed(3)
    plugins = Plugins([wrap(Wasserstein()), wrap(GradientPenalty(**options))])
    step = CriticStep(critic, real, fake)
    ((loaded, scale, value),) = plugins.answer_penalties("penalty", step)
    assert (loaded.name, scale) == ("gp", 1)
    assert torch.equal(value, expected)


@pytest.mark.parametrize("call", ["function", "hook"])
def test_meta_device(call: str) -> None:
    critic, x = nn.Linear(4, 1, device="meta"), torch.empty(3, 4, device="meta")
    if call == "function":
        value = gradient_penalty(critic, x, x)
    else:
        value = GradientPenalty().penalty(CriticStep(critic, x, x))
    value.backward()
    assert (value.device.type, value.shape, critic.weight.grad.device.type) == ("meta", (), "meta")


@pytest.mark.parametrize("option", ["weight", "target"])
@pytest.mark.parametrize("wrong", [-1.0, "3", True, float("inf"), float("nan"), [1.0]])
def test_wrong_numbers(option: str, wrong: object) -> None:
    with pytest.raises(PluginError, match=f"gp: {option}: expected"):
        load("gp", {option: wrong})


def test_other_options() -> None:
    assert load("gp", {"weight": 5, "one_sided": True}).options == {
        "weight": 5.0,
        "target": 1.0,
        "one_sided": True,
    }
    with pytest.raises(PluginError, match="gp: one_sided: expected"):
        load("gp", {"one_sided": 1})
    with pytest.raises(PluginError, match=r"wieght.*Did you mean 'weight'"):
        load("gp", {"wieght": 1.0})


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", CARD, re.DOTALL))
def test_card_code_runs(code: str) -> None:
    exec(code, {})


def test_card_agrees_with_the_class() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| `(.+?)` \|", CARD, re.MULTILINE)
    defaults = {name: tomllib.loads(f"x = {default}")["x"] for name, default in rows}
    assert defaults == {each.name: each.default for each in fields(GradientPenalty)}
    (block,) = re.findall(r"```toml\n(.*?)```", CARD, re.DOTALL)
    (table,) = tomllib.loads(block)["plugin"]
    assert isinstance(load(table.pop("name"), table).instance, GradientPenalty)
