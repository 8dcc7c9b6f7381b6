"""Spectral normalization against NumPy's SVD, a power method by hand, and finite differences."""

import copy
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penalties import Card
from torch import Tensor, nn

from gancore import input_gradient
from gancore.errors import PluginError
from gancore.losses import Wasserstein
from gancore.plugins import Plugins, load, wrap
from gancore_sn import SpectralNorm, apply_spectral_norm

NORM = "parametrizations.weight"
LAYERS = {
    "linear": lambda: nn.Linear(6, 4),
    "tall linear": lambda: nn.Linear(3, 7),
    "one row": lambda: nn.Linear(5, 1),
    "embedding": lambda: nn.Embedding(6, 3),
    "conv1d": lambda: nn.Conv1d(2, 4, 3),
    "conv2d": lambda: nn.Conv2d(2, 5, 3),
    "conv2d, groups": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(2, 3, 2),
    "transposed1d": lambda: nn.ConvTranspose1d(3, 4, 3),
    "transposed2d": lambda: nn.ConvTranspose2d(3, 5, 3),
    "transposed3d": lambda: nn.ConvTranspose3d(2, 3, 2),
}


def build(make, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().double()


def matrix(layer: nn.Module, weight: Tensor) -> np.ndarray:
    """(out, everything else), by hand."""
    array = weight.detach().numpy()
    if "Transpose" in type(layer).__name__:
        array = np.swapaxes(array, 0, 1)
    return array.reshape(array.shape[0], -1)


def power(w: np.ndarray, u: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    for _ in range(steps):
        v = w.T @ u / np.linalg.norm(w.T @ u)
        u = w @ v / np.linalg.norm(w @ v)
    return u, v


def vectors(layer: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    state = layer.state_dict()
    return state[f"{NORM}.0.u"].numpy().copy(), state[f"{NORM}.0.v"].numpy().copy()


def critic(seed: int = 0) -> nn.Module:
    def make() -> nn.Module:
        head = [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten()]
        return nn.Sequential(*head, nn.Linear(12, 4), nn.Softplus(), nn.Linear(4, 1))

    return build(make, seed)


def normalized(seed: int = 0) -> nn.Module:
    module = critic(seed)
    SpectralNorm().prepare_critic(module)
    return module


def samples(n: int = 3) -> Tensor:
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(9)).double()


def move(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


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


@pytest.mark.parametrize("kind", LAYERS)
def test_sigma_is_the_largest_singular_value(kind: str) -> None:
    layer = build(LAYERS[kind])
    original = layer.weight.detach().clone()
    largest = np.linalg.svd(matrix(layer, original), compute_uv=False)[0]
    plugin = SpectralNorm(n_power_iterations=5)
    plugin.prepare_critic(layer)
    estimates = []
    for _ in range(40):
        ratio = (original / layer.weight.detach()).numpy()
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-12)
        estimates.append(ratio.mean())
        plugin.post_step(layer)
    assert estimates[0] == pytest.approx(largest, rel=0.05)  # after the warm-up
    assert estimates[-1] == pytest.approx(largest, rel=1e-9)
    assert all(b >= a * (1 - 1e-12) for a, b in pairwise(estimates))
    norm = np.linalg.svd(matrix(layer, layer.weight), compute_uv=False)[0]
    assert norm == pytest.approx(1, rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_any_matrix(rows: int, columns: int, seed: int) -> None:
    layer = build(lambda: nn.Linear(columns, rows), seed)
    original = layer.weight.detach().clone()
    apply_spectral_norm(layer, n_power_iterations=300)(torch.ones(1, columns).double())
    norms = np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)
    assert norms[0] == pytest.approx(1, rel=1e-2)  # ties converge slowly
    assert norms[0] >= 1 - 1e-12  # σ is estimated from below
    assert torch.equal(layer.parametrizations.weight.original, original)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_post_step_is_the_power_method(kind: str, steps: int) -> None:
    layer, plugin = build(LAYERS[kind]), SpectralNorm(n_power_iterations=steps)
    plugin.prepare_critic(layer)
    for _ in range(3):
        move(layer)
        w, (u, _) = matrix(layer, layer.parametrizations.weight.original), vectors(layer)
        plugin.post_step(layer)
        u, v = power(w, u, steps)
        np.testing.assert_allclose(vectors(layer)[0], u, rtol=0, atol=1e-12)
        np.testing.assert_allclose(vectors(layer)[1], v, rtol=0, atol=1e-12)
        np.testing.assert_allclose(matrix(layer, layer.weight), w / (u @ w @ v), rtol=1e-10)


def test_one_critic_between_two_post_steps() -> None:
    module, x = normalized().train(), samples()
    run = Plugins([wrap(Wasserstein()), wrap(SpectralNorm())])
    first = module(x)
    state = copy.deepcopy(module.state_dict())
    for training in (True, False, True):
        assert torch.equal(module.train(training)(x), first)
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key])
    move(module)
    second = module(x)
    assert torch.equal(module(x), second)
    run.call("post_step", critic=module, update=0)
    third = module(x)
    assert not torch.equal(second, third)
    assert torch.equal(module(x), third)


def test_run_prepares_the_critic() -> None:
    module, x = critic(), samples()
    before = module(x)
    Plugins([wrap(Wasserstein()), wrap(SpectralNorm())]).prepare_critic(module)
    assert sorted(key for key in module.state_dict() if key.endswith(".u")) == [
        f"{i}.{NORM}.0.u" for i in (0, 3, 5)
    ]
    assert not torch.allclose(module(x), before)
    assert len(list(module.parameters())) == 6  # u and v are not trained


