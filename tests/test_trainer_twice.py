"""What one run leaves is no part of another: a Trainer, a plugin or a critic used again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOY, assert_same, images, networks, parsed, records_of, trainer, weights
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from gancore import CriticStep, hookimpl, plugin
from gancore.errors import InputError, NonFiniteError, PluginError
from gancore.plugins import Plugins, load, wrap
from gancore.training import Trainer, load_critic
from gancore.training import build_trainer as build
from gancore_gp import GradientPenalty
from gancore_lecam import LeCam
from gancore_sn import SpectralNorm, apply_spectral_norm

TRAIN = {"steps": 4, "batch_size": 8}
STOPPED = {**TRAIN, "max_seconds": 1e-9}


def everything(made: Trainer) -> dict[str, Tensor]:
    tensors, _ = made.state()
    return {
        f"{name}/{key}": tensor.clone()
        for name, each in tensors.items()
        for key, tensor in each.items()
    }


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_and_leaves_nothing(tmp_path: Path, resume: bool) -> None:
    made = trainer(train=TRAIN)
    made.run(tmp_path / "a")
    before = everything(made)
    with pytest.raises(InputError, match="made updates already.*make a new Trainer"):
        made.run(tmp_path / "b", resume=resume)
    assert list((tmp_path / "b").iterdir()) == []
    assert_same(before, everything(made))


def test_updates_by_hand_count_and_a_run_refused_before_them_does_not(tmp_path: Path) -> None:
    def critic(made: Trainer) -> None:
        made.update_critic(0, torch.zeros(8, 1, 4, 4), torch.ones(8, 1, 4, 4))

    def samples(made: Trainer) -> None:
        made.critic_samples(0)  # which moves the generator's running statistics

    def generator(made: Trainer) -> None:
        made.generator_update(0)

    for act in (critic, samples, generator):
        made = trainer(train=TRAIN)
        act(made)
        with pytest.raises(InputError, match="make a new Trainer"):
            made.run(tmp_path / act.__name__)
    (tmp_path / "thesis.tex").touch()
    made = trainer(train=TRAIN)
    with pytest.raises(InputError, match="not empty"):
        made.run(tmp_path)
    made.run(tmp_path / "run")
    expected = trainer(train=TRAIN)
    expected.run(tmp_path / "expected")
    assert_same(everything(expected), everything(made))


def test_a_run_that_failed_counts(tmp_path: Path) -> None:
    @plugin
    class Nan:
        value: float = float("nan")

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return step.scores(step.real).mean() * self.value

    nan = Nan()
    made = trainer(train=TRAIN, plugins=[nan])
    with pytest.raises(NonFiniteError):
        made.run(tmp_path / "a")
    nan.value = 1.0
    with pytest.raises(InputError, match="make a new Trainer"):
        made.run(tmp_path / "b")


def test_a_stopped_run_goes_on_in_its_trainer_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Also where other updates were made meanwhile: all comes from the checkpoint."""
    whole, stopped = (trainer(train={**TRAIN, "ema": 0.9}, plugins=[LeCam()]) for _ in range(2))
    whole.run(tmp_path / "whole")
    train = stopped.settings.train.model_copy(update={"max_seconds": 1e-9})
    stopped.learner.settings = replace(stopped.settings, train=train)
    assert records_of(stopped.run(tmp_path / "run"))[-1]["step"] == 1
    stopped.learner.settings = whole.settings
    for update in range(3):
        stopped.critic_update(100 + update)
        stopped.generator_update(100 + update)
    stopped.run(tmp_path / "run", resume=True)
    assert_same(everything(whole), everything(stopped))


def test_a_plugin_with_another_trainers_state_is_refused(tmp_path: Path) -> None:
    lecam = LeCam()
    first = trainer(train=TRAIN, plugins=[lecam])
    second = trainer(train=TRAIN, plugins=[lecam])  # made, but not used yet
    first.run(tmp_path / "a")
    with pytest.raises(InputError, match=r"plugin lecam \(gancore-lecam .*\) keeps the state of"):
        second.run(tmp_path / "b")
    with pytest.raises(InputError, match="make a new one"):
        trainer(train=TRAIN, plugins={"other": lecam}).run(tmp_path / "b")
    longer = trainer(train={**TRAIN, "steps": 5}, plugins=[lecam])
    longer.run(tmp_path / "a", resume=True)


def test_a_plugin_without_state_may_be_in_many(tmp_path: Path) -> None:
    gp = GradientPenalty()
    for name in "ab":
        trainer(train=TRAIN, plugins=[gp]).run(tmp_path / name)


@plugin
class Features:
    """Keeps networks: one that each batch moves, or, in eval mode, one that stays."""

    frozen: bool = False
    anew: bool = False
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16)).train(not self.frozen)

    @hookimpl
    def setup(self) -> None:
        if self.anew:
            self.__post_init__()

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        target = self.network(step.real.detach()).mean().detach()
        return (step.scores(step.real).mean() - target).square()


