"""Plugins: the decorator, loading by name, and how their hooks are called."""

from __future__ import annotations

import importlib
import math
import re
import subprocess
import sys
from collections.abc import Callable, Generator
from dataclasses import field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from gancore import CriticStep, hookimpl, plugin
from gancore.entrypoints import Available
from gancore.errors import ContractError, PluginError
from gancore.losses import Wasserstein
from gancore.options import build
from gancore.plugins import Loaded, Plugins, load, plugin_class, wrap
from gancore_clip import WeightClipping
from gancore_gp import GradientPenalty

LOSS = load("wasserstein")


def step(update: int = 0) -> CriticStep:
    x = torch.ones(3, 2)
    return CriticStep(nn.Linear(2, 1), x, x, update=update)


def named(instance: object, name: str) -> Loaded:
    source = Available("plugin", name, f"dist-{name}", "3.1", EntryPoint(name, "m:C", "g"))
    return Loaded(name, instance, source)


@plugin
class Penalty:
    """Answers `value` and counts its calls."""

    value: float = 1.0
    calls: int = field(init=False, default=0)
    state: ClassVar[str] = "no option"

    @hookimpl
    def penalty(self) -> Tensor:
        self.calls += 1
        return torch.tensor(self.value)

    @property
    def half(self) -> float:
        return self.value / 2

    @staticmethod
    def double(value: float) -> float:
        return 2 * value


@plugin
class Scale:
    """Answers `answer` for the penalty `target`."""

    answer: Any = None
    target: str = "p"

    @hookimpl
    def penalty_scale(self, plugin: str) -> Any:
        return self.answer if plugin == self.target else None


def test_a_plugin_is_a_keyword_only_dataclass_with_identity() -> None:
    one, two = Penalty(value=2.0), Penalty(value=2.0)
    assert len({one, two}) == 2
    assert one != two
    assert (one.half, Penalty.double(2), Penalty().value) == (1.0, 4, 1.0)
    with pytest.raises(TypeError, match="positional"):
        Penalty(2.0)  # type: ignore[call-arg]


def test_a_default_without_an_annotation_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"Careless\.weight has a default.*`weight: float = 10.0`"):

        @plugin
        class Careless:
            weight = 10.0


def test_a_reserved_option_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"Greedy\.name: a recipe reserves this key"):

        @plugin
        class Greedy:
            name: str = "x"


def test_a_recipe_sets_options_only() -> None:
    assert build(Penalty, {"value": 3}, "p").value == 3.0
    for key in ("calls", "state"):
        with pytest.raises(PluginError, match=f"^p: {key}: unknown key"):
            build(Penalty, {key: 3}, "p")


def test_a_value_error_of_the_plugin_is_the_users_mistake() -> None:
    @plugin
    class Picky:
        def __post_init__(self) -> None:
            raise ValueError("3 is too many")

    with pytest.raises(PluginError, match=r"^r\.toml: picky: 3 is too many$"):
        build(Picky, {}, "r.toml: picky")


@pytest.mark.parametrize("value", ["math:sqrt", "math:pi", "fractions:Fraction", "enum:Enum"])
def test_an_entry_point_that_is_no_plugin(value: str) -> None:
    found = Available("plugin", "odd", "odd-dist", "1", EntryPoint("odd", value, "gancore.plugins"))
    with pytest.raises(PluginError, match=r"odd \(odd-dist 1\).*not a class decorated"):
        plugin_class(found)


def test_loaded_says_where_it_comes_from() -> None:
    gp = load("gp", {"weight": 3}, alias="outer")
    assert (gp.name, gp.method) == ("outer", "gp")
    assert gp.options == {"weight": 3.0, "target": 1.0, "one_sided": False}
    assert re.fullmatch(r"outer \(gancore-gp \d[\d.]*\)", str(gp))
    with pytest.raises(PluginError, match=r"^r\.toml: plugin\.0: wieght: unknown key.*'weight'"):
        load("gp", {"wieght": 3}, where="r.toml: plugin.0")


