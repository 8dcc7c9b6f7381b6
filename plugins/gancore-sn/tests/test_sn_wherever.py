"""Spectral normalization of weights that others make, in passes of all kinds."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.utils.checkpoint import checkpoint

from gancore import input_gradient
from gancore_sn import SpectralNorm, apply_spectral_norm

CALLS = {"function": apply_spectral_norm, "hook": SpectralNorm().prepare_critic}
U, V = (f"parametrizations.weight.0.{name}" for name in "uv")


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


class Sum(nn.Module):
    """Of two tensors, a parametrization without a check."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + 3 * other

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight / 4, weight / 4


def parametrized(*parts: nn.Module) -> nn.Module:
    layer = nn.Linear(5, 5)
    for part in parts:
        parametrize.register_parametrization(layer, "weight", part)
    return layer


OTHERS = {
    "symmetric": lambda: parametrized(Symmetric()),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(5, 4)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(5, 4)),
    "weight norm of a convolution": lambda: parametrizations.weight_norm(nn.Conv2d(2, 3, 3)),
    "weight norm, transposed": lambda: parametrizations.weight_norm(nn.ConvTranspose1d(2, 3, 3)),
    "two, one after the other": lambda: parametrized(Sum(), Symmetric()),
    "torch's spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(5, 4)),
}


