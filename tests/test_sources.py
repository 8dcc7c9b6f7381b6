"""What code is: edits that decide numbers change its hash, and others don't."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_house import MODULES, dependencies
from torch import nn

from gancore.provenance import sources
from gancore.provenance.sources import Core, class_code, core_code, decides, file_code

SOURCE = '''"""Docstring."""
import math

LIMIT = 3
"""Of what."""

class Thing:
    """A thing."""
    size = 2

    def area(self, x):
        """Its area."""
        if x > LIMIT:
            return math.pi * x ** self.size
        async def inner():
            """Inner."""
            try:
                return "text"
            finally:
                """Nothing."""
        return lambda: inner
'''

SAME = {
    "a comment": ("LIMIT = 3", "LIMIT = 3  # three"),
    "an empty line": ("import math\n", "import math\n\n\n"),
    "a module's docstring": ('"""Docstring."""', '"""Another."""'),
    "no docstring": ('"""Docstring."""\n', ""),
    "a constant's docstring": ('"""Of what."""', '"""Of this."""'),
    "a class's docstring": ('"""A thing."""', '"""The\n    thing."""'),
    "a function's docstring": ('        """Its area."""\n', ""),
    "an inner docstring": ('"""Inner."""', '"""Innermost."""'),
    "a text after finally": ('"""Nothing."""', '"""Something."""'),
    "brackets": ("x > LIMIT", "(x > LIMIT)"),
    "quotes": ('"text"', "'text'"),
}
OTHER = {
    "a constant": ("LIMIT = 3", "LIMIT = 3.0"),
    "a sign": ("x > LIMIT", "x >= LIMIT"),
    "a default": ("area(self, x)", "area(self, x=1)"),
    "a text that is used": ('"text"', '"Text"'),
    "an attribute": ("size = 2", "size = 3"),
    "an import": ("import math", "import cmath as math"),
    "an order": ("math.pi * x ** self.size", "x ** self.size * math.pi"),
    "no syntax": ("import math", "import math ("),
}


@pytest.mark.parametrize("edit", SAME)
def test_what_decides_nothing_changes_no_hash(tmp_path: Path, edit: str) -> None:
    path = tmp_path / "a.py"
    path.write_text(SOURCE)
    before = file_code(path)
    assert SAME[edit][0] in SOURCE
    path.write_text(SOURCE.replace(*SAME[edit]))
    assert file_code(path) == before


def test_every_other_edit_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(SOURCE)
    found = {file_code(path)}
    for edit in OTHER.values():
        assert edit[0] in SOURCE
        path.write_text(SOURCE.replace(*edit))
        found.add(file_code(path))
    assert len(found) == len(OTHER) + 1


Edit = Callable[[str, str, str], None]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """Edit a file of a copy of the core, which is then hashed in the core's place."""
    copy = tmp_path / "gancore"
    shutil.copytree(sources.CORE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "CORE", copy)

    def edited(name: str, old: str, new: str) -> None:
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new))

    yield edited
    core_code.cache_clear()


def changed(one: Core) -> set[str]:
    """Return the modules that differ from then to now."""
    core_code.cache_clear()
    now = core_code()
    assert (one.code == now.code) == (one.modules == now.modules)
    return {name for name, _ in one.modules.items() ^ now.modules.items()}


def test_an_edit_is_told_by_its_module(edit: Edit) -> None:
    before = core_code()
    assert before.python == f"{sys.version_info.major}.{sys.version_info.minor}"
    edit("losses.py", '"""Losses', '"""All losses')
    edit("step.py", "from __future__", "# a comment\nfrom __future__")
    edit("cli/run.py", "import os", "import os, math")
    edit("report/page.py", "import", "import math\nimport")
    edit("data/toys.py", "1.414", "1.5")  # what it changes is seen in the samples
    assert changed(before) == set()
    edit("losses.py", "softplus(", "softplus(2 * ")
    edit("training/__init__.py", "from gancore", "import math\nfrom gancore")
    (sources.CORE / "brand_new.py").write_text("x = 1")
    (sources.CORE / ".#step.py").symlink_to("somebody@somewhere.1234")  # an editor's lock
    (sources.CORE / "scoring" / "digits.safetensors").write_bytes(b"others")
    edited = {"losses", "training", "brand_new", "scoring.digits.safetensors"}
    assert changed(before) == edited


