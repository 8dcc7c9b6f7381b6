"""The contract kit: for every check a plugin that breaks it, and only what that implies."""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterator, Mapping
from dataclasses import field
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from helpers import ROOT
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gancore import CriticStep, GeneratorStep, entrypoints, hookimpl, plugin
from gancore.errors import ContractError
from gancore.plugins import plugin_class
from gancore.testing import CHECKS, OneDevice, Result, Scene, Subject, check_plugin


def norms(step: CriticStep) -> Tensor:
    return torch.linalg.vector_norm(step.input_gradient(step.real).flatten(1), dim=1)


def failed(results: list[Result]) -> set[str]:
    return {result.check for result in results if result.verdict == "failed"}


class Broken:
    """One class for each check; its `implied` are the checks that can't pass either."""

    @plugin
    class NoDefault:
        """weight: how strong."""

        weight: float
        breaks: ClassVar = ("options",)
        given: ClassVar = {"weight": 1.0}

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return norms(step).square().mean()

    @plugin
    class Undocumented:
        """Says nothing of its option."""

        weight: float = 1.0
        breaks: ClassVar = ("options",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return norms(step).square().mean()

    @plugin
    class NoHook:
        """Does nothing."""

        breaks: ClassVar = ("registers", "state")

    @plugin
    class MisspeltHook:
        """Means well."""

        breaks: ClassVar = ("registers", "state")

        @hookimpl
        def penalti(self, step: CriticStep) -> Tensor:
            return norms(step).square().mean()

    @plugin
    class WrongDtype:
        """Always answers float64."""

        breaks: ClassVar = ("scalar", "precision")

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return norms(step).double().mean()

    @plugin
    class Dead:
        """Has a graph that carries nothing."""

        breaks: ClassVar = ("gradient", "finite-differences")

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return norms(step).detach().mean() + 0 * step.scores(step.real).mean()

    @plugin
    class HalfDetached:
        """Its gradient is half of what it should be."""

        breaks: ClassVar = ("finite-differences",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return (norms(step).detach() * norms(step)).mean()

    @plugin
    class LeavesEval:
        """Switches the critic to eval mode, and leaves it there."""

        breaks: ClassVar = ("unchanged",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            assert isinstance(step.critic, nn.Module)
            step.critic.eval()
            return norms(step).square().mean()

    @plugin
    class LeavesGradients:
        """Calls backward."""

        breaks: ClassVar = ("unchanged",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            value = norms(step).square().mean()
            value.backward(retain_graph=True)
            return value

    @plugin
    class Unseeded:
        """Draws from a source of its own."""

        breaks: ClassVar = ("seed", "finite-differences", "state")

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return norms(step).mean() + random.Random(os.urandom(8)).random()

    @plugin
    class ImagesOnly:
        """Sums over dimensions by number, as the seeds' R1 does."""

        breaks: ClassVar = ("shapes",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return step.input_gradient(step.real).square().sum([1, 2, 3]).mean()

    @plugin
    class NotOneSample:
        """The spread over a batch of one is nan, and that over half a batch another."""

        breaks: ClassVar = ("shapes", "split")

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return norms(step).std()

    @plugin
    class SquareOfAMean:
        """Each process has a mean of its own, and the mean of their squares is another thing."""

        breaks: ClassVar = ("split",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return step.scores(step.real).mean().square()

    @plugin
    class RootOfSquares:
        """Infinite derivative at a zero gradient."""

        breaks: ClassVar = ("constant-critic",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            squares = step.input_gradient(step.real).flatten(1).square().sum(1)
            return (squares.sqrt() - 1).square().mean()

    @plugin
    class HalfPrecision:
        """Answers bf16 under autocast."""

        breaks: ClassVar = ("precision",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            weight = next(iter(step.critic.parameters()))  # type: ignore[attr-defined]
            return (step.real.flatten(1) @ weight.T).square().mean()

    @plugin
    class OnTheCPU:
        """Draws α on the CPU, wherever the samples are."""

        breaks: ClassVar = ("device",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            alpha = torch.rand(len(step.real), dtype=step.real.dtype, device="cpu")
            return (alpha * norms(step)).mean()

    @plugin
    class DividesItself:
        """Takes a quarter of itself beside a plugin that scales, which multiplies already."""

        factor: float = field(init=False, default=1.0)
        breaks: ClassVar = ("lazy",)

        @hookimpl
        def configure(self, plugins: Mapping[str, object]) -> None:
            if any(hasattr(other, "penalty_scale") for other in plugins.values()):
                self.factor = 0.25

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return self.factor * norms(step).mean()

    @plugin
    class WassersteinOnly:
        """Refuses other losses."""

        breaks: ClassVar = ("losses",)

        @hookimpl
        def configure(self, plugins: Mapping[str, object]) -> None:
            if "wasserstein" not in plugins:
                raise ValueError("only with wasserstein")

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return norms(step).mean()

    @plugin
    class Forgetful:
        """Remembers a count that no checkpoint knows."""

        count: int = field(init=False, default=0)
        breaks: ClassVar = ("state",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            self.count += 1
            return norms(step).mean() / self.count

    @plugin
    class HalfForgetful:
        """Saves one of the two things that it remembers."""

        count: int = field(init=False, default=0)
        mean: float = field(init=False, default=1.0)
        breaks: ClassVar = ("state",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            self.count += 1
            self.mean *= 0.9
            return self.mean * norms(step).mean() / self.count

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

    @plugin
    class Nested:
        """Its state is no flat table."""

        breaks: ClassVar = ("state",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return norms(step).mean()

        def state_dict(self) -> dict[str, Any]:
            return {"deep": {"er": 1}}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    @plugin
    class IteratesAtEachCall:
        """torch's spectral norm: another critic at each call."""

        breaks: ClassVar = ("prepared-critic",)

        @hookimpl
        def prepare_critic(self, critic: nn.Module) -> None:
            spectral_norm(critic.inner)  # type: ignore[arg-type]

    @plugin
    class Replaces:
        """Gives the critic parameters that no optimizer knows."""

        breaks: ClassVar = ("post-step",)

        @hookimpl
        def post_step(self, critic: nn.Module) -> None:
            critic.inner.weight = nn.Parameter(critic.inner.weight.clone())  # type: ignore[union-attr]

    @plugin
    class Rewards:
        """Turns penalties round."""

        breaks: ClassVar = ("scale",)

        @hookimpl
        def penalty_scale(self, update: int) -> float:
            return -1.0 if update == 20 else 1.0

    @plugin
    class EatsRecords:
        """Takes a key away from those who come after it."""

        breaks: ClassVar = ("records",)

        @hookimpl
        def log(self, record: dict[str, Any]) -> None:
            record.pop("step")

    @plugin
    class Paints:
        """Draws on the samples."""

        breaks: ClassVar = ("records",)

        @hookimpl
        def sample(self, samples: Tensor) -> None:
            samples.zero_()

    @plugin
    class GeneratorDead:
        """A generator penalty that does not reach the generator."""

        breaks: ClassVar = ("gradient", "finite-differences")

        @hookimpl
        def generator_penalty(self, step: GeneratorStep) -> Tensor:
            return step.fake.detach().square().mean() + 0 * step.fake.mean()

    @plugin
    class LossOfConstants:
        """A loss from which nothing can be learned."""

        breaks: ClassVar = (
            *("gradient", "finite-differences", "split", "constant-critic", "precision"),
        )

        @hookimpl
        def critic_loss(self, step: CriticStep) -> Tensor:
            return step.scores(step.real).mean().detach()

        @hookimpl
        def generator_loss(self, step: GeneratorStep) -> Tensor:
            return -step.scores(step.fake).mean()


BROKEN = {name: cls for name, cls in vars(Broken).items() if isinstance(cls, type)}


@pytest.fixture(scope="module", autouse=True)
def found_once() -> Iterator[None]:
    """Look for what is installed once: the checks ask dozens of times, and nothing changes."""
    found = cache(lambda kind, find=entrypoints.find: tuple(find(kind)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entrypoints, "find", lambda kind: iter(found(kind)))
        yield


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_fails_its_check_and_only_what_that_implies(name: str) -> None:
    cls: Any = BROKEN[name]
    results = check_plugin(Subject(cls, dict(getattr(cls, "given", {}))))
    assert failed(results) == set(cls.breaks), results
    found = next(result.detail for result in results if result.check == cls.breaks[0])
    assert len(found) > 20


def test_every_check_has_a_broken_plugin() -> None:
    assert {cls.breaks[0] for cls in BROKEN.values()} == {check.name for check in CHECKS}  # type: ignore[attr-defined]


OURS = [found for found in entrypoints.find("plugin") if found.distribution.startswith("gancore")]


@pytest.mark.parametrize(
    "found", [each for each in OURS if each.distribution == "gancore"], ids=str
)
def test_the_losses_keep_the_contract(found: entrypoints.Found) -> None:
    results = check_plugin(Subject(plugin_class(found)))
    assert not failed(results), results


def test_each_package_tests_its_plugin_by_the_contract() -> None:
    packages = [each for each in OURS if each.distribution != "gancore"]
    assert {each.distribution for each in packages} == {
        path.name for path in (ROOT / "plugins").glob("gancore-*")
    }
    for each in packages:
        (test,) = (ROOT / "plugins" / each.distribution / "tests").glob("test_*_contract.py")
        source = test.read_text(encoding="utf-8")
        assert f"(PluginContract):\n    plugin = {plugin_class(each).__name__}\n" in source


def test_statistics_that_are_averaged_may_depend_on_each_other() -> None:
    @plugin
    class Standardized:
        """Scores in units of their standard deviation, both of the whole batch."""

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            scores = step.scores(step.real)
            center = step.averaged(scores.mean())
            spread = step.averaged((scores - center).square().mean()).sqrt()
            return ((scores - center) / spread).pow(4).mean()

    (found,) = [each for each in check_plugin(Subject(Standardized)) if each.check == "split"]
    assert found.verdict == "passed", found

    @plugin
    class Uneven:
        """Asks on one half of the batch only."""

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            value = step.scores(step.real).mean()
            if step.real.sum() > 0:
                step.averaged(value)
            return value

    sums = [half.sum().item() > 0 for half in Scene(Subject(Uneven)).real.split(4)]
    assert sums[0] != sums[1]
    (found,) = [each for each in check_plugin(Subject(Uneven)) if each.check == "split"]
    assert found.verdict == "failed"
    assert "statistics averaged on the halves" in found.detail


def test_an_author_may_declare_a_check_inapplicable_with_a_reason() -> None:
    class Excused(Broken.ImagesOnly):
        """For images."""

        inapplicable: ClassVar = {"shapes": "it flips images"}

    results = {result.check: result for result in check_plugin(Subject(Excused))}
    assert results["shapes"] == Result("shapes", "inapplicable", "it flips images")
    assert not failed(list(results.values()))


def test_checks_follow_from_the_hooks() -> None:
    names = [result.check for result in check_plugin(Subject(BROKEN["EatsRecords"]))]
    assert names == ["options", "registers", "state", "records"]


def test_a_penalty_may_start_late() -> None:
    @plugin
    class LateStarter:
        """Waits for three updates."""

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor | None:
            return norms(step).mean() if step.update > 2 else None

    assert not failed(check_plugin(Subject(LateStarter)))


@pytest.mark.parametrize(
    ("check", "hook", "act", "said"),
    [
        ("unchanged", "penalty", "critic.requires_grad_(False)", "requires_grad of critic.inner"),
        ("unchanged", "penalty", "step.real.data.mul_(2)", "penalty changed step.real"),
        ("unchanged", "penalty", "critic.inner.weight.data.mul_(2)", "changed inner.weight of the"),
        ("unchanged", "penalty", "torch.set_grad_enabled(False)", "gradient mode at False"),
        ("unchanged", "penalty", "step.fake = step.real", "step.fake for another"),
        ("unchanged", "generator_penalty", "step.latents.data.zero_()", "changed step.latents"),
        ("post-step", "post_step", "critic.float()", "the dtype of critic.inner.weight"),
        ("post-step", "post_step", "critic.requires_grad_(False)", "requires_grad of critic.inner"),
        ("post-step", "post_step", "critic.eval()", "train or eval mode of the critic"),
        ("records", "sample", "samples.numpy().fill(0)", "it changed the samples"),
        ("records", "log", "record.clear()", "record in place"),
    ],
)
def test_what_a_run_refuses_the_contract_finds_and_more(
    check: str, hook: str, act: str, said: str
) -> None:
    argument = {"post_step": "critic", "sample": "samples", "log": "record"}.get(hook, "step")
    source = (
        f"def {hook}(self, {argument}):\n"
        f"    critic = getattr({argument}, 'critic', {argument})\n"
        f"    value = step.scores(step.fake).square().mean() if '{argument}' == 'step' else None\n"
        f"    {act}\n    return value\n"
    )
    space: dict[str, Any] = {"torch": torch}
    exec(source, space)
    cls = plugin(type("Bad", (), {hook: hookimpl(space[hook])}))
    (one,) = [each for each in CHECKS if each.name == check]
    found = one.run(Subject(cls))
    assert found.verdict == "failed"
    assert said in found.detail
    assert torch.is_grad_enabled()


def test_wrapping_the_hooks_of_others_is_no_hook_of_ones_own() -> None:
    @plugin
    class Doubles:
        """Doubles every penalty."""

        @hookimpl(wrapper=True)
        def penalty(self) -> Generator[None, list[Tensor], list[Tensor]]:
            return [2 * each for each in (yield)]

        @hookimpl
        def log(self) -> None: ...

    results = check_plugin(Subject(Doubles))
    assert [result.check for result in results] == ["options", "registers", "state", "records"]
    assert not failed(results)


def test_an_exception_is_what_was_found() -> None:
    @plugin
    class Raises:
        """Always."""

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            raise ZeroDivisionError("oh")

    results = {result.check: result.detail for result in check_plugin(Subject(Raises))}
    assert results["scalar"].startswith("raised ZeroDivisionError: oh (raised in hook penalty")


@pytest.mark.parametrize(
    "mixed",
    [
        lambda cpu, meta: cpu + meta,
        lambda cpu, meta: meta @ cpu,
        lambda cpu, meta: meta[torch.tensor([0, 1])],
        lambda cpu, meta: torch.nn.functional.conv1d(meta[None], cpu[None]),
    ],
)
def test_one_device_refuses_what_meta_lets_pass(mixed: Any) -> None:
    cpu, meta = torch.ones(2, 2), torch.ones(2, 2, device="meta")
    with OneDevice(), pytest.raises(ContractError, match=r"cpu and meta.*device=x\.device"):
        mixed(cpu, meta)
    with OneDevice():
        assert (meta * torch.tensor(2.0)).to("meta").shape == (2, 2)
        assert (cpu @ cpu).shape == (2, 2)
