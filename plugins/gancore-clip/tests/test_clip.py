"""Weight clipping against numpy.clip, on every kind of parameter."""

import copy
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penalties import Card
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from gancore import hookimpl, input_gradient, plugin
from gancore.entrypoints import Available
from gancore.errors import PluginError
from gancore.losses import Wasserstein
from gancore.plugins import Loaded, Plugins, load, wrap
from gancore_clip import WeightClipping, clip_weights


def critic() -> nn.Module:
    torch.manual_seed(0)
    norms = [nn.LayerNorm([4, 6, 6]), nn.GroupNorm(2, 4), nn.BatchNorm2d(4)]
    body = nn.Sequential(nn.Conv2d(1, 4, 3), *norms, nn.Flatten(), nn.Linear(144, 1))
    body.register_parameter("scalar", nn.Parameter(torch.tensor(-3.0)))
    return body


@pytest.mark.parametrize("limit", [0.01, 0.05, 2.0])
@pytest.mark.parametrize("call", ["function", "hook", "run"])
def test_every_parameter_is_clipped(limit: float, call: str) -> None:
    module = critic()
    before = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
    run = Plugins([wrap(Wasserstein()), wrap(WeightClipping(limit=limit))])
    if call == "function":
        clip_weights(module, limit)
    elif call == "hook":
        WeightClipping(limit=limit).post_step(module)
    else:
        run.call("post_step", critic=module, update=7)
    assert len(before) == 11  # weights, biases, gains and a scalar
    for name, parameter in module.named_parameters():
        single = np.float32(limit)
        np.testing.assert_array_equal(
            parameter.detach().numpy(), np.clip(before[name], -single, single), err_msg=name
        )


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8),
    limit=st.floats(1e-6, 1e3),
)
def test_any_values_and_limit(values: list[float], limit: float) -> None:
    module = nn.ParameterList([torch.tensor(values, dtype=torch.float64)])
    for _ in range(2):  # the second time changes nothing
        clip_weights(module, limit)
        assert module[0].tolist() == [min(max(value, -limit), limit) for value in values]


def test_default_is_the_papers() -> None:
    module = critic()
    clip_weights(module)
    assert max(p.abs().max().item() for p in module.parameters()) == np.float32(0.01)


def test_only_values_change() -> None:
    module = critic()
    module[0].weight.requires_grad_(False)
    loss = module(torch.randn(2, 1, 8, 8)).sum()
    loss.backward()
    before, grads = copy.deepcopy(module), [copy.deepcopy(p.grad) for p in module.parameters()]
    assert [grad is None for grad in grads] == [True, True, *[False] * 9]  # the unused, the frozen
    tensors = {name: (id(p), p.data_ptr()) for name, p in module.named_parameters()}
    clip_weights(module, 0.1)
    assert {name: (id(p), p.data_ptr()) for name, p in module.named_parameters()} == tensors
    for ours, theirs, grad in zip(module.parameters(), before.parameters(), grads, strict=True):
        assert ours.is_leaf
        assert ours.requires_grad == theirs.requires_grad
        assert ours.grad is grad or torch.equal(ours.grad, grad)
    for ours, theirs in zip(module.buffers(), before.buffers(), strict=True):
        assert torch.equal(ours, theirs)  # running statistics are no parameters
    assert module[0].weight.abs().max() == np.float32(0.1)  # frozen, and clipped all the same
    assert module[3].running_var.max() > 0.1
    assert module.training


def test_a_training_loop_stays_within_and_goes_on() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.RMSprop(module.parameters(), lr=0.01)
    for _ in range(60):
        real, fake = torch.randn(32, 2) + 2, torch.randn(32, 2)
        loss = module(fake).mean() - module(real).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clip_weights(module, 0.05)
        assert all(p.abs().max() <= np.float32(0.05) for p in module.parameters())
    assert loss < 0  # it learned
    # ‖∇D‖ ≤ ‖W₁‖·‖W₂‖ in Frobenius norms, of 16 and 8 entries
    steepest = input_gradient(module, torch.randn(500, 2)).norm(dim=1).max()
    assert 0 < steepest <= 0.05**2 * np.sqrt(16 * 8) * 1.00001


def test_meta_device() -> None:
    clip_weights(nn.Linear(3, 1, device="meta"))


@pytest.mark.parametrize("limit", [0, -0.01, float("nan")])
def test_wrong_limit(limit: float) -> None:
    module = critic()
    with pytest.raises(ValueError, match=r"limit is .*, expected a positive number"):
        clip_weights(module, limit)
    for ours, before in zip(module.parameters(), critic().parameters(), strict=True):
        assert torch.equal(ours, before)


