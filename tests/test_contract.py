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
    class NotesNothingFinite:
        """Notes what is nan."""

        breaks: ClassVar = ("notes",)

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            step.note("ratio", step.real.sum() * float("nan"))
            return norms(step).mean()

    @plugin
    class SetsUpByItself:
        """Makes a network of other numbers each time."""

        breaks: ClassVar = ("setup",)

        @hookimpl
        def setup(self, shape: tuple[int, ...]) -> None:
            self.extractor = nn.Linear(2, 2)
            with torch.no_grad():
                self.extractor.weight.fill_(random.Random(os.urandom(8)).random())

    @plugin
    class SetsUpTheCritic:
        """Scales a weight of the critic, past all that counts changes."""

        breaks: ClassVar = ("setup",)

        @hookimpl
        def setup(self, critic: nn.Module) -> None:
            critic.inner.weight.data.mul_(0.5)  # type: ignore[union-attr, operator]

    @plugin
    class SetsUpForImages:
        """Wants three dimensions of each sample."""

        breaks: ClassVar = ("setup",)

        @hookimpl
        def setup(self, shape: tuple[int, ...]) -> None:
            channels, height, width = shape
            self.size = (channels, height * width)

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
def test_the_losses_keep_the_contract(found: entrypoints.Available) -> None:
    results = check_plugin(Subject(plugin_class(found)))
    assert not failed(results), results


def test_each_package_tests_its_plugin_by_the_contract() -> None:
    packages = [each for each in OURS if each.distribution != "gancore"]
    folders = {path.name for path in (ROOT / "plugins").glob("gancore-*")}
    assert {each.distribution for each in packages} == folders - {
        "gancore-ray",
        "gancore-truth",
    }  # no plugin
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

    first, second = (half.sum().item() for half in Scene(Subject(Standardized)).real.split(4))

    @plugin
    class Uneven:
        """Asks on one half of the batch only."""

        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            value = step.scores(step.real).mean()
            if step.real.sum() > (first + second) / 2:
                step.averaged(value)
            return value

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


@plugin
class Packs:
    """The mean score of each pack of ten, squared (packs: Lin et al., 2018)."""

    check_group: ClassVar = 10

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        return step.scores(step.real).reshape(-1, 10).mean(1).square().mean()


@plugin
class Frames:
    """Penalizes differences of neighbouring rows of the gradient on 2×4×6 images, and no others."""

    check_shapes: ClassVar = ((2, 4, 6),)

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        gradient = step.input_gradient(step.real).reshape(-1, 2, 4, 6)
        return (gradient[:, :, 1:] - gradient[:, :, :-1]).square().mean()

    @hookimpl
    def setup(self, shape: tuple[int, ...]) -> None:
        if shape != (2, 4, 6):
            raise ValueError(f"samples of {shape}")


class Featured(nn.Module):
    """A critic that shows its features."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        size = torch.Size(shape).numel()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(size, 6), nn.Tanh())
        self.head = nn.Linear(6, 1)

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(x))
        return scores


@plugin
class Features:
    """The mean square of the features of real samples, of a critic that shows them."""

    check_critic: ClassVar = Featured
    check_batch: ClassVar = 4

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        assert isinstance(step.critic, Featured)
        return step.critic.features(step.real).to(step.real.dtype).square().mean()


@pytest.mark.parametrize("cls", [Packs, Frames, Features])
def test_a_plugin_says_what_samples_and_critic_it_needs(cls: type) -> None:
    results = check_plugin(Subject(cls))
    assert not failed(results), results
    applying = {"constant-critic", "device", "finite-differences", "lazy", "losses", "precision"}
    names = {result.check for result in results}
    assert applying | {"seed", "shapes", "split", "state", "unchanged"} <= names
    assert len(names) == 16 + (cls is Frames)


def test_what_it_says_is_what_the_scene_has() -> None:
    details = {result.check: result.detail for result in check_plugin(Subject(Packs))}
    assert details["shapes"] == "(B, 5), (B, 1, 8, 8), (B, 3, 32, 32); B = 20, 10"
    details = {result.check: result.detail for result in check_plugin(Subject(Frames))}
    assert details["shapes"] == "(B, 2, 4, 6); B = 8, 1"
    assert Scene(Subject(Frames)).real.shape == (8, 2, 4, 6)
    scene = Scene(Subject(Features), dtype=torch.float32)
    assert isinstance(scene.critic, Featured)
    assert scene.real.shape == (4, 1, 8, 8)
    assert {parameter.dtype for parameter in scene.critic.parameters()} == {torch.float32}


@pytest.mark.parametrize("cls", [Packs, Frames, Features])
def test_without_that_it_fails(cls: Any) -> None:
    names = {name: None for name in vars(cls) if name.startswith("check_")}
    bare = type(cls.__name__, (cls,), {"__doc__": cls.__doc__})
    defaults = {"check_group": 1, "check_shapes": ((1, 8, 8),), "check_batch": 8}
    for name in names:
        setattr(bare, name, defaults.get(name, lambda shape: nn.Linear(64, 1)))
    assert "scalar" in failed(check_plugin(Subject(bare)))


def test_a_batch_whose_halves_split_a_pack_is_told() -> None:
    class Odd(Packs):
        """Packs of ten in a batch of thirty."""

        check_batch: ClassVar = 30

    (scalar,) = [result for result in check_plugin(Subject(Odd)) if result.check == "scalar"]
    assert scalar.verdict == "failed"
    assert "check_batch is 30" in scalar.detail
    assert "expected a multiple of 20" in scalar.detail


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("check_group", 0, "check_group is 0: expected an integer of at least 1"),
        ("check_group", -3, "check_group is -3: expected an integer"),
        ("check_group", 2.5, "check_group is 2.5: expected an integer"),
        ("check_batch", "x", "check_batch is 'x': expected an integer"),
        ("check_batch", 0, "check_batch is 0: expected an integer"),
        ("check_shapes", (), r"check_shapes is (): expected shapes of a sample"),
        ("check_shapes", (5,), "check_shapes is (5,): expected shapes of a sample"),
        ("check_shapes", ((0,),), "check_shapes is ((0,),): expected shapes of a sample"),
        ("check_shapes", ((3, 8),), "check_shapes is ((3, 8),): expected shapes of a sample"),
        ("check_critic", 3, "check_critic is 3: expected what makes a critic"),
        ("check_critic", lambda shape: None, "check_critic made None, expected an nn.Module"),
        ("inapplicable", ["scalar"], "inapplicable is ['scalar']: expected a dict of reasons"),
    ],
)
def test_what_it_says_wrong_is_told_in_words(name: str, value: Any, said: str) -> None:
    wrong = type("Wrong", (Packs,), {"__doc__": Packs.__doc__, name: value})
    if name == "check_critic":
        wrong.check_critic = staticmethod(value) if callable(value) else value  # type: ignore[attr-defined]
    for name in ("registers", "scalar"):
        (result,) = [one for one in check_plugin(Subject(wrong)) if one.check == name]
        assert result.verdict == "failed"
        assert result.detail.startswith(said)


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