def test_it_is_made_once_a_process() -> None:
    assert core_code() is core_code()


NUMBERLESS = {
    *("gancore.errors", "gancore.text", "gancore.files", "gancore.files.reading"),
    *("gancore.files.writing", "gancore.files.storage", "gancore.files.stored"),
    *("gancore.provenance.sources", "gancore.provenance.identity"),
    *("gancore.entrypoints", "gancore.entrypoints.code", "gancore.entrypoints.plugin_file"),
    *("gancore.training.run_folder", "gancore.training.record"),
    # loaded samples have a hash of their own, and so have weights that are downloaded
    *("gancore.data.cache", "gancore.data.fetch", "gancore.data.progress"),
    # pictures and lines on a terminal
    *("gancore.report", "gancore.report.curves", "gancore.report.display"),
    *("gancore.report.grids", "gancore.report.style"),
}
"""All that the training imports and that yet decides no number: a reviewed list."""


def test_all_that_the_training_imports_decides_numbers_or_is_listed() -> None:
    reached, left = set[str](), ["gancore.training", "gancore.networks", "gancore.losses"]
    while left:
        module = left.pop()
        if module not in reached:
            reached.add(module)
            package = module.rpartition(".")[0]
            left += [*dependencies(module), *([package] if package else [])]
    assert len(reached) > 30
    assert {
        module for module in reached if not decides(module.removeprefix("gancore."))
    } == NUMBERLESS
    hashed = core_code().modules
    for module in reached - NUMBERLESS:
        assert (module.partition(".")[2] or "__init__") in hashed
    assert not {name.removeprefix("gancore.") for name in NUMBERLESS} & hashed.keys()


def test_packages_that_decide_numbers_are_in() -> None:
    hashed = core_code().modules
    for module in MODULES:
        name = module.partition(".")[2]
        if name.startswith(("networks", "scoring")):
            assert name in hashed
    assert {"step", "losses", "recipe", "plugins", "critics.piecewise_linear"} < {*hashed}
    assert {"isolation.randomness", "scoring.sampling"} < {*hashed}
    assert {"data", "training.session", "training.trainer", "training.learner"} < {*hashed}


def test_every_exception_is_of_something() -> None:
    names = {module.partition(".")[2] for module in MODULES}
    for pattern in sources.DECIDES_NOTHING:
        assert any(sources.fnmatch(name, pattern) for name in names), pattern


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Any]]:
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write(name: str, text: str) -> Any:
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        made.append(name)
        return importlib.import_module(name)

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_the_code_of_classes(module: Callable[[str, str], Any]) -> None:
    base = "class Base:\n    x = 1\n"
    module("some_base", base)
    text = (
        "import torch\nfrom some_base import Base\ndef slope(): return .2\n"
        "class A(Base, torch.nn.Module): pass\n"
    )
    codes = [class_code([module("some_a", text).A])]
    assert class_code([module("some_a", text + "# more\n").A]) == codes[0]
    codes.append(class_code([module("some_a", text.replace(".2", ".1")).A]))
    module("some_base", base.replace("1", "2"))
    codes.append(class_code([module("some_a", text).A]))
    assert len({*codes, "unknown", "none"}) == 5
    assert class_code([nn.Linear, dict, nn.Sequential]) == "none"
    assert class_code([nn.Linear, type("Made", (nn.Module,), {"__module__": "nowhere"})]) == (
        "unknown"
    )


def test_of_a_script_the_class_alone_is_its_code(
    monkeypatch: pytest.MonkeyPatch, module: Callable[[str, str], Any]
) -> None:
    text = "class A:\n    x = 1\nSTEPS = 100\n"

    def code(text: str) -> str:
        made = module("some_script", text)
        monkeypatch.setitem(sys.modules, "__main__", made)
        made.A.__module__ = "__main__"
        return class_code([made.A])

    first = code(text)
    assert first not in ("none", "unknown")
    assert code(text.replace("100", "200")) == first
    assert code(text.replace("x = 1", "x = 2")) != first
