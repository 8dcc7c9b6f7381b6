"""The objective: loss plus scaled penalties, and answers that break the contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import field
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, hookimpl, plugin
from gancore.entrypoints import Available
from gancore.errors import ContractError, NonFiniteError
from gancore.plugins import Loaded, Plugins, load, wrap
from gancore.training.objective import Gradients, objective, to_host

Answer = Callable[[Any], Any]


def weights(step: CriticStep) -> Tensor:
    assert isinstance(step.critic, nn.Linear)
    return step.critic.weight


@plugin
class Says:
    """Answers penalties by calling `critic` and `generator` with the step, scaled by `scale`."""

    critic: Any
    generator: Any = None
    scale: Any = None

    @hookimpl
    def penalty(self, step: CriticStep) -> Any:
        return self.critic(step)

    @hookimpl
    def generator_penalty(self, step: GeneratorStep) -> Any:
        return self.generator(step) if self.generator else None

    @hookimpl
    def penalty_scale(self, plugin: str) -> Any:
        return self.scale if plugin == "b" else None


@plugin
class Claims:
    """A loss that answers `answer`."""

    answer: Any

    @hookimpl
    def critic_loss(self) -> Any:
        return self.answer

    @hookimpl
    def generator_loss(self) -> Any:
        return self.answer


def named(instance: object, name: str) -> Loaded:
    source = Available("plugin", name, f"dist-{name}", "3.1", EntryPoint(name, "m:C", "g"))
    return Loaded(name, instance, source)


def step() -> CriticStep:
    """D(x) = 2x₁ + 3x₂; E[D(fake)] − E[D(real)] = 5 − 10 = −5."""
    critic = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        critic.weight.copy_(torch.tensor([[2.0, 3.0]]))
    return CriticStep(critic, 2 * torch.ones(4, 2), torch.ones(4, 2), update=6)


def test_total_is_the_loss_plus_scaled_penalties() -> None:
    squares = Says(critic=lambda step: weights(step).square().sum())  # 13
    total = Says(critic=lambda step: weights(step).sum(), scale=0.5)  # 5
    silent = Says(critic=lambda step: None)
    parts = [wrap(squares, "a"), wrap(total, "b"), wrap(silent, "c")]
    made = step()
    result = objective(Plugins([load("wasserstein"), *parts]), made, nullcontext())
    assert {key: value.item() for key, value in result.terms.items()} == {
        "penalty/a": 13.0,
        "penalty/b": 5.0,  # unscaled
        "critic_loss": -5.0,
    }
    assert result.total.item() == -5 + 13 + 0.5 * 5
    (gradient,) = torch.autograd.grad(result.total, weights(made))
    assert gradient.tolist() == [[-1 + 2 * 2 + 0.5, -1 + 2 * 3 + 0.5]]


def test_the_generators_objective() -> None:
    generator = nn.Linear(1, 2, bias=False)
    critic = nn.Linear(2, 1)
    fake = generator(torch.ones(3, 1))
    made = GeneratorStep(generator, critic, torch.ones(3, 2), fake, update=6)
    says = Says(critic=math.sqrt, generator=lambda step: step.generator.weight.square().sum())
    plugins = Plugins([load("wasserstein"), wrap(says, "a"), wrap(Says(critic=None, scale=4), "z")])
    result = objective(plugins, made, nullcontext())
    assert list(result.terms) == ["generator_penalty/a", "generator_loss"]
    expected = generator.weight.square().sum() - critic(fake).mean()
    assert result.total.item() == pytest.approx(expected.item())
    (gradient,) = torch.autograd.grad(result.total, generator.weight)
    by_hand = 2 * generator.weight - critic.weight.T
    torch.testing.assert_close(gradient, by_hand)


@plugin
class Apart:
    """Scales a plugin's two penalties each by its own factor, and keeps what it is asked."""

    asked: list[tuple[str, int, str]] = field(init=False, default_factory=list)

    @hookimpl
    def penalty_scale(self, plugin: str, update: int, hook: str) -> float:
        self.asked.append((plugin, update, hook))
        return {"penalty": 3.0, "generator_penalty": 0.0}[hook]


@plugin
class Around:
    """A wrapper that doubles what others answer for the critic's penalties."""

    @hookimpl(wrapper=True)
    def penalty_scale(self, hook: str) -> Generator[None, Any, Any]:
        answers = yield
        return [2 * each for each in answers] if hook == "penalty" else answers


