"""Recipes and boards from strangers: each is valid, or refused by one clear error.

500 files of each kind are made up, the same ones in every run; GANCORE_NIGHTLY=1 makes 10,000 of
each, other ones every night.
"""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import ROOT, Gan, started
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gancore.errors import InputError, RecipeError
from gancore.files.reading import CONTROLS
from gancore.leaderboard.board import Board
from gancore.recipe import Recipe

NIGHTLY = os.environ.get("GANCORE_NIGHTLY") == "1"
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
BOARDS = sorted((ROOT / "recipes" / "boards").glob("*.toml"))
LONGEST = 10_000
"""Characters of the longest message: twenty faults of a few hundred each."""

many = settings(
    max_examples=10_000 if NIGHTLY else 500,
    derandomize=not NIGHTLY,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

VALUES = [
    *("0", "-1", "1.5", "true", "''", "'x'", "[]", "{}", "1979-05-27", "07:32:00", "nan", "-inf"),
    *("1e308", "1e999", "-0.0", "9" * 25, "9" * 400, "9" * 5000, "0x" + "f" * 6000, "1e-320"),
    *('"\\u0000"', '"\\u001b[31m"', '"a\\nb"', '"\\u202e"', '"../../x"', '"/etc/passwd"', "'=.='"),
    *("'" + "x" * 3000 + "'", "[[[]]]", "[1, 'a', {}]", "{a = {b = {c = 1}}}", "[{name = 'gp'}]"),
    *("[" * n + "]" * n for n in (20, 40, 200, 5000)),
    *("{a=" * n + "1" + "}" * n for n in (20, 40, 200)),
    *("[{}]".format(", ".join(["1"] * n)) for n in (2, 3, 2000)),
    *("['plugin.0.weight=1', 'x']", "['a.b.c.d=1']", "['=']", "['train.steps=%s']" % ("9" * 400)),
    *("['%sa=1']" % ("a." * 500), "['plugin.%s.a=1']" % ("9" * 4500), "['a=%s']" % ("[" * 900)),
    *("λ", "\u202e", "\x00", "\x1b[2J", "'\x1b'", "\r", "\ufeff", "'🙂'", "'''\n'''", '"\\ud800"'),
]
"""What may stand behind an equals sign."""

LINES = [
    *("", "[", "]]", "[train", "[train]", "[[plugin]]", "[[train]]", "[plugin]", "[budget]", "= 1"),
    *("name = 'again'", "steps = 1", "recipe = 'nowhere.toml'", "['']", "'' = 1", "[[entry]]"),
    *("seed.x = 1", '"\\u001b" = 1', "'train.steps' = 1", "a" * 9000 + " = 1", "\x00", "\x1b[2J"),
    *(".".join("a" * n) + " = 1" for n in (2, 20, 40, 3000)),
    *("[{}]".format(".".join("a" * n)) for n in (2, 40)),
    "\n".join(f"key{n} = {n}" for n in range(300)),
    "\n".join(f"[[plugin]]\nname = 'p{n}'" for n in range(1100)),
    "#" * 300_000,
]
"""What may stand in a line of its own."""


def mutated(text: str, chance: random.Random) -> str:
    """Return a file with one to three faults."""
    for _ in range(chance.randint(1, 3)):
        lines = text.split("\n")
        at = chance.randrange(len(lines))
        key, _, _ = lines[at].partition("=")
        match chance.randrange(9):
            case 0:
                del lines[at]
            case 1:
                lines.insert(chance.randrange(len(lines)), lines[at])
            case 2 | 3 | 4:
                lines[at] = f"{key}= {chance.choice(VALUES)}"
            case 5:
                lines.insert(at, chance.choice(LINES))
            case 6:
                other = chance.choice(lines).partition("=")[0]
                lines[at] = lines[at].replace(key, other, 1)
            case 7:
                spot = chance.randrange(len(lines[at]) + 1)
                odd = chance.choice("\x00\x1b\r\t\x7f\x9b\u202e\u2028'\"[]{}=.,#\\-_λ🙂9")
                lines[at] = lines[at][:spot] + odd + lines[at][spot:]
            case _:
                lines = lines[:at]
        text = "\n".join(lines) or "\n"
    return text


scalars = st.one_of(
    st.none().map(lambda _: {}),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["none", "gp", "digits", "adam", "fid", "a=1", "train.steps=3", "../x"]),
    st.dates(),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2)
    ),
    max_leaves=4,
)


