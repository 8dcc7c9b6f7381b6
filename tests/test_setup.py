"""The hook setup: what it is given, what it may not change, and the networks that plugins keep."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same, trainer
from torch import Tensor, nn

from gancore import CriticStep, hookimpl, plugin
from gancore.errors import ContractError, PluginError
from gancore.isolation.randomness import Randomness
from gancore.losses import Wasserstein
from gancore.plugins import Plugins, wrap

CPU = torch.device("cpu")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


@plugin
class Extractor:
    """Pulls the critic's mean score to that of features of its own."""

    features: nn.Module = field(init=False)
    given: tuple[Any, ...] = field(init=False, default=())

    @hookimpl
    def setup(self, generator: Any, critic: Any, shape: Any, device: Any) -> None:
        self.given = (generator, critic, shape, device)
        size = torch.Size(shape).numel()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(size, 4), nn.BatchNorm1d(4))

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        target = self.features(step.real.detach()).mean().detach()
        return (step.scores(step.real).mean() - target).square()


def plugins_of(*instances: object, seed: int = 0) -> Plugins:
    named = [wrap(instance, f"p{number}") for number, instance in enumerate(instances)]
    return Plugins([wrap(Wasserstein()), *named], Randomness(seed))


def test_a_trainer_sets_its_plugins_up_once_with_networks_shape_and_device() -> None:
    extractor = Extractor()
    t = trainer(plugins=[extractor])
    assert extractor.given == (t.generator, t.critic, tuple(t.data.samples.shape[1:]), t.device)
    before = extractor.features
    t.critic_update(0)
    assert extractor.features is before
    assert {"extractor"} <= t.plugins.state_dict().keys()


def test_what_is_made_depends_on_the_seed_and_the_name_alone() -> None:
    def made(*others: object, seed: int = 0, last: bool = False) -> Tensor:
        one = Extractor()
        order = [*others, one] if last else [one, *others]
        torch.manual_seed(torch.seed() % 1000)
        plugins_of(*order, seed=seed).setup(network(), network(), (2,), CPU)
        weight: Tensor = one.features[1].weight  # type: ignore[index]
        return weight

    assert torch.equal(made(), made(Extractor()))
    assert not torch.equal(made(), made(seed=1))
    assert not torch.equal(made(), made(Extractor(), last=True))  # by another name


def test_networks_that_a_plugin_keeps_are_moved_and_saved() -> None:
    one, other = Extractor(), Extractor()
    plugins, others = plugins_of(one), plugins_of(other)
    assert plugins.state_dict() == {}  # nothing is kept yet
    for each in (plugins, others):
        each.setup(network(), network(), (2,), torch.device("meta") if each is others else CPU)
    assert {value.device.type for value in other.features.state_dict().values()} == {"meta"}
    others.setup(network(), network(), (2,), CPU)
    with torch.no_grad():
        one.features[1].weight.fill_(2.5)  # type: ignore[index]
    state = plugins.state_dict()
    expected = {f"features.{name}": value for name, value in one.features.state_dict().items()}
    assert_same(state["p0"], expected)
    others.load_state_dict(state)
    assert_same(other.features.state_dict(), one.features.state_dict())
    with pytest.raises(RuntimeError) as caught:
        others.load_state_dict({"p0": {"features.1.weight": torch.zeros(4, 2)}})
    assert "load_state_dict of plugin p0" in caught.value.__notes__[0]
    others.load_state_dict({})  # of an earlier version


def test_a_state_dict_of_its_own_is_what_is_saved() -> None:
    @plugin
    class Own(Extractor):
        def state_dict(self) -> dict[str, Any]:
            return {"count": 3}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.loaded = state

    own = Own()
    plugins = plugins_of(own)
    plugins.setup(network(), network(), (2,), CPU)
    assert plugins.state_dict() == {"p0": {"count": 3}}
    plugins.load_state_dict({"p0": {"count": 4}})
    assert own.loaded == {"count": 4}


