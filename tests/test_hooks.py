"""The hooks: their names and signatures are a contract, and each reaches a plugin."""

from __future__ import annotations

import inspect
import re
from dataclasses import field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, hookimpl, hooks, plugin
from gancore.plugins import HOOKS, Plugins, wrap

SPECS = {
    "configure": ("plugins", False),
    "critic_loss": ("step", True),
    "generator_loss": ("step", True),
    "generator_penalty": ("step", False),
    "log": ("record", False),
    "sample": ("samples step", False),
    "start": ("folder step", False),
    "penalty": ("step", False),
    "penalty_scale": ("plugin update hook", False),
    "post_step": ("critic update", False),
    "prepare_critic": ("critic", False),
    "setup": ("generator critic shape device", False),
}
"""Each hook's parameters, and whether the first answer is the only one."""


@plugin
class Witness:
    """Answers every hook and keeps what it was called with."""

    calls: dict[str, Any] = field(init=False, default_factory=dict)

    @hookimpl
    def configure(self, plugins: Any) -> None:
        self.calls["configure"] = (plugins,)

    @hookimpl
    def prepare_critic(self, critic: Any) -> None:
        self.calls["prepare_critic"] = (critic,)

    @hookimpl
    def setup(self, generator: Any, critic: Any, shape: Any, device: Any) -> None:
        self.calls["setup"] = (generator, critic, shape, device)

    @hookimpl
    def critic_loss(self, step: Any) -> Tensor:
        self.calls["critic_loss"] = (step,)
        return torch.tensor(1.0)

    @hookimpl
    def generator_loss(self, step: Any) -> Tensor:
        self.calls["generator_loss"] = (step,)
        return torch.tensor(2.0)

    @hookimpl
    def penalty(self, step: Any) -> Tensor:
        self.calls["penalty"] = (step,)
        return torch.tensor(3.0)

    @hookimpl
    def generator_penalty(self, step: Any) -> None:
        self.calls["generator_penalty"] = (step,)

    @hookimpl
    def penalty_scale(self, plugin: Any, update: Any, hook: Any) -> float:
        self.calls["penalty_scale"] = (plugin, update, hook)
        return 1.0

    @hookimpl
    def post_step(self, critic: Any, update: Any) -> None:
        self.calls["post_step"] = (critic, update)

    @hookimpl
    def log(self, record: Any) -> None:
        self.calls["log"] = (record,)

    @hookimpl
    def start(self, folder: Any, step: Any) -> None:
        self.calls["start"] = (folder, step)

    @hookimpl
    def sample(self, samples: Any, step: Any) -> None:
        self.calls["sample"] = (samples, step)


def test_there_are_these_hooks() -> None:
    assert tuple(sorted(SPECS)) == HOOKS


@pytest.mark.parametrize("name", SPECS)
def test_contract_of_each_hook(name: str) -> None:
    spec = getattr(hooks, name)
    parameters, first = SPECS[name]
    assert list(inspect.signature(spec).parameters) == parameters.split()
    assert spec.gancore_spec["firstresult"] is first
    assert len(spec.__doc__) > 40
    (since,) = re.findall(r"Since (\d+\.\d+)\.", spec.__doc__)  # the version it came in
    assert Version(since) <= Version(version("gancore"))


def test_every_hook_reaches_a_plugin_with_its_arguments() -> None:
    witness, critic, record = Witness(), nn.Linear(2, 1), {"step": 1}
    plugins = Plugins([wrap(witness, "it")])
    x = torch.zeros(3, 2)
    critic_step = CriticStep(critic, x, x, update=7)
    generator, device = nn.Identity(), torch.device("cpu")
    generator_step = GeneratorStep(generator, critic, x, x, update=8)

    plugins.prepare_critic(critic)
    plugins.setup(generator, critic, (2,), device)
    answers = list(plugins.answer_penalties("penalty", critic_step))
    assert [(each.name, scale, float(value)) for each, scale, value in answers] == [("it", 1, 3)]
    assert witness.calls["penalty_scale"] == ("it", 7, "penalty")
    assert float(plugins.answer_loss("critic_loss", critic_step)) == 1
    assert list(plugins.answer_penalties("generator_penalty", generator_step)) == []  # None
    assert witness.calls["penalty_scale"] == ("it", 8, "generator_penalty")
    assert float(plugins.answer_loss("generator_loss", generator_step)) == 2
    plugins.call("post_step", critic=critic, update=9)
    plugins.call("log", record=record)
    plugins.call("start", folder=Path("run"), step=3)
    plugins.call("sample", samples=x, step=4)

    assert witness.calls == {
        "configure": ({"it": witness},),
        "prepare_critic": (critic,),
        "setup": (generator, critic, (2,), device),
        "critic_loss": (critic_step,),
        "generator_loss": (generator_step,),
        "penalty": (critic_step,),
        "generator_penalty": (generator_step,),
        "penalty_scale": ("it", 8, "generator_penalty"),
        "post_step": (critic, 9),
        "log": (record,),
        "start": (Path("run"), 3),
        "sample": (x, 4),
    }
    assert witness.calls.keys() == SPECS.keys()


@plugin
class Brief:
    """Leaves out every parameter."""

    seen: list[str] = field(init=False, default_factory=list)

    @hookimpl
    def post_step(self) -> None:
        self.seen.append("post_step")

    @hookimpl
    def log(self) -> None:
        self.seen.append("log")


def test_parameters_may_be_left_out() -> None:
    brief = Brief()
    plugins = Plugins([wrap(Witness()), wrap(brief)])
    plugins.call("post_step", critic=nn.Linear(1, 1), update=0)
    plugins.call("log", record={})
    assert brief.seen == ["post_step", "log"]