def paths(schema: dict[str, Any], definitions: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the key paths of a JSON schema: those of its tables, and those of their keys."""
    found: list[tuple[str, ...]] = []
    for key, each in schema.get("properties", {}).items():
        found.append((key,))
        inner = each.get("$ref", each.get("items", {}).get("$ref", ""))
        if inner:
            below = paths(definitions[inner.rpartition("/")[2]], definitions)
            found += [(key, *path) for path in below]
    return found


@cache
def known_paths(kind: type[Recipe] | type[Board]) -> list[tuple[str, ...]]:
    schema = kind.model_json_schema(by_alias=True)
    return paths(schema, schema["$defs"])


def changed(table: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return a table with another value at a path, in each item where there is a list on it."""
    key, *rest = path
    if not rest:
        return {**table, key: value}
    below = table.get(key, {})
    if isinstance(below, list) and all(isinstance(each, dict) for each in below):
        return {**table, key: [changed(each, tuple(rest), value) for each in below]}
    return {**table, key: changed(below if isinstance(below, dict) else {}, tuple(rest), value)}


@st.composite
def files(
    draw: st.DrawFn, sources: list[Path], kind: type[Recipe] | type[Board]
) -> tuple[str, bytes]:
    """Return which file was taken, and what was made of it."""
    source = draw(st.sampled_from(sources))
    text = source.read_text(encoding="utf-8")
    match draw(st.sampled_from("mmmttr")):
        case "m":
            chance = random.Random(draw(st.integers(0, 2**32)))
            return source.name, mutated(text, chance).encode(errors="surrogatepass")
        case "t":
            table = tomllib.loads(text)
            wrong = st.tuples(st.sampled_from(known_paths(kind)), values)
            for path, value in draw(st.lists(wrong, min_size=1, max_size=2)):
                table = changed(table, path, value)
            return source.name, tomli_w.dumps(table).encode(errors="surrogatepass")
        case _:
            return source.name, draw(st.binary(max_size=300) | st.text(max_size=300).map(encoded))


def encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the recipes, for boards to name."""
    copy = tmp_path_factory.mktemp("fuzz") / "recipes"
    shutil.copytree(ROOT / "recipes", copy, ignore=shutil.ignore_patterns("results"))
    return copy


def told(error: InputError) -> str:
    """Return what an error says, which is short and nothing that moves a cursor."""
    text = str(error)
    assert len(text) < LONGEST
    assert all(line.isprintable() for line in text.split("\n"))
    assert "Traceback" not in text
    return text


def refused(load: Callable[[Path], Any], path: Path) -> str | None:
    """Return what is said of a file, or None if it is valid; every line names the file."""
    try:
        load(path)
    except InputError as error:
        lines = told(error).split("\n")
        assert all(line.startswith(str(path)) and len(line) > len(str(path)) + 5 for line in lines)
        return "\n".join(lines)
    return None


@many
@given(made=files(RECIPES, Recipe))
def test_a_recipe_is_valid_or_refused_by_a_clear_error(
    folder: Path, made: tuple[str, bytes]
) -> None:
    path = folder / "made.toml"
    path.write_bytes(made[1])
    if refused(Recipe.load, path) is None:
        table = Recipe.load(path).table()
        assert Recipe.parse(table).table() == table
        assert tomllib.loads(tomli_w.dumps(table)) == table
        assert is_plain(table)


@many
@given(made=files(BOARDS, Board))
def test_a_board_is_valid_or_refused_by_a_clear_error(
    folder: Path, made: tuple[str, bytes]
) -> None:
    path = folder / "boards" / "made.toml"
    path.write_bytes(made[1])
    if refused(Board.load, path) is None:
        board = Board.load(path)
        assert is_plain(board.model_dump())
        assert all(re.fullmatch(r"[A-Za-z0-9][\w.+-]*", each.name) for each in board.entry)
        try:
            recipes = board.recipes(path.parent)
        except InputError as error:  # of an override, or of another recipe that it names
            told(error)
        else:
            assert set(recipes) == {each.name for each in board.entry}


def test_the_files_made_up_are_of_both_kinds(folder: Path) -> None:
    """A fuzzer that is refused always, or never, or always for one reason, shows nothing."""
    path = folder / "made.toml"
    text = RECIPES[0].read_text(encoding="utf-8")
    found = []
    for seed in range(300):
        path.write_bytes(mutated(text, random.Random(seed)).encode())
        found.append(refused(Recipe.load, path))
    assert 20 < found.count(None) < 200
    said = " ".join(each for each in found if each)
    for reason in ("unknown key", "missing", "expected", "control characters"):
        assert reason in said


def is_plain(value: object, depth: int = 0) -> bool:
    """Whether a table is of sane depth and numbers, its text without control characters."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return depth < 32 and all(is_plain(each, depth + 1) for each in value)
    if isinstance(value, float | int):
        return abs(value) < 2**1024 and math.isfinite(value)
    return value is None or not CONTROLS.search(str(value))


@pytest.mark.parametrize("value", VALUES)
def test_no_value_anywhere_breaks_a_recipe_or_board(folder: Path, value: str) -> None:
    path, text = folder / "made.toml", RECIPES[0].read_text(encoding="utf-8")
    for key in ("train.steps", "score.weights", "plugin.0.as", "loss.name", "generator.x", "x"):
        try:
            recipe = Recipe.load(RECIPES[0], [f"{key}={value}"])
        except RecipeError as error:
            told(error)
        else:
            assert Recipe.parse(recipe.table()) == recipe
            assert is_plain(recipe.table())
    path.write_bytes(encoded(text.replace("[generator]\n", f"[generator]\nx = {value}\n")))
    if refused(Recipe.load, path) is None:
        assert is_plain(Recipe.load(path).table())
    board = BOARDS[0].read_text(encoding="utf-8")
    for key in ("label", "set", "recipe"):
        path.write_bytes(encoded(f'{board}\n[[entry]]\nname = "last"\n{key} = {value}\n'))
        if refused(Board.load, path) is None:
            assert is_plain(Board.load(path).model_dump())


STRANGE = {
    "empty": b"",
    "bytes": bytes(range(256)),
    "nul": b'[data]\nname = "a\\u0000b"\n',
    "escape": b'[data]\nname = "\\u001b[31mred"\n"\\u001b]0;title" = 1\n',
    "deep": b"x = " + b"[" * 100_000,
    "nested": b"x = " + b"[" * 60 + b"]" * 60,
    "dotted": b"a." * 100_000 + b"a" + b" = 1",
    "large": b"#" * 10_000_000,
    "nan": RECIPES[0].read_bytes() + b"\n[sample]\nevery = nan\n",
    "keys": b"".join(b"key%d = 1\n" % n for n in range(10_000)),
}


def test_the_command_refuses_all_of_them_with_exit_code_2(tmp_path: Path) -> None:
    for name, content in STRANGE.items():
        (tmp_path / f"{name}.toml").write_bytes(content)
    code, out, err = started("recipe", "check", *sorted(tmp_path.iterdir()))
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    lines = err.splitlines()
    assert all(line.isprintable() for line in lines)
    assert len(lines) < 21 * len(STRANGE)
    for name in STRANGE:
        assert any(line.startswith(f"{tmp_path / name}.toml") for line in lines), name


def test_one_strange_recipe_is_exit_code_2(gan: Gan, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(STRANGE["escape"])
    code, out, err = gan("recipe", "check", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"{path}: ")
    assert len(err.splitlines()) == 1