def build(make, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().double()


def matrix(layer: nn.Module, weight: Tensor) -> np.ndarray:
    array = weight.detach().numpy()
    if isinstance(layer, nn.ConvTranspose1d):
        array = np.swapaxes(array, 0, 1)
    return array.reshape(array.shape[0], -1)


def power(w: np.ndarray, u: np.ndarray, steps: int = 1) -> tuple[np.ndarray, np.ndarray]:
    for _ in range(steps):
        v = w.T @ u / np.linalg.norm(w.T @ u)
        u = w @ v / np.linalg.norm(w @ v)
    return u, v


def vectors(layer: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return tuple(layer.get_buffer(name).numpy().copy() for name in (U, V))


def critic() -> nn.Sequential:
    return build(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))


def moved(module: nn.Module) -> nn.Module:
    """With weights that u and v do not fit."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    return module


def samples(seed: int = 0) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, dtype=torch.float64, generator=numbers)


def one_step_on(module: nn.Sequential) -> list[np.ndarray]:
    """The vectors of both layers after one step of the power method, by hand."""
    expected = []
    for layer in (module[0], module[2]):
        w = matrix(layer, layer.parametrizations.weight.original)
        expected += power(w, vectors(layer)[0])
    return expected


def assert_vectors(module: nn.Sequential, expected: list[np.ndarray]) -> None:
    for one, other in zip([*vectors(module[0]), *vectors(module[2])], expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("other", OTHERS)
def test_the_weight_that_others_make_is_what_is_normalized(call: str, other: str) -> None:
    layer = build(OTHERS[other])
    made = matrix(layer, layer.weight)
    CALLS[call](layer)
    shapes = {nn.Linear: (5,), nn.Conv2d: (2, 4, 4), nn.ConvTranspose1d: (2, 4)}
    (shape,) = (shape for kind, shape in shapes.items() if isinstance(layer, kind))
    x = torch.ones(2, *shape).double()
    for _ in range(200):
        layer(x) if call == "function" else SpectralNorm().post_step(layer)
    normalized = matrix(layer, layer.weight)
    assert np.linalg.svd(normalized, compute_uv=False)[0] == pytest.approx(1, rel=1e-6)
    if "spectral" not in other:  # whose σ follows too
        expected = made / np.linalg.svd(made, compute_uv=False)[0]
        np.testing.assert_allclose(normalized, expected, rtol=1e-5, atol=1e-7)


def test_one_after_it_gets_the_normalized_weight() -> None:
    layer = apply_spectral_norm(build(lambda: nn.Linear(5, 5)), n_power_iterations=200)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    layer(torch.ones(1, 5).double())
    made = layer.parametrizations.weight.original.detach().numpy()
    expected = made / np.linalg.svd(made, compute_uv=False)[0]
    symmetric = np.triu(expected) + np.triu(expected, 1).T
    np.testing.assert_allclose(layer.weight.detach().numpy(), symmetric, rtol=1e-9)


def test_tied_weights_stay_tied() -> None:
    module = build(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))
    module[2].weight = module[0].weight
    apply_spectral_norm(module, n_power_iterations=300)
    module(torch.ones(1, 4).double())
    originals = [module[place].parametrizations.weight.original for place in (0, 2)]
    assert originals[0] is originals[1]
    for place in (0, 2):
        weight = module[place].weight.detach().numpy()
        assert np.linalg.svd(weight, compute_uv=False)[0] == pytest.approx(1, rel=1e-6)


def test_a_weight_that_is_a_buffer_is_normalized_too() -> None:
    layer = build(lambda: nn.Linear(3, 4))
    layer.register_buffer("weight", layer._parameters.pop("weight").detach())
    apply_spectral_norm(layer, n_power_iterations=200)(torch.ones(1, 3).double())
    norm = np.linalg.svd(layer.weight.numpy(), compute_uv=False)[0]
    assert norm == pytest.approx(1, rel=1e-6)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="train.compile needs torch 2.13")
def test_compiled_in_one_graph() -> None:
    module, graphs = moved(apply_spectral_norm(critic())), []
    plain = copy.deepcopy(module)
    for run in (lambda x: module(x), lambda x: module.forward(x)):
        compiled = torch.compile(
            run, backend=lambda graph, inputs: graphs.append(graph) or graph.forward, fullgraph=True
        )
        for seed in range(3):
            expected = one_step_on(module)
            torch.testing.assert_close(compiled(samples(seed)), plain(samples(seed)))
            assert_vectors(module, expected)
    assert len(graphs) == 2


def layer_by_layer(module: nn.Sequential, x: Tensor) -> Tensor:
    for layer in module:
        x = layer(x)
    return x


def by_its_weights(module: nn.Sequential, x: Tensor) -> Tensor:
    for layer in (module[0], module[2]):
        x = nn.functional.linear(x, layer.weight, layer.bias)
    return x


WAYS = {
    "a call": lambda module, x: module(x),
    "forward": lambda module, x: module.forward(x),
    "layer by layer": layer_by_layer,
    "by its weights": by_its_weights,
    "within another": lambda module, x: nn.Sequential(module, nn.Tanh())(x),
    "checkpoint": lambda module, x: checkpoint(module, x, use_reentrant=False),
    "checkpoint, reentrant": lambda module, x: checkpoint(
        module, x.clone().requires_grad_(), use_reentrant=True
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_through_begins_with_one_step_a_layer(way: str) -> None:
    module = moved(apply_spectral_norm(critic()))
    for _ in range(2):
        expected = one_step_on(module)
        out = WAYS[way](module, samples())
        assert_vectors(module, expected)
        out.sum().backward()
        assert_vectors(module, expected)
    expected = [*vectors(module[0]), *vectors(module[2])]
    WAYS[way](module.eval(), samples())
    assert_vectors(module, expected)


def test_a_layer_that_is_called_twice_takes_one_step_a_pass() -> None:
    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(-x) + self[0](x).sum(1, keepdim=True)

    module = build(lambda: Twice(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    moved(apply_spectral_norm(module))
    expected = one_step_on(module)
    module(samples())
    assert_vectors(module, expected)


def test_a_pass_that_fails_has_ended() -> None:
    module = moved(apply_spectral_norm(critic()))
    with pytest.raises(RuntimeError, match="shapes"):
        module(torch.ones(1, 2).double())
    expected = one_step_on(module)
    layer_by_layer(module, samples())
    assert_vectors(module, expected)


def test_a_run_iterates_in_post_step_alone() -> None:
    module = critic()
    SpectralNorm().prepare_critic(module)
    moved(module)
    expected = [*vectors(module[0]), *vectors(module[2])]
    for way in WAYS.values():
        way(module, samples()).sum().backward()
        assert_vectors(module, expected)


def parts_checkpointed(module: nn.Sequential, x: Tensor, reentrant: bool) -> Tensor:
    return module[2](checkpoint(module[:2], x, use_reentrant=reentrant))


CHECKPOINTED = {
    "all of it": lambda module, x: checkpoint(module, x, use_reentrant=False),
    "all of it, reentrant": lambda module, x: checkpoint(module, x, use_reentrant=True),
    "a part": lambda module, x: parts_checkpointed(module, x, False),
    "a part, reentrant": lambda module, x: parts_checkpointed(module, x, True),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", CHECKPOINTED)
def test_gradients_through_a_checkpoint_are_those_without(how: str, call: str) -> None:
    module = critic()
    CALLS[call](module)
    twin = copy.deepcopy(moved(module))
    x = samples().requires_grad_()
    plain = module.forward(x)  # in parts too
    plain.sum().backward()
    CHECKPOINTED[how](twin, x).sum().backward()
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-12, atol=1e-14)


def test_a_penalty_through_a_checkpoint_is_that_without() -> None:
    module = moved(apply_spectral_norm(critic()))
    twin = copy.deepcopy(module)
    for each, way in ((module, module), (twin, lambda x: checkpoint(twin, x, use_reentrant=False))):
        input_gradient(way, samples()).square().sum().backward()
        assert each[0].parametrizations.weight.original.grad.abs().max() > 1e-3
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-12, atol=1e-14)


def test_a_pass_that_is_recomputed_after_later_ones_is_told() -> None:
    """What it is recomputed with are u and v of the last pass; a run's stay for an update."""

    def update(module: nn.Module) -> None:
        for seed in (0, 1):
            checkpoint(module, samples(seed), use_reentrant=False).sum().backward()
        total = torch.zeros((), dtype=torch.float64)
        for seed in (0, 1):
            total = total + checkpoint(module, samples(seed), use_reentrant=False).sum()
        total.backward()

    with pytest.warns(UserWarning, match=r"gradients are slightly off: use .*post_step") as told:
        update(apply_spectral_norm(critic()))
    assert "\n" not in str(told[0].message)
    module = critic()
    SpectralNorm().prepare_critic(module)
    update(module)  # a warning is an error here


@pytest.mark.parametrize("call", CALLS)
def test_what_is_left_alone_is_told_once_in_one_line(call: str) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)
            self.memory = nn.LSTM(4, 4)
            self.gain = nn.Parameter(torch.ones(()))
            self.norm = nn.LayerNorm([4, 4])
            self.last = nn.Linear(4, 1)

    with pytest.warns(UserWarning, match="leaves") as told:
        CALLS[call](Mixed())
    (message,) = (str(one.message) for one in told)
    assert message.startswith(
        "spectral normalization leaves gain, attention.in_proj_weight, memory.weight_ih_l0 and "
        "1 more alone"
    )
    assert "\n" not in message


@pytest.mark.parametrize("call", CALLS)
def test_norms_and_biases_are_no_matter(call: str) -> None:
    norms = [nn.LayerNorm([2, 2]), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3, affine=True)]
    module = nn.Sequential(nn.Conv2d(1, 3, 3), *norms, nn.BatchNorm2d(3), nn.Flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS[call](module)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("old", "made_of"),
    [
        (old_spectral_norm, "weight_orig"),
        (old_weight_norm, "weight_g, weight_v"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 2), "weight_orig"),
    ],
    ids=["spectral_norm", "weight_norm", "prune"],
)
def test_weights_made_before_each_call_are_refused(call: str, old, made_of: str) -> None:
    module = nn.Sequential(nn.Linear(3, 4), old(nn.Linear(4, 2)))
    before = list(module.state_dict())
    message = f"the weight of '1' is no parameter, but made of {made_of} before each call"
    with pytest.raises(ValueError, match=rf"{message} .*parametrizations"):
        CALLS[call](module)
    assert list(module.state_dict()) == before
