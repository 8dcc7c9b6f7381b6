"""The exception tree, exit codes, and suggestions."""

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gancore import errors
from gancore.text import close_to, did_you_mean, snake_case


def drawn_tree() -> dict[str, str]:
    """Read {class: parent} off the drawing in the docstring of errors.py."""
    above: list[tuple[int, str]] = []
    parents = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("│", " ").replace("├──", "   ").replace("└──", "   ")
        name = words.split()[0] if words.split() else ""
        if not name.endswith("Error"):
            continue
        column = words.index(name)
        above = [(other, parent) for other, parent in above if other < column]
        parents[name] = above[-1][1] if above else "Exception"
        above.append((column, name))
    return parents


def test_the_drawing_is_the_tree() -> None:
    classes = [cls for cls in vars(errors).values() if inspect.isclass(cls)]
    tree = {
        cls.__name__: cls.__bases__[0].__name__
        for cls in classes
        if cls.__module__ == "gancore.errors"
    }
    assert len(tree) > 10
    assert drawn_tree() == tree


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *[(name, 2) for name in ("RecipeError", "PluginError", "MissingError", "DataError")],
        *[(name, 2) for name in ("InputError", "CheckpointError")],
        *[(name, 1) for name in ("RunError", "ContractError", "NonFiniteError", "ScoreError")],
        ("GancoreError", 1),
    ],
)
def test_exit_codes(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


def test_missing_error_knows_whether_a_name_is_close() -> None:
    error = errors.MissingError("no plugin 'gpp'", close=True)
    assert (str(error), error.close) == ("no plugin 'gpp'", True)


@pytest.mark.parametrize(
    ("wrong", "known", "said"),
    [
        ("penalti", {"penalty", "log"}, " Did you mean 'penalty'?"),
        ("stepp", ["steps", "step", "seed"], " Did you mean 'step' or 'steps'?"),
        ("xyz", ["b", "a"], " Known: a, b."),
        ("xyz", [], ""),
    ],
)
def test_did_you_mean(wrong: str, known: list[str], said: str) -> None:
    assert did_you_mean(wrong, known) == said


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=4), st.integers(0, 7))
def test_a_dropped_letter_is_found(letters: list[str], at: int) -> None:
    """Of different letters: difflib misses some words that repeat theirs, such as aab for abab."""
    name, at = "".join(letters), at % len(letters)
    assert close_to(name[:at] + name[at + 1 :], [name, "zzzzzzzz"]) == [name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Gp", "gp"),
        ("GP", "gp"),
        ("OneSided", "one_sided"),
        ("R1Penalty", "r1_penalty"),
        ("already_so", "already_so"),
    ],
)
def test_the_name_of_a_class_as_a_plugins(name: str, said: str) -> None:
    assert snake_case(name) == said


def test_at_most_two_suggestions() -> None:
    assert len(close_to("step", [f"step{n}" for n in range(9)])) == 2