def test_a_plugin_s_two_penalties_have_their_own_scales() -> None:
    both = Says(critic=lambda step: weights(step).sum(), generator=lambda step: 1 / 0)
    apart = Apart()
    plugins = Plugins([load("wasserstein"), wrap(both, "b"), wrap(apart), wrap(Around())])
    made = step()
    result = objective(plugins, made, nullcontext())
    assert result.total.item() == -5 + 6 * 5
    generator = nn.Linear(1, 2)
    fake = generator(torch.ones(3, 1))
    other = GeneratorStep(generator, made.critic, torch.ones(3, 2), fake, update=4)
    assert list(objective(plugins, other, nullcontext()).terms) == ["generator_loss"]
    assert apart.asked == [("b", 6, "penalty"), ("b", 4, "generator_penalty")]
    assert plugins.scale(wrap(both, "b"), 1) == 6  # the critic's, unless asked otherwise


def test_a_penaltys_forward_pass_serves_the_loss() -> None:
    made, forwards = step(), []
    made.critic.register_forward_hook(lambda *_: forwards.append(1))  # type: ignore[attr-defined]
    plugins = Plugins([load("wasserstein"), load("r1")])
    assert list(objective(plugins, made, nullcontext()).terms) == ["penalty/r1", "critic_loss"]
    assert len(forwards) == 2  # D(real), D(fake)


def test_only_the_loss_is_autocast() -> None:
    seen: dict[str, bool] = {}

    def look(step: CriticStep) -> None:
        seen["penalty"] = torch.is_autocast_enabled("cpu")

    class Loss:
        @hookimpl
        def critic_loss(self, step: CriticStep) -> Tensor:
            seen["loss"] = torch.is_autocast_enabled("cpu")
            return step.scores(step.real).mean()

        @hookimpl
        def generator_loss(self) -> None: ...

    plugins = Plugins([wrap(Loss(), "loss"), wrap(Says(critic=look))])
    result = objective(plugins, step(), torch.autocast("cpu", torch.bfloat16))
    assert seen == {"penalty": False, "loss": True}
    assert result.total.dtype == torch.float32


GRAPH = torch.ones((), requires_grad=True)
WRONG = {
    "a float": (1.0, "float 1.0"),
    "a shape": (GRAPH.reshape(1), r"a tensor of shape \(1,\)"),
    "a dtype": (GRAPH.double(), "a torch.float64 on cpu"),
    "a device": (torch.ones((), device="meta", requires_grad=True), "a torch.float32 on meta"),
    "a constant": (torch.ones(()), "a constant, .*detached"),
    "detached": (GRAPH.detach(), "a constant"),
    "an array": ([GRAPH], "list"),
}


@pytest.mark.parametrize("hook", ["penalty", "critic_loss"])
@pytest.mark.parametrize("wrong", WRONG)
def test_an_answer_that_breaks_the_contract(hook: str, wrong: str) -> None:
    answer, said = WRONG[wrong]
    bad = named(
        Says(critic=lambda step: answer) if hook == "penalty" else Claims(answer=answer), "x"
    )
    loss = [load("wasserstein")] if hook == "penalty" else []
    expected = rf"x \(dist-x 3\.1\): {hook} answered {said}.*; expected a scalar torch\.float32"
    with pytest.raises(ContractError, match=expected):
        objective(Plugins([*loss, bad]), step(), nullcontext())


def test_a_loss_that_answers_nothing_breaks_the_contract() -> None:
    for answer in (None, torch.tensor(math.nan)):
        with pytest.raises(ContractError, match=r"x \(dist-x 3\.1\): critic_loss .*expected"):
            objective(Plugins([named(Claims(answer=answer), "x")]), step(), nullcontext())


def test_a_penalty_that_trains_nothing_breaks_the_contract() -> None:
    """Its graph leads to samples, which require grad too, but to no parameter of the critic."""
    says = Says(critic=lambda step: step.interpolates.square().mean())
    plugins = Plugins([load("wasserstein"), named(says, "x")])
    with pytest.raises(ContractError, match=r"x \(dist-x 3\.1\): penalty .*parameters"):
        objective(plugins, step(), nullcontext())


def found(**terms: float) -> Gradients:
    return Gradients(tuple(terms), torch.tensor(list(terms.values()), dtype=torch.float64), ())


def test_to_host_is_exact() -> None:
    values = to_host(found(a=1 / 3, b=0.1), 3)
    assert list(values.items()) == [("a", 1 / 3), ("b", 0.1)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_to_host_names_the_first_term_that_is_not_finite(value: float) -> None:
    terms = found(penalty=1.0, critic_loss=value, d_real=math.nan)
    with pytest.raises(NonFiniteError, match=rf"^critic_loss is {value} at update 3; .*Lower"):
        to_host(terms, 3)


def test_to_host_copies_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many terms there are, a device waits for the host once."""
    copies = []
    for name in ("tolist", "item", "cpu", "numpy", "__float__", "__bool__"):
        original = getattr(Tensor, name)

        def counted(self: Tensor, name: str = name, original: Any = original) -> Any:
            copies.append((name, self.numel()))
            return original(self)

        monkeypatch.setattr(Tensor, name, counted)
    to_host(found(**{f"t{n}": float(n) for n in range(20)}), 0)
    assert [numel for _, numel in copies] == [20]