@pytest.mark.parametrize("parametrization", [spectral_norm, weight_norm])
@pytest.mark.parametrize("inside", [True, False])
def test_parametrized_weights(parametrization, inside: bool) -> None:
    layer = parametrization(nn.Linear(3, 1))
    module = nn.Sequential(nn.Linear(3, 3), layer) if inside else layer
    name = "'1'" if inside else "'ParametrizedLinear'"
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=f"{name} has parametrized weights.*drop"):
        clip_weights(module)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


class Equalized(nn.Linear):
    """As ports of ProGAN have it: a hook that sets the weight at each call."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.weight_orig = nn.Parameter(self._parameters.pop("weight"))
        self.register_forward_pre_hook(self.scale)
        self.scale(self)

    @staticmethod
    def scale(layer: nn.Module, inputs: object = ()) -> None:
        layer.weight = 3 * layer.weight_orig


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        clip_weights,
        lambda module: WeightClipping().prepare_critic(module),
        lambda module: WeightClipping().post_step(module),
    ],
    ids=["function", "before a run", "in a run"],
)
@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (lambda: old_spectral_norm(nn.Linear(3, 2)), "weight of weight_orig"),
        (lambda: old_weight_norm(nn.Linear(3, 2)), "weight of weight_g"),
        (lambda: old_weight_norm(nn.LSTM(3, 2), "weight_hh_l0"), "weight_hh_l0 of weight_hh_l0_g"),
        (lambda: prune.random_unstructured(nn.Linear(3, 2), "bias", 1), "bias of bias_orig"),
        (Equalized, "weight of weight_orig"),
    ],
    ids=["spectral_norm", "weight_norm", "weight_norm of an LSTM", "prune", "equalized"],
)
def test_weights_made_before_each_call(layer, names: str, call, called: bool) -> None:
    module = nn.Sequential(nn.Linear(3, 3), layer())
    if called:
        module(torch.randn(4, 3))
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=f"'1' makes its {names} before each call.*drop"):
        call(module)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_what_was_made_once_for_all_is_clipped() -> None:
    module = nn.utils.remove_spectral_norm(old_spectral_norm(nn.Linear(3, 2)))
    module.weight_of_evidence = torch.ones(1)  # no parameter goes into it
    clip_weights(module, 0.01)
    assert max(p.abs().max().item() for p in module.parameters()) == np.float32(0.01)


@pytest.mark.parametrize("alias", ["sn", "another"])
def test_conflict_with_sn(alias: str) -> None:
    @plugin
    class StandIn:
        """What gancore-sn would be."""

        @hookimpl
        def start(self) -> None: ...

    point = EntryPoint(name="sn", value="nowhere:StandIn", group="gancore.plugins")
    sn = Loaded(alias, StandIn(), Available("plugin", "sn", "gancore-sn", "9", point))
    assert WeightClipping.conflicts == ("sn",)
    with pytest.raises(PluginError, match=rf"clip .*can't be combined with {alias} .*drop one"):
        Plugins([wrap(Wasserstein()), sn, wrap(WeightClipping())])


@pytest.mark.parametrize("wrong", [0, -1.0, "3", True, float("inf"), float("nan"), [1.0]])
def test_wrong_options(wrong: object) -> None:
    with pytest.raises(PluginError, match="clip: limit: expected"):
        load("clip", {"limit": wrong})
    with pytest.raises(PluginError, match=r"limt.*Did you mean 'limit'"):
        load("clip", {"limt": wrong})
    with pytest.raises(PluginError, match="clip: conflicts: unknown key"):
        load("clip", {"conflicts": []})
    assert load("clip", {"limit": 1}).options == {"limit": 1.0}


def test_a_tensor_beside_a_parameter_of_a_like_name_is_no_made_weight() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3, 3), 2.0))
            self.scale, self.scale_bias = torch.tensor(3.0), nn.Parameter(torch.ones(3))
            self.mean, self.mean_head = torch.zeros(3), nn.Parameter(torch.ones(3))

    module = Scaled()
    clip_weights(module, 0.5)
    assert module.weight.tolist() == [[0.5] * 3] * 3
    assert module.scale_bias.tolist() == module.mean_head.tolist() == [0.5] * 3


class TestCard(Card):
    name = "clip"
    plugin = WeightClipping
