"""DRAGAN's penalty against hand-made mathematics, and its noise against its distribution."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from gancore import CriticStep
from gancore.checks.dependence import BatchStatisticsWarning
from gancore.errors import ContractError, PluginError
from gancore.losses import NonSaturating
from gancore.plugins import Plugins, load, wrap
from gancore_dragan import DRAGAN, dragan_penalty

CARD = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SHAPES = [(1, 1), (1, 5), (7, 5), (1, 1, 8, 8), (2, 3, 32, 32)]
NOISES = ["authors", "gaussian"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def linear(w: Tensor):
    return lambda x: (x * w).flatten(1).sum(1)


def noise_at(real: Tensor, seed: int = 0, **options) -> np.ndarray:
    """Return x̂ − x, as a critic that listens finds it."""
    seen = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    dragan_penalty(critic, real, generator=torch.Generator().manual_seed(seed), **options)
    (x,) = seen
    return (x - real).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("noise", NOISES)
def test_linear_critic(shape: tuple[int, ...], share: float, noise: str) -> None:
    w = normal(*shape[1:])
    norm = np.sqrt(np.sum(w.numpy() ** 2))
    found = dragan_penalty(
        linear(w), normal(*shape, seed=1), weight=3.0, target=share * norm, noise=noise
    )
    assert found.shape == ()
    assert found.item() == pytest.approx(3 * (norm - share * norm) ** 2, rel=1e-10, abs=1e-20)


def test_defaults_are_lambda_10_and_target_1() -> None:
    w = normal(4)
    found = dragan_penalty(linear(w), normal(6, 4))
    assert found.item() == pytest.approx(10 * (np.linalg.norm(w.numpy()) - 1) ** 2)


@pytest.mark.parametrize("noise", NOISES)
def test_quadratic_critic_has_its_gradient_at_the_noisy_point(noise: str) -> None:
    """D(x) = ‖x‖²/2 has the gradient x, so that the penalty tells where it was taken."""
    real = normal(5, 2, 3, 3)
    options = {"noise": noise, "scale": 0.3}
    x = real.numpy() + noise_at(real, seed=4, **options)
    norms = np.sqrt((x**2).sum((1, 2, 3)))
    found = dragan_penalty(
        lambda x: x.flatten(1).square().sum(1) / 2,
        real,
        weight=2.0,
        target=0.5,
        generator=torch.Generator().manual_seed(4),
        **options,
    )
    assert found.item() == pytest.approx(2 * np.mean((norms - 0.5) ** 2), rel=1e-12)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_authors_noise_is_a_product_of_uniforms_times_std(scale: float) -> None:
    real = 3 + 4 * normal(20_000, 1)
    share = noise_at(real, scale=scale)[:, 0] / (scale * np.std(real.numpy()))
    assert share.min() >= 0
    assert share.max() <= 1
    # P(α·u ≤ t) = t − t·ln t
    assert stats.kstest(share, lambda t: t - t * np.log(t)).pvalue > 0.01


def test_authors_noise_has_one_alpha_a_sample() -> None:
    real = normal(4000, 3, 16, 16)
    share = noise_at(real).reshape(4000, -1) / (0.5 * np.std(real.numpy()))
    d = share.shape[1]
    alpha = share.max(1) * (d + 1) / d  # of d uniform numbers up to α, the largest, unbiased
    assert stats.kstest(alpha, "uniform").statistic < 1.63 / np.sqrt(4000) + 1 / d
    # E[δᵢ²] = E[α²]·E[u²] = 1/9, E[δᵢδⱼ] = E[α²]·E[u]² = 1/12
    one, two = share[:, 0], share[:, 1]
    assert np.mean(one * one) == pytest.approx(1 / 9, abs=4 * np.std(one * one) / np.sqrt(4000))
    assert np.mean(one * two) == pytest.approx(1 / 12, abs=4 * np.std(one * two) / np.sqrt(4000))


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_gaussian_noise_is_independent_of_the_data(scale: float) -> None:
    near = noise_at(normal(5000, 4), noise="gaussian", scale=scale)
    far = noise_at(100 + 50 * normal(5000, 4), noise="gaussian", scale=scale)
    assert stats.kstest(near.reshape(-1) / scale, "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(near.T) - np.eye(4)).max() < 4 / np.sqrt(5000)
    np.testing.assert_allclose(far, near, atol=1e-12)


@pytest.mark.parametrize("noise", NOISES)
def test_without_noise_it_is_at_the_data(noise: str) -> None:
    assert not noise_at(normal(3, 4), noise=noise, scale=0.0).any()


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_drawn_anew(noise: str) -> None:
    real, found = normal(3, 4), []
    for seed in (0, None, 0):
        if seed is not None:
            torch.manual_seed(seed)
        value = dragan_penalty(lambda x: x.square().sum(1), real, noise=noise)
        found.append(value.item())
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wants_grad", [True, False])
def test_arguments_are_left_as_they_were(training: bool, wants_grad: bool) -> None:
    critic = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).train(training)
    weight = critic[0].weight
    real = torch.randn(5, 4, requires_grad=wants_grad)
    before = real.detach().clone()
    weight.grad = torch.full_like(weight, 7)
    value = dragan_penalty(critic, real)
    assert torch.equal(weight.grad, torch.full_like(weight, 7))
    assert critic[0].bias.grad is None
    value.backward()
    assert weight.grad.ne(7).any()
    assert real.grad is None
    assert real.requires_grad == wants_grad
    assert critic.training == training
    assert torch.equal(real, before)


@pytest.mark.parametrize("answer", [lambda x: (x[:, 0], x), lambda x: x[:, :2], lambda x: x.sum()])
def test_wrong_critic_outputs(answer) -> None:
    with pytest.raises(ContractError, match="one score a sample"):
        dragan_penalty(answer, normal(3, 4))


@pytest.mark.parametrize("how", ["detached", "no_grad in front"])
def test_a_critic_without_a_path_to_its_input(how: str) -> None:
    body, head = nn.Linear(4, 3).double(), nn.Linear(3, 1).double()
    x = normal(6, 4), normal(6, 4, seed=1)

    def critic(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(how == "detached"):
            features = body(x)
        return head(features.detach())

    with pytest.raises(ContractError, match=r"no path to its input.*requires_grad_\(False\)"):
        dragan_penalty(critic, x[0])
    with pytest.raises(ContractError, match="no path"):
        DRAGAN().penalty(CriticStep(critic, *x))


def test_under_autocast_it_is_of_the_critic_there() -> None:
    """Its rounding is that of bf16; the value is float32, and outside nothing is rounded."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    x = normal(6, 8).float(), normal(6, 8, seed=1).float()

    def value() -> Tensor:
        torch.manual_seed(1)  # the same points
        return dragan_penalty(critic, x[0])

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
    x, penalty = (normal(6, 4), normal(6, 4, seed=1)), DRAGAN().penalty
    reason = r"whole batch.*layer, group, instance or no normalization"
    with pytest.raises(ContractError, match=reason):
        dragan_penalty(critic, x[0])
    with pytest.raises(ContractError, match=reason):
        penalty(CriticStep(critic, *x))
    with pytest.warns(BatchStatisticsWarning):
        allowed = penalty(CriticStep(critic, *x, allow_batch_statistics=True))
    assert allowed.isfinite()
    assert dragan_penalty(critic, x[0], allow_batch_statistics=True).isfinite()
    assert dragan_penalty(critic.eval(), x[0]).isfinite()


