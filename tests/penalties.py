"""What the tests of plugins share: penalties that are functions too, and cards.

A test file subclasses a kit and names its plugin; the contract itself is `gancore.testing`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

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

finite = st.floats(-10, 10, allow_subnormal=False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def linear(w: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (x * w).flatten(1).sum(1)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def conv() -> nn.Module:
    torch.manual_seed(1)
    head = [nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Softplus()]
    return nn.Sequential(*head, nn.Flatten(), nn.Linear(12, 1)).double()


def central_differences(function: Callable[[], Tensor], parameter: Tensor) -> Tensor:
    h = 1e-6
    entries, slopes = parameter.detach().view(-1), []
    for i in range(len(entries)):
        middle = entries[i].item()
        values = []
        for entries[i] in (middle + h, middle - h):
            values.append(function().item())
        entries[i] = middle
        slopes.append((values[0] - values[1]) / (2 * h))
    return torch.tensor(slopes, dtype=torch.float64).view_as(parameter)


class Card:
    """The README of a plugin: its code runs, its table has the defaults, its recipe the plugin.

    name    the plugin's entry point
    plugin  its class
    """

    name: ClassVar[str]
    plugin: ClassVar[type]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        text = (
            Path(str(metafunc.module.__file__)).parents[1].joinpath("README.md").read_text("utf-8")
        )
        if "card" in metafunc.fixturenames:
            metafunc.parametrize("card", [text], ids=[""])
        if "code" in metafunc.fixturenames:
            metafunc.parametrize("code", re.findall(r"```python\n(.*?)```", text, re.DOTALL))

    def test_its_code_runs(self, code: str) -> None:
        exec(code, {})

    def test_it_agrees_with_the_class(self, card: str) -> None:
        rows = re.findall(r"^\| `(\w+)` \|[^|]*\| `(.*?)` \|", card, re.MULTILINE)
        defaults = {name: tomllib.loads(f"x = {default}")["x"] for name, default in rows}
        assert defaults == {
            option.name: list(option.default)
            if isinstance(option.default, tuple)
            else option.default
            for option in fields(self.plugin)
            if option.init
        }
        (block,) = re.findall(r"```toml\n(.*?)```", card, re.DOTALL)
        (table,) = (each for each in tomllib.loads(block)["plugin"] if each["name"] == self.name)
        assert isinstance(load(table.pop("name"), table).instance, self.plugin)


class GradientPenaltyFunction:
    """A penalty on the critic's gradient that is a plain function as well as a plugin.

    plugin  its class
    samples which of real and fake the function takes, by index
    """

    plugin: ClassVar[type]
    function: ClassVar[Callable[..., Tensor]]
    samples: ClassVar[tuple[int, ...]] = (0, 1)

    def value(self, critic: Any, *both: Tensor, **options: Any) -> Tensor:
        """Return the function's value for real and fake samples, of which it takes some."""
        return type(self).function(critic, *(both[index] for index in self.samples), **options)

    def hook(self, critic: Any, *both: Tensor, **options: Any) -> Tensor:
        answer: Tensor = self.plugin().penalty(CriticStep(critic, *both, **options))
        return answer

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("source", ["data", "a leaf that requires grad", "generator"])
    def test_arguments_are_left_as_they_were(self, training: bool, source: str) -> None:
        generator = nn.Linear(3, 4)
        critic = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).train(training)
        weight = critic[0].weight
        both = [torch.randn(5, 4, requires_grad=source.startswith("a leaf")) for _ in range(2)]
        if source == "generator":
            both = [generator(torch.randn(5, 3)) for _ in range(2)]
        before = [(x.detach().clone(), x.requires_grad, x.grad_fn) for x in both]
        weight.grad = torch.full_like(weight, 7)
        value = self.value(critic, *both)
        assert torch.equal(weight.grad, torch.full_like(weight, 7))
        assert critic[0].bias.grad is None
        value.backward()
        assert weight.grad.ne(7).any()
        for x, (values, wants_grad, grad_fn) in zip(both, before, strict=True):
            assert (x.requires_grad, x.grad_fn) == (wants_grad, grad_fn)
            assert source == "generator" or x.grad is None
            assert torch.equal(x, values)
        assert all(parameter.grad is None for parameter in generator.parameters())
        assert critic.training == training

    @pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1, 1)])
    def test_critics_of_any_output_shape(self, shape: tuple[int, ...]) -> None:
        w, both = normal(4), (normal(3, 4), normal(3, 4, seed=1))
        value = self.value(lambda x: (x @ w).reshape(shape), *both)
        assert value.item() == self.value(linear(w), *both).item()

    @pytest.mark.parametrize(
        "answer", [lambda x: (x[:, 0], x), lambda x: x[:, :2], lambda x: x.sum()]
    )
    def test_critics_of_other_outputs_are_refused(self, answer: Any) -> None:
        with pytest.raises(ContractError, match="one score a sample"):
            self.value(answer, normal(3, 4), normal(3, 4))

    @pytest.mark.parametrize("how", ["detached", "no_grad in front"])
    def test_a_critic_without_a_path_to_its_input(self, how: str) -> None:
        body, head = nn.Linear(4, 3).double(), nn.Linear(3, 1).double()
        both = normal(6, 4), normal(6, 4, seed=1)

        def critic(x: Tensor) -> Tensor:
            with torch.set_grad_enabled(how == "detached"):
                features = body(x)
            scores: Tensor = head(features.detach())
            return scores

        with pytest.raises(ContractError, match=r"no path to its input.*requires_grad_\(False\)"):
            self.value(critic, *both)
        with pytest.raises(ContractError, match="no path"):
            self.hook(critic, *both)

    def test_under_autocast_it_is_of_the_critic_there(self) -> None:
        """Its rounding is that of bf16; the value is float32, and outside nothing is rounded."""
        torch.manual_seed(0)
        critic = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
        both = normal(6, 8).float(), normal(6, 8, seed=1).float()

        def value() -> Tensor:
            torch.manual_seed(1)  # the same points
            return self.value(critic, *both)

        seen: list[torch.dtype] = []
        critic[0].register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            low = value()
        single = value()
        assert seen == [torch.bfloat16, torch.float32]
        assert low.dtype == single.dtype == torch.float32
        assert 1e-5 < abs(low.item() / single.item() - 1) < 0.05

    def test_scores_that_depend_on_other_samples(self) -> None:
        critic = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
        both = normal(6, 4), normal(6, 4, seed=1)
        reason = r"whole batch.*layer, group, instance or no normalization"
        for call in (self.value, self.hook):
            with pytest.raises(ContractError, match=reason):
                call(critic, *both)
        with pytest.warns(BatchStatisticsWarning):
            allowed = self.hook(critic, *both, allow_batch_statistics=True)
        assert allowed.isfinite()
        assert self.value(critic, *both, allow_batch_statistics=True).isfinite()
        critic.eval()
        assert self.value(critic, *both).isfinite()
        assert self.hook(critic, *both).isfinite()

    @pytest.mark.parametrize("make", [mlp, conv])
    def test_parameter_gradients_are_central_differences(
        self, make: Callable[[], nn.Module]
    ) -> None:
        critic, both = make(), (normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1))

        def penalty() -> Tensor:
            torch.manual_seed(0)
            return self.value(critic, *both)

        parameters = list(critic.parameters())
        gradients = torch.autograd.grad(penalty(), parameters, materialize_grads=True)
        assert gradients[0].abs().max() > 1e-3
        for parameter, gradient in zip(parameters, gradients, strict=True):
            expected = central_differences(penalty, parameter)
            torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)

    def test_the_function_is_on_the_device_of_its_arguments(self) -> None:
        critic, x = nn.Linear(4, 1, device="meta"), torch.empty(3, 4, device="meta")
        value = self.value(critic, x, x)
        value.backward()
        assert (value.device.type, value.shape) == ("meta", ())
        assert critic.weight.grad.device.type == "meta"


