"""Notes: numbers that a plugin records beside its penalty."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import needs_compiling
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, hookimpl, plugin
from gancore.errors import ContractError
from gancore.losses import Wasserstein
from gancore.plugins import Plugins, wrap


def step(dtype: torch.dtype = torch.float32) -> CriticStep:
    real, fake = torch.ones(3, 2, dtype=dtype), torch.zeros(3, 2, dtype=dtype)
    return CriticStep(nn.Linear(2, 1, dtype=dtype), real, fake)


@plugin
class Noting(Wasserstein):
    """Notes one number in each hook that has a step."""

    @hookimpl
    def penalty(self, step: CriticStep) -> None:
        step.note("mean_score", step.scores(step.real).mean())

    @hookimpl
    def generator_penalty(self, step: GeneratorStep) -> None:
        step.note("size", step.fake.square().mean())

    @hookimpl
    def critic_loss(self, step: CriticStep) -> Tensor:
        step.note("loss", 3)
        return super().critic_loss(step)

    @hookimpl
    def generator_loss(self, step: GeneratorStep) -> Tensor:
        step.note("loss", 4)
        return super().generator_loss(step)


def test_every_hook_with_a_step_may_note_under_its_plugins_name() -> None:
    plugins = Plugins([wrap(Noting(), "it")])
    critic_step = step()
    assert list(plugins.answer_penalties("penalty", critic_step)) == []
    plugins.answer_loss("critic_loss", critic_step)
    mean = critic_step.scores(critic_step.real).mean().item()
    assert {name: note.item() for name, note in critic_step.notes.items()} == {
        "note/it/mean_score": mean,
        "note/it/loss": 3,
    }
    fake = torch.full((3, 2), 2.0, requires_grad=True)
    generator_step = GeneratorStep(nn.Identity(), nn.Linear(2, 1), torch.ones(3, 2), fake)
    assert list(plugins.answer_penalties("generator_penalty", generator_step)) == []
    plugins.answer_loss("generator_loss", generator_step)
    assert {name: note.item() for name, note in generator_step.notes.items()} == {
        "note/it/size": 4,
        "note/it/loss": 4,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("value", "noted"),
    [
        *((2, 2.0), (0.5, 0.5), (True, 1.0), (np.float64(0.25), 0.25), (torch.tensor(3), 3.0)),
        *((torch.tensor(True), 1.0), (torch.tensor(1.5, dtype=torch.bfloat16), 1.5)),
    ],
)
def test_a_note_is_a_scalar_like_the_samples(value: Any, noted: float, dtype: torch.dtype) -> None:
    one = step(dtype)
    one.note("x", value)
    assert list(one.notes) == ["note/step/x"]  # a step of one's own has no plugin
    (note,) = one.notes.values()
    assert (note.item(), note.shape, note.dtype) == (noted, (), dtype)
    assert note.device == one.real.device


@pytest.mark.parametrize(
    "value", [torch.nan, torch.inf, torch.tensor(-torch.inf), 1e39, -1e300, 10**40]
)
def test_a_number_that_is_not_finite_is_a_note(value: Any) -> None:
    one = step()
    one.note("x", value)
    assert not one.notes["note/step/x"].isfinite()


def test_a_note_is_a_copy_without_the_graph() -> None:
    one, value = step(), torch.ones((), requires_grad=True)
    one.note("x", value * 2)
    assert not one.notes["note/step/x"].requires_grad
    average = torch.ones(())
    one.note("average", average)
    average.add_(1)
    assert one.notes["note/step/average"].item() == 1


def test_of_two_values_the_later_counts() -> None:
    one = step()
    for value in (1.0, 2.0):
        one.note("x", value)
    one.note("y", 0.0)
    assert {name: note.item() for name, note in one.notes.items()} == {
        "note/step/x": 2.0,
        "note/step/y": 0.0,
    }
    one.notes.clear()  # what is given away is a copy
    assert len(one.notes) == 2


def noting(*arguments: Any) -> Callable[[], object]:
    @plugin
    class Bad:
        @hookimpl
        def penalty(self, step: CriticStep) -> None:
            step.note(*arguments)

    plugins = Plugins([wrap(Wasserstein()), wrap(Bad(), "worst")])
    return lambda: list(plugins.answer_penalties("penalty", step()))


@pytest.mark.parametrize("name", ["", "Norm", "a/b", "a b", "é", "a" * 65, "a\n", "a-b", 3, None])
def test_another_name_is_the_plugins_mistake(name: Any) -> None:
    said = f"^plugin worst: step.note got the name {re.escape(repr(name))}, expected 1 to 64"
    with pytest.raises(ContractError, match=said):
        noting(name, 1.0)()


@pytest.mark.parametrize("name", ["a", "0", "_", "a" * 64, "norm_90"])
def test_these_names_are_fine(name: str) -> None:
    noting(name, 1.0)()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(3), r"a Tensor of shape \(3,\)"),
        (torch.ones(1), r"a Tensor of shape \(1,\)"),
        (torch.tensor(1j), r"a Tensor of shape \(\)"),
        *(("1", "a str"), (None, "a NoneType"), ([1], "a list")),
    ],
)
def test_what_is_no_scalar_is_the_plugins_mistake(value: Any, said: str) -> None:
    with pytest.raises(ContractError, match=f"^plugin worst: step.note got {said} as 'x', "):
        noting("x", value)()


def test_a_wrapper_notes_under_its_own_name() -> None:
    @plugin
    class Around:
        @hookimpl(wrapper=True)
        def penalty(self, step: CriticStep) -> Generator[None, Any, Any]:
            step.note("before", 1.0)
            answers = yield
            step.note("after", 2.0)
            return answers

    one = step()
    plugins = Plugins([wrap(Noting(), "inner"), wrap(Around(), "outer")])
    list(plugins.answer_penalties("penalty", one))
    assert list(one.notes) == ["note/outer/before", "note/inner/mean_score", "note/outer/after"]


def test_noting_changes_nothing_that_others_share() -> None:
    """The guard compares the step's attributes; the notes are none of what it compares."""
    plugins = Plugins([wrap(Noting(), "a")])
    network = nn.Linear(2, 1)
    plugins.guard.watch(critic=network)
    one = CriticStep(network, torch.ones(3, 2), torch.zeros(3, 2))
    list(plugins.answer_penalties("penalty", one))
    plugins.answer_loss("critic_loss", one)
    assert len(one.notes) == 2


@needs_compiling
def test_a_compiled_update_may_note() -> None:
    network, plugins = nn.Linear(2, 1), Plugins([wrap(Noting(), "it")])

    def update(real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        one = CriticStep(network, real, fake)
        for _ in plugins.answer_penalties("penalty", one, {"it": 1.0}):
            pass
        return plugins.answer_loss("critic_loss", one).detach(), one.notes

    real, fake = torch.randn(2, 4, 2)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        loss, notes = torch.compile(update, backend="aot_eager", fullgraph=True)(real, fake)
    expected, eager = update(real, fake)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(notes, eager)
