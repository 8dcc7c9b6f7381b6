"""Entry points, on distributions made in a temporary folder: nothing is installed."""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import TOY

from gancore import entrypoints
from gancore.entrypoints import OURS, Available, Kind, find, get, load, origin
from gancore.errors import MissingError, PluginError
from gancore.leaderboard.costs import measure_costs
from gancore.leaderboard.plan import versions
from gancore.provenance.identity import MadeOf
from gancore.recipe import Component, Recipe, Score

Install = Callable[..., str]
CORE = version("gancore")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make a distribution with one module and one entry point; return the module's name."""
    made = []

    def make(
        name: str = "foo",
        number: str = "1.2",
        *,
        point: str = "foo",
        source: str = "Foo = 'loaded'",
        requires: tuple[str, ...] = (),
        group: str = "gancore.plugins",
    ) -> str:
        module = f"fake_{name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{name.replace('-', '_')}-{number}.dist-info"
        info.mkdir()
        lines = [f"Requires-Dist: {each}" for each in requires]
        text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}", *lines])
        (info / "METADATA").write_text(f"{text}\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{point} = {module}:Foo\n")
        importlib.invalidate_caches()
        made.append(module)
        return module

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for module in made:
        sys.modules.pop(module, None)


def test_found_without_being_imported(install: Install) -> None:
    module = install("foo-dist", "1.2", source="raise SystemExit('imported')")
    (found,) = [each for each in find("plugin") if each.name == "foo"]
    assert (found.distribution, found.version) == ("foo-dist", "1.2")
    assert str(found) == "foo (foo-dist 1.2)"
    assert found == get("plugin", "foo")
    assert module not in sys.modules


@pytest.mark.parametrize("kind", ["plugin", "dataset", "generator", "critic", "extractor"])
def test_each_kind_has_its_group(install: Install, kind: Kind) -> None:
    install("a-dist", point="zz_last", group=f"gancore.{kind}s")
    install("b-dist", point="a_first", group=f"gancore.{kind}s")
    names = [found.name for found in find(kind)]
    assert names == sorted(names)
    assert {"zz_last", "a_first"} < {*names}
    assert load(get(kind, "zz_last")) == "loaded"
    others: list[Kind] = ["plugin", "dataset"]
    for other in others:
        assert (other == kind) == ("zz_last" in [found.name for found in find(other)])


def test_the_origin_of_a_component_changes_with_its_code(install: Install, tmp_path: Path) -> None:
    module = install("foo-dist", "1.2", source="raise SystemExit('imported')")
    before = origin(get("plugin", "foo"))
    assert re.fullmatch(r"foo-dist==1\.2 \(code [0-9a-f]{8}\)", before)
    (tmp_path / f"{module}.py").write_text("raise SystemExit('edited')")
    assert origin(get("plugin", "foo")) != before
    (tmp_path / f"{module}.py").write_text("raise SystemExit('imported')")
    assert origin(get("plugin", "foo")) == before
    assert origin(get("plugin", "wasserstein")) == f"gancore=={CORE}"