def test_alone_it_iterates_at_each_training_forward() -> None:
    layer = apply_spectral_norm(build(LAYERS["linear"]), n_power_iterations=2)
    x = torch.ones(1, 6).double()
    for training in (True, True, False, True):
        layer.train(training)
        move(layer)
        u, v = vectors(layer)
        if training:
            u, v = power(matrix(layer, layer.parametrizations.weight.original), u, 2)
        layer(x)
        np.testing.assert_allclose(vectors(layer)[0], u, rtol=0, atol=1e-12)
        np.testing.assert_allclose(vectors(layer)[1], v, rtol=0, atol=1e-12)
    whole = critic()
    assert apply_spectral_norm(whole) is whole


@pytest.mark.parametrize("kind", LAYERS)
def test_gradient_has_u_and_v_fixed(kind: str) -> None:
    layer = build(LAYERS[kind])
    SpectralNorm().prepare_critic(layer)
    move(layer)  # u and v are no fixed point now
    weights = torch.randn_like(layer.weight)

    def value() -> Tensor:
        return (layer.weight * weights).sum()

    original = layer.parametrizations.weight.original
    (gradient,) = torch.autograd.grad(value(), original)
    expected = central_differences(value, original)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


def test_double_backward() -> None:
    module, x = normalized(), samples()
    move(module)

    def penalty() -> Tensor:
        return input_gradient(module, x).flatten(1).square().sum(1).mean()

    parameters = list(module.parameters())
    gradients = torch.autograd.grad(penalty(), parameters, materialize_grads=True)
    assert sum(gradient.abs().max() > 1e-3 for gradient in gradients) >= 4
    for parameter, gradient in zip(parameters, gradients, strict=True):
        expected = central_differences(penalty, parameter)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


def test_three_forwards_and_one_backward() -> None:
    module, x = apply_spectral_norm(critic()), samples()
    move(module)
    total, frozen = torch.zeros(()).double(), []
    for scale in (1, 2, 3):
        total = total + (scale * module(x)).sum()
        frozen.append((scale, copy.deepcopy(module.state_dict())))
    total.backward()
    expected = [torch.zeros_like(p) for p in module.parameters()]
    for scale, state in frozen:
        twin = normalized().eval()
        twin.load_state_dict(state)
        parts = torch.autograd.grad((scale * twin(x)).sum(), list(twin.parameters()))
        expected = [sum(pair) for pair in zip(expected, parts, strict=True)]
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


def test_state_dict_round_trip_and_copy() -> None:
    module, other, x = normalized(), normalized(seed=1), samples()
    move(module)
    SpectralNorm().post_step(module)
    other.load_state_dict(module.state_dict())
    for twin in (other, copy.deepcopy(module)):
        for key, value in module.state_dict().items():
            assert torch.equal(twin.state_dict()[key], value)
        assert torch.equal(twin(x), module(x))
        SpectralNorm().post_step(twin)
    assert not torch.equal(module(x), other(x))  # they share no memory


@pytest.mark.parametrize("alone", [True, False])
def test_autocast(alone: bool) -> None:
    plain = critic().float()
    module = apply_spectral_norm(plain) if alone else plain
    if not alone:
        SpectralNorm().prepare_critic(module)
    x, twin = samples().float(), copy.deepcopy(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = module(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), twin(x), rtol=0, atol=0.03)
    for key, value in module.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key])  # u and v in float32


@pytest.mark.parametrize("call", ["function", "hook"])
def test_meta_device(call: str) -> None:
    module, plugin = critic().to("meta"), SpectralNorm()
    if call == "function":
        apply_spectral_norm(module)
    else:
        plugin.prepare_critic(module)
    scores = module(samples().to("meta"))
    scores.sum().backward()
    plugin.post_step(module)
    assert (scores.device.type, scores.shape) == ("meta", (3, 1))
    assert all(parameter.grad.device.type == "meta" for parameter in module.parameters())


@pytest.mark.parametrize("first", ["function", "hook"])
@pytest.mark.parametrize("second", ["function", "hook"])
def test_refusals(first: str, second: str) -> None:
    calls = {"function": apply_spectral_norm, "hook": SpectralNorm().prepare_critic}
    module = critic()
    calls[first](module)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    goes_on = first == second == "hook"  # fine-tuning: what a run has normalized
    with (
        nullcontext()
        if goes_on
        else pytest.raises(
            ValueError, match="Sequential has spectral normalization already: .*Give"
        )
    ):
        calls[second](module)
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    with pytest.raises(ValueError, match="no linear, convolution or embedding layer"):
        calls[first](nn.Sequential(nn.ReLU(), nn.LayerNorm(3)))
    module = critic()
    nn.init.zeros_(module[5].weight)
    with pytest.raises(ValueError, match="the weights of '5' are all zero"):
        calls[first](module)
    assert len(module.state_dict()) == 6  # nothing was put on


@pytest.mark.parametrize("wrong", [0, -1])
def test_wrong_number_of_iterations(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"n_power_iterations is {wrong}, expected 1 or more"):
        apply_spectral_norm(critic(), n_power_iterations=wrong)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", True, 10**9, float("inf")])
def test_wrong_options(wrong: object) -> None:
    with pytest.raises(PluginError, match="sn: n_power_iterations: expected"):
        load("sn", {"n_power_iterations": wrong})
    with pytest.raises(PluginError, match=r"power.*: unknown key"):
        load("sn", {"power_iterations": 1})
    assert load("sn", {"n_power_iterations": 2}).options == {"n_power_iterations": 2}


class TestCard(Card):
    name = "sn"
    plugin = SpectralNorm
