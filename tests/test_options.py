"""Options: strictness, defaults, and what authors' annotations mean."""

import math
import sys
import tomllib
from collections.abc import Mapping
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
import tomli_w
from annotated_types import Ge, Gt, Interval, Le
from hypothesis import given, settings
from hypothesis import strategies as st

from gancore.errors import PluginError
from gancore.options import complete, parameters, type_name, validate

Rate = Annotated[float, Gt(0), Le(1)]


def target(
    shape: tuple[int, ...] = (1,),
    *,
    weight: float = 10.0,
    every: int = 16,
    flag: bool = False,
    betas: tuple[float, float] = (0.0, 0.9),
    targets: tuple[str, ...] = (),
    mode: Literal["sum", "mean"] = "mean",
    rate: Rate = 0.5,
    note: str | None = None,
) -> None:
    """What the tests validate options for."""


DEFAULTS = {
    "weight": 10.0,
    "every": 16,
    "flag": False,
    "betas": [0.0, 0.9],
    "targets": [],
    "mode": "mean",
    "rate": 0.5,
}


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"wieght": 1.0}, "r.toml: wieght: unknown key. Did you mean 'weight'?"),
        ({"shape": [1]}, "r.toml: shape: unknown key."),
        ({"weight": "3"}, "r.toml: weight: expected a valid number, got '3'"),
        ({"weight": True}, "r.toml: weight: expected a valid number, got True"),
        ({"weight": math.inf}, "r.toml: weight: expected a finite number, got inf"),
        ({"weight": -math.inf}, "r.toml: weight: expected a finite number"),
        ({"weight": math.nan}, "r.toml: weight: expected a finite number, got nan"),
        ({"weight": None}, "r.toml: weight: expected a valid number"),
        ({"weight": [1.0]}, "r.toml: weight: expected a valid number"),
        ({"every": True}, "r.toml: every: expected a valid integer, got True"),
        ({"every": "16"}, "r.toml: every: expected a valid integer, got '16'"),
        ({"every": 1.5}, "r.toml: every: expected a valid integer, got 1.5"),
        ({"flag": 1}, "r.toml: flag: expected a valid boolean, got 1"),
        ({"flag": "true"}, "r.toml: flag: expected a valid boolean, got 'true'"),
        ({"betas": [0.0]}, "r.toml: betas.1: missing"),
        ({"betas": [0.0, "0.9"]}, "r.toml: betas.1: expected a valid number, got '0.9'"),
        ({"betas": [0.0, math.nan]}, "r.toml: betas.1: expected a finite number"),
        ({"betas": [0, 0, 0]}, "r.toml: betas: "),
        ({"targets": "gp"}, "r.toml: targets: expected a valid array, got 'gp'"),
        ({"targets": [1]}, "r.toml: targets.0: expected a valid string, got 1"),
        ({"mode": "max"}, "r.toml: mode: expected 'sum' or 'mean', got 'max'"),
        ({"rate": 0}, "r.toml: rate: expected greater than 0, got 0"),
        ({"rate": 1.01}, "r.toml: rate: expected less than or equal to 1, got 1.01"),
        ({"note": 3}, "r.toml: note: expected a valid string, got 3"),
    ],
)
def test_refused(given_: dict[str, Any], said: str) -> None:
    with pytest.raises(PluginError) as caught:
        validate(target, given_, "r.toml")
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("weight", 3, 3.0),
        ("weight", 2.5, 2.5),
        ("every", 4, 4),
        ("flag", True, True),
        ("betas", [0, 0.9], (0.0, 0.9)),
        ("betas", (0.5, 1), (0.5, 1.0)),
        ("targets", ["gp", "r1"], ("gp", "r1")),
        ("mode", "sum", "sum"),
        ("rate", 1, 1.0),
        ("note", None, None),
        ("note", "x", "x"),
    ],
)
def test_accepted_as_the_declared_type(name: str, value: Any, meant: Any) -> None:
    options = {name: value}
    got = validate(target, options, "r.toml")
    assert got == {name: meant}
    assert type(got[name]) is type(meant)
    if isinstance(meant, tuple):
        assert [*map(type, got[name])] == [*map(type, meant)]
    assert options == {name: value}