@pytest.mark.parametrize("package", ["alone", "shared.mine"])
def test_all_files_of_a_package_are_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """A namespace package has no `__init__.py`, and other distributions may be in it."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path.joinpath(*package.split("."))
    (folder / "part").mkdir(parents=True)
    for name in ("__init__.py", "one.py", "part/two.py"):
        (folder / name).write_text("")
    point = EntryPoint("foo", f"{package}.one:Foo", "gancore.plugins")
    found = Available("plugin", "foo", "foo", "1", point)
    codes = [origin(found)]
    (tmp_path / "shared").mkdir(exist_ok=True)
    (tmp_path / "shared" / "another.py").write_text("")
    (folder / "notes.txt").write_text("no code")
    assert origin(found) == codes[0]
    (folder / "part" / "two.py").write_text("x = 1")
    codes.append(origin(found))
    (folder / "part" / "two.py").rename(folder / "two.py")
    codes.append(origin(found))
    (folder / "__init__.py").write_text("x = 2")
    codes.append(origin(found))
    (folder / "fast.abi3.so").write_bytes(b"compiled")
    codes.append(origin(found))
    assert len({*codes}) == 5
    (folder / ".#one.py").symlink_to("somebody@somewhere.1234")  # Emacs, with unsaved changes
    (folder / "folder.py").mkdir()
    (folder / "__pycache__").mkdir(exist_ok=True)
    (folder / "__pycache__" / "one.cpython-311.pyc").write_bytes(b"of one.py")
    assert origin(found) == codes[-1]


def test_all_that_a_distribution_has_installed_is_its_code(tmp_path: Path) -> None:
    """Beside its package, and data in it; not its metadata, scripts, pointers, or others' files."""
    about = tmp_path / "my_dist-1.0.dist-info"
    installed = ("my/__init__.py", "beside.py", "my/table.json", "_my_dist.pth")
    for name in (*installed, "other.py", f"{about.name}/METADATA"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (about / "METADATA").write_text("Name: my-dist\nVersion: 1.0\n")
    listed = (*installed, f"{about.name}/METADATA", "../bin/my", "gone.py")
    (about / "RECORD").write_text("".join(f"{name},,\n" for name in listed))
    (about / "entry_points.txt").write_text("[gancore.plugins]\nmy = my:My\n")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from gancore.entrypoints import get, origin\n"
        "print(origin(get('plugin', 'my')))"
    )

    def code() -> str:
        command = [sys.executable, "-c", script, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    codes = [code()]
    for name in ("other.py", "_my_dist.pth", f"{about.name}/METADATA"):
        with (tmp_path / name).open("a") as file:
            file.write("\n")
    assert code() == codes[0]
    for name in ("beside.py", "my/table.json", "my/__init__.py"):
        (tmp_path / name).write_text("# edited")
        codes.append(code())
    assert len({*codes}) == 4


@pytest.mark.parametrize("name", ["nowhere.at", "zipped", "zipped_one", "sys", "zipimport"])
def test_code_that_is_in_no_file_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("zipped/__init__.py", "")
        archive.writestr("zipped_one.py", "")
    monkeypatch.syspath_prepend(tmp_path / "all.zip")
    point = EntryPoint("foo", f"{name}:Foo", "gancore.plugins")
    assert origin(Available("plugin", "foo", "foo", "1", point)) == "foo==1 (code unknown)"


def test_a_board_makes_runs_of_edited_code_again(install: Install, tmp_path: Path) -> None:
    source = "from gancore import plugin\n@plugin\nclass Foo: weight: float = 1.0\n"
    module = install(source=source)
    critic = install("bar", point="bar", group="gancore.critics")
    features = install("fea", point="fea", group="gancore.extractors")
    recipe = Recipe.parse(tomllib.loads(TOY.replace('"gp"', '"foo"'))).model_copy(
        update={"critic": Component(name="bar"), "score": Score(extractor="fea")}
    )
    measured: list[str] = []
    executor: Any = SimpleNamespace(where="cpu", measure=lambda recipes: {})
    board: Any = SimpleNamespace(threads=1)

    def made_with() -> MadeOf:
        for _ in range(2):
            costs = {"executor": executor, "tell": measured.append}
            measure_costs(board, {"foo": recipe}, tmp_path / "out", **costs)
        return versions(recipe)

    found = [made_with()]
    assert found[0].plugins is not None
    assert "(code " in found[0].plugins["foo"]
    for edited in (module, critic, features):
        path = tmp_path / f"{edited}.py"
        path.write_text(path.read_text() + "\n# edited")
        found.append(made_with())
    assert all(one != other for one, other in itertools.combinations(found, 2))
    assert len(measured) == len(found)


def test_missing_with_a_suggestion(install: Install) -> None:
    install(point="spectral")
    with pytest.raises(MissingError, match=r"no plugin 'spektral' is.*mean 'spectral'\?") as caught:
        get("plugin", "spektral")
    assert caught.value.close


def test_missing_without_a_close_name_lists_all(install: Install) -> None:
    install(point="spectral")
    with pytest.raises(MissingError, match=r"Known: .*gp, .*spectral") as caught:
        get("plugin", "qqqqqqqq")
    assert not caught.value.close


PUBLISHED = [
    path
    for path in sorted((Path(__file__).parents[1] / "plugins").glob("*/pyproject.toml"))
    if "gancore.plugins" in path.read_text(encoding="utf-8")  # gancore-ray brings none
]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_ours_are_the_packages_of_this_repository(path: Path) -> None:
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    (name,) = project["entry-points"]["gancore.plugins"]
    assert project["name"] == path.parent.name == f"gancore-{name}"
    assert name in OURS
    assert len(PUBLISHED) == len(OURS) > 9


@pytest.mark.parametrize("name", sorted(OURS))
def test_ours_missing_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrypoints, "entry_points", lambda group: EntryPoints(()))
    with pytest.raises(MissingError, match=rf"'{name}'.*gancore-{name}\b.*pip install"):
        get("plugin", name)