def test_only_named_plugins_are_imported() -> None:
    code = (
        "import sys; from gancore.plugins import load; load('lazy', {'every': 4});"
        "print(sorted(m for m in sys.modules if m.startswith('gancore_') or m == 'torch'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['gancore_lazy']"


HOOK_CALLS: dict[str, Callable[[Plugins], object]] = {
    "configure": lambda plugins: plugins,
    "critic_loss": lambda plugins: plugins.answer_loss("critic_loss", step(5)),
    "prepare_critic": lambda plugins: plugins.prepare_critic(nn.Linear(1, 1)),
    "penalty": lambda plugins: [*plugins.answer_penalties("penalty", step(5))],
    "penalty_scale": lambda plugins: plugins.scale(plugins.loaded[0], 5),
    "post_step": lambda plugins: plugins.call("post_step", critic=nn.Linear(1, 1), update=5),
    "log": lambda plugins: plugins.call("log", record={}),
}


def noisy(hook: str, act: Callable[[], None], **marks: Any) -> object:
    """Make a plugin that implements one hook by calling `act`."""

    def method(self: object) -> None:
        act()

    method.__name__ = hook
    cls: type[object] = type("Noisy", (), {hook: hookimpl(**marks)(method)})
    return plugin(cls)()


@pytest.mark.parametrize("hook", [hook for hook in HOOK_CALLS if hook != "critic_loss"])
def test_plugins_act_in_recipe_order(hook: str) -> None:
    acted: list[str] = []
    loaded = [
        named(noisy(hook, lambda name=name: acted.append(name), **marks), name)  # type: ignore[misc]
        for name, marks in [("z", {}), ("a", {"trylast": True}), ("m", {"tryfirst": True})]
    ]
    HOOK_CALLS[hook](Plugins([LOSS, *loaded]))
    assert acted == ["z", "a", "m"]


def fail() -> None:
    raise ZeroDivisionError("oh")


@pytest.mark.parametrize("hook", HOOK_CALLS)
def test_a_failure_names_plugin_hook_distribution_version_and_update(hook: str) -> None:
    bad = named(noisy(hook, fail), "bad")
    loss = wrap(noisy("generator_loss", fail)) if hook == "critic_loss" else LOSS
    with pytest.raises(ZeroDivisionError) as caught:
        HOOK_CALLS[hook](Plugins([loss, bad]))
    (note,) = getattr(caught.value, "__notes__", [""])
    assert f"hook {hook}" in note
    assert "bad (dist-bad 3.1)" in note
    updated = hook in ("penalty", "penalty_scale", "post_step", "critic_loss")
    assert ("update 5" in note) == updated


def test_two_of_one_name_are_both_named() -> None:
    with pytest.raises(PluginError, match=r"'p': p \(dist-p 3\.1\) and p \(.*test_plugins\).*as ="):
        Plugins([LOSS, named(Penalty(), "p"), wrap(Penalty(), "p")])


def test_an_alias_lets_one_class_be_used_twice() -> None:
    plugins = Plugins([LOSS, load("gp"), load("gp", {"weight": 2.0}, alias="outer")])
    assert [each.name for each in plugins.penalties("penalty")] == ["gp", "outer"]


def test_one_instance_given_twice_is_the_users_mistake() -> None:
    one = Penalty()
    with pytest.raises(PluginError, match=r"a \(.*b \("):
        Plugins([LOSS, wrap(one, "a"), wrap(one, "b")])


@pytest.mark.parametrize(
    ("hook", "said"),
    [("penalti", "Did you mean 'penalty'"), ("post_steps", "'post_step'"), ("qqq", "Known: conf")],
)
def test_a_misspelt_hook(hook: str, said: str) -> None:
    with pytest.raises(PluginError, match=rf"bad \(dist-bad 3\.1\): .*'{hook}'\..*{said}"):
        Plugins([LOSS, named(noisy(hook, fail), "bad")])
    assert Plugins([LOSS, named(noisy(hook, fail, optionalhook=True), "bad")])


def test_a_hook_with_a_wrong_parameter() -> None:
    @plugin
    class Wrong:
        @hookimpl
        def penalty(self, setp: CriticStep) -> None: ...

    with pytest.raises(PluginError, match=r"bad \(dist-bad 3\.1\): .*penalty.*'setp'"):
        Plugins([LOSS, named(Wrong(), "bad")])


def test_exactly_one_loss() -> None:
    with pytest.raises(PluginError, match="critic_loss is answered by nobody"):
        Plugins([wrap(Penalty())])
    with pytest.raises(PluginError, match=r"by wasserstein \(gancore .*and hinge \(gancore"):
        Plugins([LOSS, load("hinge")])
    with pytest.raises(PluginError, match="generator_loss is answered by nobody"):
        Plugins([wrap(noisy("critic_loss", fail))])
    assert Plugins([load("clip"), LOSS]).loss is LOSS


@pytest.mark.parametrize("names", [("clip", "sn"), ("sn", "clip")])
def test_conflicts_are_found_in_either_order_and_under_any_alias(names: tuple[str, str]) -> None:
    with pytest.raises(PluginError, match=r"clip.* can't be combined with .*sn"):
        Plugins([LOSS, *(load(name, alias=f"my_{name}") for name in names)])


@plugin
class Doubler:
    """A third party's wrapper around every penalty."""

    seen: list[int] = field(init=False, default_factory=list)

    @hookimpl(wrapper=True)
    def penalty(self) -> Generator[None, list[Tensor], list[Tensor]]:
        answers = yield
        self.seen.append(len(answers))
        return [2 * answer for answer in answers]

    @hookimpl(wrapper=True)
    def critic_loss(self) -> Generator[None, Tensor, Tensor]:
        return 1 + (yield)


def test_wrappers_still_wrap() -> None:
    doubler = Doubler()
    plugins = Plugins(
        [LOSS, wrap(Penalty(value=2.0), "a"), wrap(doubler), wrap(Penalty(value=3.0), "b")]
    )
    answers = plugins.answer_penalties("penalty", step())
    assert [(each.name, float(value)) for each, _, value in answers] == [("a", 4.0), ("b", 6.0)]
    assert doubler.seen == [1, 1]
    assert [each.name for each in plugins.penalties("penalty")] == ["a", "b"]
    assert plugins.loss is LOSS
    loss = plugins.answer_loss("critic_loss", step()).detach()
    assert float(loss) == 1.0  # real is fake, so 0, and the wrapper adds 1


def test_wrappers_nest_in_recipe_order() -> None:
    @plugin
    class AddOne:
        @hookimpl(wrapper=True)
        def penalty(self) -> Generator[None, list[Tensor], list[Tensor]]:
            return [1 + answer for answer in (yield)]

    def value(*wrappers: object) -> float:
        plugins = Plugins([LOSS, *map(wrap, wrappers), wrap(Penalty(value=2.0), "p")])
        ((_, _, answer),) = plugins.answer_penalties("penalty", step())
        return float(answer)

    assert value(Doubler(), AddOne()) == 6  # the first is the outermost
    assert value(AddOne(), Doubler()) == 5


@pytest.mark.parametrize(
    ("answers", "product"), [([], 1), ([2.0, None, 3], 6), ([2.0, 0.0], 0), ([0.5], 0.5)]
)
def test_scales_multiply_and_zero_is_not_called(answers: list[Any], product: float) -> None:
    scales = [wrap(Scale(answer=answer), f"s{n}") for n, answer in enumerate(answers)]
    target, other = Penalty(value=7.0), Penalty()
    plugins = Plugins([LOSS, wrap(target, "p"), wrap(other, "q"), *scales])
    got = [
        (each.name, scale, float(value))
        for each, scale, value in plugins.answer_penalties("penalty", step())
    ]
    assert got == ([("p", product, 7.0)] if product else []) + [("q", 1.0, 1.0)]
    assert (target.calls, other.calls) == (int(product != 0), 1)


@pytest.mark.parametrize("answer", [math.nan, math.inf, -math.inf, "2", [1.0], torch.tensor(2.0)])
def test_a_scale_that_is_no_finite_number(answer: Any) -> None:
    plugins = Plugins([LOSS, wrap(Penalty(), "p"), named(Scale(answer=answer), "odd")])
    with pytest.raises(ContractError, match=r"odd \(dist-odd 3\.1\): penalty_scale .*update 5"):
        plugins.scale(plugins.loaded[1], 5)


def test_configure_sees_all_and_may_refuse() -> None:
    seen: list[tuple[str, object]] = []

    @plugin
    class Fussy:
        @hookimpl
        def configure(self, plugins: dict[str, object]) -> None:
            seen.extend(plugins.items())
            raise ValueError("not with these")

    fussy, penalty = named(Fussy(), "fussy"), wrap(Penalty(), "p")
    with pytest.raises(PluginError, match=r"fussy \(dist-fussy 3\.1\): not with these"):
        Plugins([LOSS, fussy, penalty])
    order = [("wasserstein", LOSS), ("fussy", fussy), ("p", penalty)]
    assert seen == [(name, each.instance) for name, each in order]


def test_prepare_critic_may_refuse() -> None:
    @plugin
    class Fussy:
        @hookimpl
        def prepare_critic(self, critic: nn.Module) -> None:
            raise ValueError(f"no {type(critic).__name__}")

    plugins = Plugins([LOSS, named(Fussy(), "fussy")])
    with pytest.raises(PluginError, match=r"fussy \(dist-fussy 3\.1\): no Linear"):
        plugins.prepare_critic(nn.Linear(1, 1))


@plugin
class Stateful:
    """Has an average to keep."""

    average: Tensor = field(init=False, default_factory=lambda: torch.zeros(2))
    count: int = field(init=False, default=0)

    @hookimpl
    def start(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average, self.count = state["average"], state["count"]


def test_state_round_trip() -> None:
    def fresh() -> tuple[Plugins, Stateful, Stateful]:
        one, two = Stateful(), Stateful()
        return Plugins([LOSS, wrap(one, "a"), wrap(Penalty()), wrap(two, "b")]), one, two

    plugins, one, two = fresh()
    one.average, one.count, two.count = torch.tensor([1.5, 2.5]), 3, 4
    state = plugins.state_dict()
    assert state.keys() == {"a", "b"}

    others, three, four = fresh()
    others.load_state_dict({**state, "unheard_of": {}})
    assert (three.count, four.count) == (3, 4)
    assert three.average.tolist() == [1.5, 2.5]
    others.load_state_dict({})
    assert three.count == 3


def test_wrap_names_an_instance_by_its_entry_point() -> None:
    names = [wrap(GradientPenalty()), wrap(WeightClipping()), wrap(Wasserstein())]
    assert [each.name for each in names] == ["gp", "clip", "wasserstein"]
    assert str(names[0]) == str(load("gp"))
    outer = wrap(GradientPenalty(), "outer")
    assert (outer.name, outer.method) == ("outer", "gp")
    assert wrap(outer) is outer
    unknown = wrap(Stateful())
    assert (unknown.name, unknown.method, unknown.source) == ("stateful", "stateful", None)


def test_wrap_knows_a_class_that_its_package_re_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "fake_reexport"
    info = tmp_path / "some_dist-1.2.dist-info"
    for folder in (package, info):
        folder.mkdir()
    (package / "inner.py").write_text("from gancore import plugin\n@plugin\nclass Foo: ...\n")
    (package / "__init__.py").write_text("from fake_reexport.inner import Foo\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-dist\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[gancore.plugins]\nbar = fake_reexport:Foo\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("fake_reexport", "fake_reexport.inner"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    assert str(wrap(load("bar").instance)) == "bar (some-dist 1.2)"