class SquaredGradient(GradientPenaltyFunction, Card):
    """γ/2·E[‖∇D(x)‖²], over real or over fake samples, against hand-made mathematics."""

    @pytest.mark.parametrize(
        "shape", [(1, 5), (7, 5), (1, 1, 8, 8), (3, 1, 8, 8), (1, 3, 32, 32), (2, 3, 32, 32)]
    )
    def test_linear_critic(self, shape: tuple[int, ...]) -> None:
        w, x = normal(*shape[1:]), normal(*shape, seed=1)
        value = self.value(linear(w), x, x, gamma=3.0)
        assert value.shape == ()
        assert value.item() == pytest.approx(1.5 * np.sum(w.numpy() ** 2), rel=1e-12)

    @settings(deadline=None, max_examples=60)
    @given(
        w=st.lists(finite, min_size=1, max_size=6),
        batch=st.integers(1, 4),
        gamma=st.floats(1e-3, 1e3),
    )
    def test_any_linear_critic(self, w: list[float], batch: int, gamma: float) -> None:
        x = normal(batch, len(w))
        value = self.value(linear(torch.tensor(w, dtype=torch.float64)), x, x, gamma=gamma)
        assert value.item() == pytest.approx(gamma / 2 * np.dot(w, w), rel=1e-12, abs=1e-300)

    def test_tanh_critic_by_hand(self) -> None:
        critic, both = mlp(), (normal(9, 32), normal(9, 32, seed=1))
        first, bias, last = (p.detach().numpy() for p in list(critic.parameters())[:3])
        slope = 1 - np.tanh(both[self.samples[0]].numpy() @ first.T + bias) ** 2
        squares = np.sum(((slope * last) @ first) ** 2, axis=1)
        assert np.ptp(squares) > 0.01
        assert self.value(critic, *both).item() == pytest.approx(5 * np.mean(squares), rel=1e-12)

    @pytest.mark.parametrize("layers", [(4, 1), (4, 3, 1)])
    def test_where_the_gradient_is_zero_all_is_finite(self, layers: tuple[int, ...]) -> None:
        sizes = pairwise(layers)
        critic = nn.Sequential(*(m for size in sizes for m in (nn.Tanh(), nn.Linear(*size))))
        for parameter in critic.parameters():
            nn.init.zeros_(parameter)
        value = self.value(critic, torch.ones(3, 4), torch.ones(3, 4))
        assert value.item() == 0
        gradients = torch.autograd.grad(value, list(critic.parameters()), materialize_grads=True)
        assert all(gradient.isfinite().all() for gradient in gradients)

    @pytest.mark.parametrize("options", [{}, {"gamma": 0.3}])
    def test_the_hook_is_the_function_and_shares_the_forward_pass(
        self, options: dict[str, float]
    ) -> None:
        critic, real, fake = conv(), normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
        expected = self.value(critic, real, fake, **options)
        plugins = Plugins([wrap(Wasserstein()), wrap(self.plugin(**options))])
        step = CriticStep(critic, real, fake)
        seen: list[Tensor] = []
        critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        ((loaded, scale, value),) = plugins.answer_penalties("penalty", step)
        loss = plugins.answer_loss("critic_loss", step)
        assert (loaded.name, scale) == (self.name, 1)
        assert torch.equal(value, expected)
        first, second = seen  # the penalty's pass, which the loss goes on with, and the loss's
        mine = self.samples[0]
        assert torch.equal(first, (step.real, step.fake)[mine])
        assert torch.equal(second, (step.fake, step.real)[mine])
        (loss + value).backward()  # both graphs are whole
        assert loss.item() == pytest.approx((critic(fake).mean() - critic(real).mean()).item())

    @pytest.mark.parametrize("wrong", [0, -1.0, "3", True, float("inf"), float("nan"), [1.0]])
    def test_wrong_options(self, wrong: object) -> None:
        with pytest.raises(PluginError, match=f"{self.name}: gamma: expected"):
            load(self.name, {"gamma": wrong})
        with pytest.raises(PluginError, match=r"gama.*Did you mean 'gamma'"):
            load(self.name, {"gama": wrong})
        assert load(self.name, {"gamma": 5}).options == {"gamma": 5.0}
