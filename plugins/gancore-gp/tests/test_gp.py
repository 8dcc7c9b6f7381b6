"""The gradient penalty against hand-made mathematics, never against its own output."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penalties import (
    Card,
    GradientPenaltyFunction,
    central_differences,
    conv,
    finite,
    linear,
    mlp,
    normal,
)
from torch import Tensor, nn

from gancore import CriticStep
from gancore.errors import ContractError, PluginError
from gancore.losses import Wasserstein
from gancore.plugins import Plugins, load, wrap
from gancore_gp import GradientPenalty, gradient_penalty

SHAPES = [(1, 5), (7, 5), (1, 1, 8, 8), (3, 1, 8, 8), (1, 3, 32, 32), (2, 3, 32, 32)]


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
@pytest.mark.parametrize("options", [{"one_sided": True, "target": 0.1}])
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


def test_wrong_samples() -> None:
    with pytest.raises(ContractError, match=r"real has shape \(3, 4\), fake \(2, 4\)"):
        gradient_penalty(linear(normal(4)), normal(3, 4), normal(2, 4))


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


class TestGradientPenalty(GradientPenaltyFunction, Card):
    name = "gp"
    plugin = GradientPenalty
    function = gradient_penalty