def test_each_fault_has_its_line() -> None:
    with pytest.raises(PluginError) as caught:
        validate(target, {"wieght": 1, "every": "2", "flag": 3}, "a.toml: gp")
    lines = str(caught.value).splitlines()
    assert sorted(line.split(": ")[2] for line in lines) == ["every", "flag", "wieght"]
    assert all(line.startswith("a.toml: gp: ") for line in lines)


def test_a_required_option_is_missed() -> None:
    def needs(*, size: int, depth: int = 1) -> None: ...

    assert validate(needs, {"size": 3}, "x") == {"size": 3}
    with pytest.raises(PluginError, match=r"^x: size: missing; it has no default$"):
        validate(needs, {"depth": 3}, "x")


def test_only_keyword_only_parameters_are_options() -> None:
    assert list(parameters(target)) == [*DEFAULTS, "note"]
    assert parameters(target)["rate"].annotation == Rate


def test_an_unannotated_option_is_an_error() -> None:
    def careless(*, weight=1.0) -> None: ...  # type: ignore[no-untyped-def]

    with pytest.raises(PluginError, match=r"'weight' of .*careless has no type: annotate"):
        parameters(careless)


def test_an_annotation_that_means_nothing_is_an_error() -> None:
    def wrong(*, weight: "Flaot" = 1.0) -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(PluginError, match=r"wrong can't be read: .*Flaot"):
        parameters(wrong)


def test_a_plugin_may_extend_one_of_another_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inherited annotations mean what they mean where they stand."""
    sources = {
        "fake_base": "from typing import Annotated\nfrom annotated_types import Gt\n"
        "@plugin\nclass Base:\n    weight: Annotated[float, Gt(0)] = 10.0\n",
        "fake_sub": "import fake_base\n@plugin\nclass Sub(fake_base.Base):\n    more: int = 1\n",
    }
    head = "from __future__ import annotations\nfrom gancore import plugin\n"
    for name, source in sources.items():
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        exec(head + source, vars(sys.modules[name]))
    found = parameters(sys.modules["fake_sub"].Sub)
    assert {name: each.annotation for name, each in found.items()} == {
        "weight": Annotated[float, Gt(0)],
        "more": int,
    }


def test_complete_adds_defaults_and_leaves_none_out() -> None:
    assert complete(target, {}) == DEFAULTS
    given_ = {"weight": 3.0, "targets": ("gp",), "note": None}
    assert complete(target, given_) == {**DEFAULTS, "weight": 3.0, "targets": ["gp"]}
    assert complete(target, {"note": "x"}) == {**DEFAULTS, "note": "x"}


some_options = st.fixed_dictionaries(
    {},
    optional={
        "weight": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
        "every": st.integers(-(10**12), 10**12),
        "flag": st.booleans(),
        "betas": st.tuples(st.floats(0, 1), st.floats(0, 1)),
        "targets": st.lists(st.text()),
        "mode": st.sampled_from(["sum", "mean"]),
        "rate": st.floats(0, 1, exclude_min=True),
        "note": st.text(),
    },
)


@settings(deadline=None, max_examples=40)
@given(some_options)
def test_what_a_run_saves_reads_back_as_the_same_options(options: Mapping[str, Any]) -> None:
    meant = validate(target, options, "x")
    text = tomli_w.dumps(complete(target, meant))
    again = validate(target, tomllib.loads(text), "x")
    lists = {name: [*value] if isinstance(value, tuple) else value for name, value in meant.items()}
    back = {name: [*value] if isinstance(value, tuple) else value for name, value in again.items()}
    assert back == {**DEFAULTS, **lists}


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        (float, "float"),
        (Annotated[float, Gt(0)], "float > 0"),
        (Annotated[int, Ge(1), Le(10)], "int ≥ 1 ≤ 10"),
        (tuple[str, ...], "tuple[str, ...]"),
        (float | None, "float | None"),
        (Literal["a", "b"], "Literal['a', 'b']"),
        (Annotated[float, Interval(ge=0, lt=1)], "float ≥ 0 < 1"),
    ],
)
def test_type_name_reads_as_an_author_writes(annotation: Any, shown: str) -> None:
    assert type_name(annotation) == shown