def test_the_runs_networks_are_not_saved_with_a_plugin() -> None:
    @plugin
    class Holding:
        @hookimpl
        def setup(self, generator: nn.Module, critic: nn.Sequential) -> None:
            self.critic, self.generator, self.layer = critic, generator, critic[0]

    plugins = plugins_of(Holding())
    plugins.setup(network(), network(), (2,), CPU)
    assert plugins.state_dict() == {}


def test_a_run_goes_on_with_the_networks_that_its_plugin_kept(tmp_path: Path) -> None:
    """The statistics of its features are part of the run: cut in two it equals the whole."""

    def run(steps: int, folder: str, **arguments: Any) -> dict[str, Tensor]:
        extractor = Extractor()
        sections = {"train": {"steps": steps, "batch_size": 8}, "checkpoint": {"every": 2}}
        t = trainer(plugins=[extractor], **sections)
        t.run(tmp_path / folder, **arguments)
        return {**t.critic.state_dict(), **extractor.features.state_dict(prefix="features.")}

    whole = run(4, "whole")
    run(2, "parts")
    parts = run(4, "parts", resume=True, force=True)
    assert whole["features.2.num_batches_tracked"] == 4
    assert_same(parts, whole)


def setting_up(act: Any) -> object:
    class Acting:
        @hookimpl
        def setup(self, generator: nn.Module, critic: nn.Sequential) -> None:
            act(generator, critic)

    return Acting()


def test_a_forward_pass_leaves_the_networks_as_they_were() -> None:
    critic, generator = network(), network()
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in (generator, critic)]
    act = setting_up(lambda generator, critic: critic(generator(torch.ones(4, 2)).repeat(1, 2)))
    plugins_of(act).setup(generator, critic, (2,), CPU)
    for net, state in zip((generator, critic), before, strict=True):
        assert_same(net.state_dict(), state)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda generator, critic: critic.eval(), "train or eval mode of the critic"),
        (lambda generator, critic: generator.requires_grad_(False), "requires_grad of generator"),
        (lambda generator, critic: nn.init.zeros_(critic[0].weight), "critic.0.weight in place"),
        (lambda generator, critic: critic.append(nn.Tanh()), "parameters or parts of the critic"),
        (lambda generator, critic: torch.set_grad_enabled(False), "gradient mode"),
        (lambda generator, critic: critic[0].register_forward_hook(print), "setup left .* hook"),
        (lambda generator, critic: generator.register_full_backward_hook(print), "left .* hook"),
    ],
)
def test_what_is_changed_of_the_networks_is_an_error(act: Any, said: str) -> None:
    with pytest.raises(ContractError, match=rf"^plugin p0 \(.*{said}"):
        plugins_of(setting_up(act)).setup(network(), network(), (2,), CPU)
    torch.set_grad_enabled(True)


def test_a_hook_that_is_taken_off_again_is_fine() -> None:
    def act(generator: nn.Module, critic: nn.Sequential) -> None:
        handle = critic[0].register_forward_hook(lambda *_: None)
        critic(torch.ones(4, 2))
        handle.remove()

    plugins_of(setting_up(act)).setup(network(), network(), (2,), CPU)


def test_it_may_refuse() -> None:
    def act(generator: nn.Module, critic: nn.Module) -> None:
        raise ValueError("not this critic")

    with pytest.raises(PluginError, match=r"^plugin p0 \(.*\): not this critic$"):
        plugins_of(setting_up(act)).setup(network(), network(), (2,), CPU)


def test_the_guard_watches_afterwards_what_it_watched_before() -> None:
    class Acting:
        @hookimpl
        def setup(self, critic: nn.Module) -> None:
            self.critic = critic

        @hookimpl
        def log(self) -> None:
            self.critic.train(not self.critic.training)

    plugins, critic = plugins_of(Acting()), network()
    plugins.setup(network(), critic, (2,), CPU)
    plugins.call("log", record={})  # nobody has asked for a watch
    plugins.guard.watch(critic=critic)
    plugins.setup(network(), critic, (2,), CPU)
    with pytest.raises(ContractError, match="log changed train or eval mode of the critic"):
        plugins.call("log", record={})
