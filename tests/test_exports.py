"""The public names: what they are, that they resolve, and what importing them costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gancore

PUBLIC = [
    "CriticStep",
    "Dataset",
    "GancoreError",
    "GeneratorStep",
    "Recipe",
    "Run",
    "Trainer",
    "critic_scores",
    "hookimpl",
    "input_gradient",
    "interpolate",
    "load_critic",
    "load_generator",
    "plugin",
    "run",
    "score_run",
    "write_report",
]


def test_public_names_are_frozen_and_sorted() -> None:
    assert gancore.__all__ == PUBLIC == sorted(PUBLIC) == dir(gancore)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_resolves_to_what_its_home_defines(name: str) -> None:
    value = getattr(gancore, name)
    assert value.__module__ != "gancore"
    if name != "hookimpl":  # a pluggy marker, not a function of ours
        assert value.__name__ == name
        assert value.__module__.startswith("gancore.")


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'gancore' has no attribute 'Trainor'"):
        _ = gancore.Trainor


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING name each lazy export, from the module it comes from."""
    tree = ast.parse(Path(gancore.__file__).read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == gancore._HOME
    assert sorted(seen) == PUBLIC


@pytest.mark.parametrize(
    "statement",
    ["from gancore import plugin, hookimpl", "import gancore.entrypoints, gancore.errors"],
)
def test_plugin_and_hookimpl_import_nothing_heavy(statement: str) -> None:
    heavy = ["torch", "numpy", "pydantic", "pydantic_core", "torchvision", "matplotlib", "rich"]
    code = f"{statement}; import sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