def test_a_plugin_whose_networks_another_trainer_has_moved_is_refused(tmp_path: Path) -> None:
    moved = Features()
    trainer(train=TRAIN, plugins=[moved]).run(tmp_path / "a")
    with pytest.raises(InputError, match="plugin features .* keeps the state of another Trainer"):
        trainer(train=TRAIN, plugins=[moved]).run(tmp_path / "b")
    trainer(train={**TRAIN, "steps": 5}, plugins=[moved]).run(tmp_path / "a", resume=True)
    for name, features in {"frozen": Features(frozen=True), "anew": Features(anew=True)}.items():
        for number in range(2):
            trainer(train=TRAIN, plugins=[features]).run(tmp_path / f"{name}{number}")


def test_a_stateful_plugin_that_equals_others_is_no_other() -> None:
    class Equal:
        seen = 0

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        def __hash__(self) -> int:
            return 0

        @hookimpl
        def post_step(self) -> None:
            self.seen += 1

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

    one, other = Equal(), Equal()
    first = trainer(train=TRAIN, plugins=[one])
    first.critic_update(0)
    other.seen = 1
    trainer(train=TRAIN, plugins=[other]).learner.use.refuse()
    with pytest.raises(InputError, match="plugin equal"):
        trainer(train=TRAIN, plugins=[one]).learner.use.refuse()


def again(critic: nn.Module, *plugins: object) -> Trainer:
    generator, _ = networks()
    return Trainer(generator, critic, images(), plugins=plugins, train=TRAIN, device="cpu")


def same(critic: nn.Module) -> nn.Module:
    return critic


class Halve(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


@plugin
class Half:
    """A plugin of somebody's own, by each of the ways in which a critic can be changed."""

    how: str = "parametrization"

    @hookimpl
    def prepare_critic(self, critic: nn.Module) -> None:
        layers = critic.get_submodule("layers")
        assert isinstance(layers, nn.Sequential)
        if self.how == "parametrization":
            parametrize.register_parametrization(layers[1], "weight", Halve())
        elif self.how == "layer":
            layers[1] = nn.Linear(16, 12)
        elif self.how == "hook":
            layers[1].register_forward_hook(lambda module, inputs, out: out / 2)
        elif self.how == "pre-hook":
            critic.register_forward_pre_hook(self.double)

    def double(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (2 * inputs[0],)


@pytest.mark.parametrize("change", [same, copy.deepcopy])
@pytest.mark.parametrize(
    ("made", "name"),
    [
        (SpectralNorm(), r"sn \(gancore-sn "),
        *((Half(how=how), "half ") for how in ("parametrization", "layer", "hook", "pre-hook")),
    ],
)
def test_what_an_absent_plugin_put_on_the_critic_is_refused(
    made: object, name: str, change: Callable[[nn.Module], nn.Module]
) -> None:
    critic = again(networks()[1], made).critic
    used = change(critic)
    before = weights(used)
    with pytest.raises(PluginError, match=rf"still has what plugin {name}.*build the critic anew"):
        again(used, GradientPenalty())
    assert_same(before, weights(used))


def test_a_critic_loaded_with_what_a_plugin_put_on_it_is_refused(tmp_path: Path) -> None:
    recipe = parsed(TOY.replace('"gp"', '"sn"'), **{"train.steps": 1})
    critic = load_critic(build(recipe, device="cpu").run(tmp_path / "run"))
    with pytest.raises(PluginError, match="still has what plugin sn"):
        Plugins([load("wasserstein")]).prepare_critic(critic)


def test_what_was_taken_off_again_is_not_left() -> None:
    critic = again(networks()[1], SpectralNorm()).critic
    for part in [*critic.modules()]:
        if parametrize.is_parametrized(part):
            parametrize.remove_parametrizations(part, "weight")
    again(critic)


def test_the_same_plugin_decides_for_itself() -> None:
    critic = again(networks()[1], SpectralNorm()).critic
    before = weights(critic)
    assert_same(before, weights(again(critic, SpectralNorm()).critic))  # fine-tuning: as it is
    halved = again(networks()[1], Half()).critic
    again(halved, Half(how="not at all"))


def test_networks_trained_elsewhere_and_normalized_by_hand_are_taken(tmp_path: Path) -> None:
    """Fine-tuning: also from another Trainer, and with parametrizations of the user's own."""
    generator, critic = networks()
    parametrizations.orthogonal(critic.get_submodule("layers")[3])  # type: ignore[index]
    critic.register_forward_hook(lambda module, inputs, out: 2 * out)
    Trainer(generator, critic, images(), train=TRAIN, device="cpu").critic_update(0)
    again(critic, GradientPenalty()).critic_update(0)
    again(apply_spectral_norm(networks()[1])).critic_update(0)


def test_a_plugin_that_only_looks_leaves_no_trace() -> None:
    @plugin
    class Look:
        @hookimpl
        def prepare_critic(self, critic: nn.Module) -> None:
            assert critic.training

    critic = networks()[1]
    before = set(vars(critic))
    Plugins([load("wasserstein"), wrap(Look())]).prepare_critic(critic)
    assert set(vars(critic)) == before