@pytest.mark.parametrize(
    "options", [{}, {"weight": 3.0, "target": 0.2, "noise": "gaussian", "scale": 0.1}]
)
def test_hook_is_the_function(options: dict) -> None:
    torch.manual_seed(1)
    critic = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    real, fake = normal(3, 4), normal(3, 4, seed=1)
    torch.manual_seed(3)
    expected = dragan_penalty(critic, real, **options)
    torch.manual_seed(3)
    plugins = Plugins([wrap(NonSaturating()), wrap(DRAGAN(**options))])
    ((loaded, scale, value),) = plugins.answer_penalties("penalty", CriticStep(critic, real, fake))
    assert (loaded.name, scale) == ("dragan", 1)
    assert torch.equal(value, expected)


def test_wrong_noise() -> None:
    with pytest.raises(ValueError, match="'uniform', expected 'authors' or 'gaussian'"):
        dragan_penalty(linear(normal(4)), normal(3, 4), noise="uniform")  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="dragan: noise: expected 'authors' or 'gaussian'"):
        load("dragan", {"noise": "uniform"})


@pytest.mark.parametrize("option", ["weight", "target", "scale"])
@pytest.mark.parametrize("wrong", [-1.0, "3", True, float("inf"), float("nan"), [1.0]])
def test_wrong_numbers(option: str, wrong: object) -> None:
    with pytest.raises(PluginError, match=f"dragan: {option}: expected"):
        load("dragan", {option: wrong})


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", CARD, re.DOTALL))
def test_card_code_runs(code: str) -> None:
    exec(code, {})


def test_card_agrees_with_the_class() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| `(.+?)` \|", CARD, re.MULTILINE)
    defaults = {name: tomllib.loads(f"x = {default}")["x"] for name, default in rows}
    assert defaults == {each.name: each.default for each in fields(DRAGAN)}
    (block,) = re.findall(r"```toml\n(.*?)```", CARD, re.DOTALL)
    (table,) = tomllib.loads(block)["plugin"]
    assert isinstance(load(table.pop("name"), table).instance, DRAGAN)
