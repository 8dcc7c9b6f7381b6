"""Marks: what would never act as a hook is refused, by the decorator, a run and the contract."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Spy
from torch import Tensor, nn

from gancore import CriticStep, hookimpl, plugin
from gancore.checks.marks import fault, implementations, implemented
from gancore.errors import PluginError
from gancore.losses import Wasserstein
from gancore.plugins import Plugins, load, wrap
from gancore.testing import Scene, Subject, check_plugin
from gancore_lazy import Lazy


class Idle:
    """Each has a hook that would never act, or that would act on nothing."""

    class Yields:
        @hookimpl
        def post_step(self, critic: nn.Module) -> Generator[None, None, None]:
            yield

    class YieldsBehindADecorator:
        @hookimpl
        @contextlib.contextmanager
        def post_step(self, critic: nn.Module) -> Iterator[None]:
            yield

    class KeywordOnly:
        @hookimpl
        def post_step(self, critic: nn.Module, *, update: int = 0) -> None: ...

    class KeywordOnlyWithoutADefault:
        @hookimpl
        def penalty(self, *, step: CriticStep) -> Tensor: ...

    class AnyPositions:
        @hookimpl
        def penalty(self, *steps: CriticStep) -> None: ...

    class AnyKeywords:
        @hookimpl
        def log(self, **record: Any) -> None: ...

    class MisspeltDefault:
        @hookimpl
        def post_step(self, critic: nn.Module, updat: int = 0) -> None: ...

    class PositionalDefault:
        @hookimpl
        def post_step(self, critic: nn.Module, update: int = 0, /) -> None: ...

    class Async:
        @hookimpl
        async def log(self, record: Any) -> None: ...

    class AsyncYields:
        @hookimpl
        async def log(self, record: Any) -> Any:
            yield

    class Static:
        @hookimpl
        @staticmethod
        def penalty(step: CriticStep) -> None: ...

    class StaticTheOtherWayRound:
        @staticmethod
        @hookimpl
        def penalty(step: CriticStep) -> None: ...

    class OfTheClass:
        @classmethod
        @hookimpl
        def penalty(cls, step: CriticStep) -> None: ...

    class Property:
        @property
        @hookimpl
        def penalty(self) -> None: ...

    class Cached:
        @functools.cached_property
        @hookimpl
        def log(self) -> None: ...

    class Partial:
        @hookimpl
        def _log(self, record: Any) -> None: ...

        log = functools.partial(_log, None)
        del _log

    class PartialMethod:
        @hookimpl
        def _log(self, record: Any) -> None: ...

        log = functools.partialmethod(_log)
        del _log

    class Unmarked:
        def penalty(self, step: CriticStep) -> None: ...

    class UnmarkedInABase(Unmarked):
        @hookimpl
        def log(self) -> None: ...

    class OverriddenUnmarked(Spy):
        def log(self, record: dict[str, Any]) -> None: ...

    class NoSelf:
        @hookimpl
        def log(record: Any) -> None: ...

    class Twice:
        @hookimpl
        def penalty(self) -> None: ...

        @hookimpl(specname="penalty")
        def another(self) -> None: ...


REASONS = {
    "Yields": "post_step has a yield, so that a call runs none of it: .*wrapper=True",
    "YieldsBehindADecorator": "post_step has a yield",
    "KeywordOnly": "post_step has the parameter update, which never gets a value",
    "KeywordOnlyWithoutADefault": "penalty has the parameter step, which never gets a value",
    "AnyPositions": r"penalty has the parameter \*steps, .*: .* positional, here step or fewer$",
    "AnyKeywords": r"log has the parameter \*\*record, .* positional, here record or fewer$",
    "MisspeltDefault": "post_step has the parameter updat, .*, here critic, update or fewer$",
    "PositionalDefault": "post_step has the parameter update, which never gets a value",
    "Async": "log is async, and nobody would await it",
    "AsyncYields": "log is async, and nobody would await it",
    "Static": "penalty is a staticmethod: a hook is a plain function",
    "StaticTheOtherWayRound": "penalty is a staticmethod: a hook is a plain function",
    "OfTheClass": "penalty is a classmethod: a hook is a plain function",
    "Property": "penalty is a property: a hook is a plain function",
    "Cached": "log is a cached_property: a hook is a plain function",
    "Partial": "log is a partial: a hook is a plain function",
    "PartialMethod": "log is a partialmethod: a hook is a plain function",
    "Unmarked": "penalty is never called: mark it with @hookimpl",
    "UnmarkedInABase": "penalty is never called: mark it with @hookimpl",
    "OverriddenUnmarked": "log is never called: mark it with @hookimpl",
    "NoSelf": "log has no self, whose place its first parameter takes",
    "Twice": " implements penalty twice, by another and penalty: drop one",
}
CASES = {name: cls for name, cls in vars(Idle).items() if isinstance(cls, type)}


def test_each_has_its_reason() -> None:
    assert CASES.keys() == REASONS.keys()


@pytest.mark.parametrize("case", CASES)
def test_what_would_never_act_is_refused_everywhere(case: str) -> None:
    cls = CASES[case]
    said = rf"Idle\.{case}(\.| ){REASONS[case].strip()}"
    with pytest.raises(TypeError, match=f"^{said}"):
        plugin(type(case, (cls,), {"__qualname__": cls.__qualname__}))
    with pytest.raises(PluginError, match=rf"^plugin it \(.*\): {said}"):
        Plugins([load("wasserstein"), wrap(cls(), "it")])
    results = {result.check: result for result in check_plugin(Subject(cls))}
    assert results["registers"].verdict == "failed"
    assert "plugin subject" in results["registers"].detail


def test_an_object_without_a_hook_and_a_class_are_refused() -> None:
    @plugin
    class Nothing:
        """Nothing."""

    loss = load("wasserstein")
    for instance in (Nothing(), object(), nn.Linear(1, 1), lambda step: None):
        with pytest.raises(PluginError, match=r"^plugin it \(.*\) has no hook: mark its methods"):
            Plugins([loss, wrap(instance, "it")])
    with pytest.raises(PluginError, match=r"^plugin it .* is a class: give an instance"):
        Plugins([loss, wrap(Spy, "it")])


def test_a_hook_set_on_an_object_that_hides_a_marked_one() -> None:
    spy = Spy()
    spy.log = lambda record: None  # type: ignore[method-assign]
    with pytest.raises(PluginError, match=r"Spy\.log is never called: mark it"):
        Plugins([load("wasserstein"), wrap(spy, "it")])


# What acts, and stays


class Acting:
    """Has hooks in every form that acts."""

    seen: list[Any]

    def __init__(self) -> None:
        self.seen = []
        self.start = hookimpl(lambda folder, step: self.seen.append(("start", folder, step)))

    @hookimpl(wrapper=True)
    def penalty(self) -> Generator[None, Any, Any]:
        return (yield)

    @hookimpl(hookwrapper=True)
    def critic_loss(self) -> Generator[None, Any, None]:
        yield

    @hookimpl
    @torch.no_grad()
    def log(self, record: Any) -> None:
        self.seen.append(("log", record))

    @hookimpl
    def post_step(self, critic: nn.Module, /, update: int = 99) -> None:
        self.seen.append(("post_step", update))

    @hookimpl(specname="sample")
    def look(self, samples: Tensor) -> None:
        self.seen.append(("sample", samples))

    @hookimpl(optionalhook=True)
    def of_a_later_version(self, *anything: object) -> None: ...

    sample: int = 3
    """No method, and its name is free."""


def test_what_acts_is_called_with_its_arguments() -> None:
    acting = Acting()
    with pytest.raises(
        PluginError, match=r"of_a_later_version has the parameter \*anything.* positional$"
    ):
        Plugins([load("wasserstein"), wrap(acting)])
    del Acting.of_a_later_version
    plugins = Plugins([load("wasserstein"), wrap(acting)])
    samples = torch.ones(2)
    plugins.call("start", folder=Path("x"), step=4)
    plugins.call("log", record={"a": 1})
    plugins.call("post_step", critic=nn.Linear(1, 1), update=7)
    plugins.call("sample", samples=samples, step=1)
    assert acting.seen == [
        ("start", Path("x"), 4),
        ("log", {"a": 1}),
        ("post_step", 7),
        ("sample", samples),
    ]
    assert implemented(acting) == ["log", "post_step", "sample", "start"]
    assert implemented(Acting) == ["log", "post_step", "sample"]
    wrapping = {found.hook for found in implementations(acting) if found.wraps}
    assert wrapping == {"penalty", "critic_loss"}
    assert not fault(acting)


@plugin
class Named:
    """weight·E[D(x)²] by another name.

    weight: how strong it is.
    """

    weight: float = 0.5

    @hookimpl(specname="penalty")
    def drift(self, step: CriticStep) -> Tensor:
        return self.weight * step.scores(step.real).square().mean()


def test_lazy_and_the_contract_see_a_hook_by_another_name() -> None:
    every = Lazy(every=4, targets=("named",))
    plugins = Plugins([load("wasserstein"), wrap(Named()), wrap(every, "every")])
    assert plugins.due("penalty", 0) == {"named": 4.0}
    assert plugins.due("penalty", 3) == {}
    with pytest.raises(PluginError, match="'spy' is no penalty .*: named$"):
        Plugins([load("wasserstein"), wrap(Named()), wrap(Lazy(targets=("spy",)), "every")])
    results = check_plugin(Subject(Named))
    assert {result.verdict for result in results} == {"passed"}, results
    assert {"gradient", "finite-differences", "lazy"} <= {result.check for result in results}
    assert Scene(Subject(Named)).subject.answers == ["penalty"]


def test_lazy_takes_no_wrapper_for_a_penalty() -> None:
    class Around:
        @hookimpl(wrapper=True)
        def penalty(self) -> Generator[None, Any, Any]:
            return (yield)

    with pytest.raises(PluginError, match="'around' is no penalty of this recipe"):
        Plugins([wrap(Wasserstein()), wrap(Around()), wrap(Lazy(targets=("around",)), "lazy")])


# By the command line


SOURCE = '''
from gancore import hookimpl, plugin


@plugin
class Idle:
    """Idle."""

    @hookimpl(specname="start")
    def begin(self): ...

{body}
'''


@pytest.fixture
def idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def install(body: str) -> None:
        (tmp_path / "idle.py").write_text(SOURCE.format(body=body))
        info = tmp_path / "idle-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: idle\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text("[gancore.plugins]\nidle = idle:Idle\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("idle", None)


@pytest.mark.parametrize(
    ("body", "expected", "said"),
    [
        ("", 0, ""),
        ("    @hookimpl\n    def log(self, *, record): ...", 2, "has the parameter record"),
        ("    @hookimpl\n    def log(self, record): yield", 2, "log has a yield"),
        ("    def __post_init__(self): self.log = hookimpl(len)", 1, "has the parameter record"),
        ("    def __post_init__(self): self.log = print", 1, "log is never called"),
    ],
)
def test_plugins_check_fails_what_never_acts(
    body: str, expected: int, said: str, idle: Callable[[str], None], gan: Any
) -> None:
    if "len" in body:
        body = body.replace("hookimpl(len)", "hookimpl(lambda *, record: 0)")
    idle(body)
    code, out, err = gan("plugins", "check", "idle")
    assert code == expected, out + err
    assert re.search(said, " ".join((out + err).split()))
    if not body:
        assert "hooks      start" in gan("plugins", "--verbose")[1]