def test_two_distributions_with_one_name(install: Install) -> None:
    install("one", "1.0")
    install("two", "2.0")
    with pytest.raises(PluginError, match=r"'foo' is brought by (one 1\.0 and two 2|two.*one 1)"):
        get("plugin", "foo")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError.*no_such_module_anywhere"),
        ("from math import nonsense", "ImportError.*nonsense"),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("Bar = 1", "AttributeError.*Foo"),
    ],
)
def test_broken_import_names_distribution_and_cause(
    install: Install, source: str, cause: str
) -> None:
    install("bad-dist", "3.1", point="bad", source=source)
    install("good-dist", point="good")
    with pytest.raises(PluginError, match=rf"bad \(bad-dist 3\.1\).*{cause}.*bad-dist") as caught:
        load(get("plugin", "bad"))
    assert caught.value.__cause__ is not None
    assert load(get("plugin", "good")) == "loaded"


@pytest.mark.parametrize(
    "requires",
    [
        (),
        ("gancore",),
        ("torch>=9999",),
        (f"gancore=={CORE}",),
        ("gancore>=0.0.1,<9999",),
        ('gancore>=9999; python_version < "3"',),
        ('gancore>=9999; extra == "old"',),
    ],
)
def test_compatible(install: Install, requires: tuple[str, ...]) -> None:
    install(requires=requires)
    assert load(get("plugin", "foo")) == "loaded"


@pytest.mark.parametrize(
    "requires",
    [
        ("gancore>=9999",),
        ("GanCore >=9999",),
        ("torch", "gancore<0.0.1"),
        (f"gancore!={CORE}",),
        ('gancore>=9999; python_version > "3"',),
    ],
)
def test_another_core_version_is_refused_before_the_import(
    install: Install, requires: tuple[str, ...]
) -> None:
    module = install("foo-dist", "1.2", requires=requires)
    with pytest.raises(PluginError) as caught:
        load(get("plugin", "foo"))
    message = str(caught.value)
    wanted = requires[-1].split(";")[0].replace(" ", "").lower()
    assert "foo (foo-dist 1.2)" in message
    assert f"gancore {CORE}" in message
    assert f"needs {wanted}" in message
    assert module not in sys.modules


def test_a_prerelease_of_the_core_counts(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(requires=("gancore>=0.1,<0.3",))
    core = SimpleNamespace(version="0.2.0rc1")
    monkeypatch.setattr(entrypoints, "distribution", lambda name: core)
    assert load(get("plugin", "foo")) == "loaded"


def test_a_malformed_requirement_is_the_distributions_fault(install: Install) -> None:
    install("foo-dist", "1.2", requires=("gancore >=0.1 <0.2",))
    with pytest.raises(PluginError, match=r"foo-dist 1\.2"):
        load(get("plugin", "foo"))
