"""House rules: the import order of the core, and what a recipe file looks like."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import gancore
from gancore.plugins import Plugins, load
from gancore.recipe import Recipe

CORE = Path(gancore.__file__).parent
RECIPES = sorted((CORE.parent / "recipes").glob("*.toml"))
BOARDS = sorted((CORE.parent / "recipes" / "boards").glob("*.toml"))

ORDER = [
    {"errors", "text"},
    {"isolation", "hooks"},
    {"checks"},
    {"options", "distributed", "critics"},
    {"files"},
    {"entrypoints", "recipe"},
    {"plugins", "step"},
    {"losses"},
    {"networks", "data"},
    {"scoring.metrics"},
    {"scoring.protocol"},
    {"provenance"},
    {"scoring", "report"},
    {"training"},
    {"cost", "report.writer"},
    {"leaderboard"},
    {"testing"},
    {"cli"},
    {"__main__"},
]
"""A part of the core imports only parts in the lines above its own."""

RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
MODULES = {
    ".".join(path.relative_to(CORE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in CORE.rglob("*.py")
}


def imported(source: str, *, for_types: bool = False) -> Iterator[str]:
    """Yield the modules and names that run-time imports name, in functions too.

    for_types: also those that are imported for type checkers alone
    """
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) if not for_types:
                nodes.extend(node.orelse)
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(level=0, module=str(module), names=names):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                yield "gancore.<relative import>"
            case _:
                nodes.extend(ast.iter_child_nodes(node))


def dependencies(module: str, *, for_types: bool = False) -> set[str]:
    """Return the modules of the core that a module imports."""
    found = set()
    for name in imported(MODULES[module].read_text(encoding="utf-8"), for_types=for_types):
        if name == "gancore" or name.startswith("gancore."):
            found.add(name if name in MODULES else name.rpartition(".")[0])
    return found


def part(module: str) -> str:
    """Return the part that a module belongs to, or itself where it has a line of its own."""
    name = module.partition(".")[2]
    return name if name in RANK else name.partition(".")[0]


def test_the_reader_of_imports_reads_all_but_type_checking() -> None:
    source = (
        "from typing import TYPE_CHECKING\nimport a, b.c\nfrom . import d\n"
        "if TYPE_CHECKING:\n    from gancore import step\nelse:\n    import e\n"
        "def f():\n    from gancore import errors as g\n    try:\n        import h\n"
        "    except ImportError: pass\n"
    )
    names = {"typing.TYPE_CHECKING", "a", "b.c", "e", "gancore.errors", "h"}
    names.add("gancore.<relative import>")
    assert set(imported(source)) == names
    assert set(imported(source, for_types=True)) == names | {"gancore.step"}
    assert "gancore.step" in dependencies("gancore.losses")
    assert "gancore.recipe" in dependencies("gancore.cli.run")  # inside a function
    assert len(MODULES) > 30


def test_every_part_has_its_place() -> None:
    assert {part(module) for module in MODULES if module != "gancore"} <= RANK.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_earlier_parts(module: str) -> None:
    mine = part(module)
    for other in dependencies(module):
        assert other != "gancore", f"{module} uses a lazily exported name of gancore"
        assert part(other) == mine or RANK[part(other)] < RANK.get(mine, 0), (
            f"{module} imports {other}"
        )


def cycles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the largest sets of two or more modules of which each leads to each other."""

    def reached(start: str) -> frozenset[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            new = graph[ahead.pop()] - seen
            seen |= new
            ahead += new
        return frozenset(seen)

    leads = {module: reached(module) for module in graph}
    return {
        frozenset(other for other in leads[module] if module in leads[other])
        for module in graph
        if module in leads[module]
    }


def test_the_finder_of_cycles_finds_them() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"e", "a"}}
    assert cycles(graph) == {frozenset("bc"), frozenset("ef")}


def test_no_import_cycles_those_for_types_and_in_functions_included() -> None:
    graph = {module: dependencies(module, for_types=True) - {module} for module in MODULES}
    assert not cycles(graph)


# what grows unseen

MOST_FOUND_AND_EACH = 20
"""How often `found` and `each` may be names and arguments: name the thing instead."""

MOST_OPEN_TABLES = 50
"""How often annotations may say `dict[str, Any]` or the like, by an alias too."""

MOST_PRIVATE = 2
"""How many imports of private names tests may have."""

LONGEST_FILE = 400

MOST_NAMES = 24
SOURCES = sorted([*MODULES.values(), *CORE.parent.glob("plugins/*/src/**/*.py")])
OPEN = re.compile(r"(\w+\.)?(dict|Dict|Mapping|MutableMapping)\[str, (typing\.)?Any\]")


def named_found_or_each(source: str) -> int:
    """Return how often they are names, read or written, and arguments."""
    count = 0
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.ExceptHandler(name=name):
                count += name in ("found", "each")
            case ast.MatchAs(name=name) | ast.MatchStar(name=name):
                count += name in ("found", "each")
    return count


def aliases(tree: ast.AST) -> set[str]:
    """Return the names that a module gives to `dict[str, Any]`."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript() as value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Subscript() as value)
            ) if OPEN.fullmatch(ast.unparse(value)):
                names.add(name)
    return names


def open_tables(sources: Mapping[str, str]) -> int:
    """Return how often modules say `dict[str, Any]`, or an alias of it, of their own or another."""
    trees = {module: ast.parse(source) for module, source in sources.items()}
    made = {module: aliases(tree) for module, tree in trees.items()}
    count = 0
    for module, tree in trees.items():
        mine = set(made[module])
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                theirs = made.get(node.module, set())
                mine |= {name.asname or name.name for name in node.names if name.name in theirs}
        for node in ast.walk(tree):
            match node:
                case ast.Subscript() if OPEN.fullmatch(ast.unparse(node)):
                    count += 1
                case ast.Constant(value=str(text)) if OPEN.fullmatch(text):
                    count += 1
                case ast.Name(id=name, ctx=ast.Load()) if name in mine:
                    count += 1
    return count


def test_the_counters_count() -> None:
    source = (
        "def f(found, a=1):\n    for each in found: print(each, 'found')\n"
        "try: pass\nexcept OSError as found: pass\nself.found = dict(each=1)\n"
    )
    assert named_found_or_each(source) == 5
    tables = (
        "T = dict[str, Any]\ndef f(a: T, b: 'Mapping[str, Any]') -> dict[str, int]: ...\n"
        "x: list[typing.Mapping[str, Any]] = []\n"
    )
    other = "def g(a: T) -> None: ...\n"
    assert open_tables({"a": tables, "b": other}) == 4
    assert open_tables({"a": tables, "b": f"from a import T\n{other}"}) == 5


def test_things_are_called_what_they_are() -> None:
    counts = {path: named_found_or_each(path.read_text(encoding="utf-8")) for path in SOURCES}
    worst = {path.stem: count for path, count in counts.items() if count > 10}
    assert sum(counts.values()) <= MOST_FOUND_AND_EACH, worst


def test_tables_have_types() -> None:
    modules = {path: name for name, path in MODULES.items()}
    texts = {modules.get(path, str(path)): path.read_text(encoding="utf-8") for path in SOURCES}
    assert open_tables(texts) <= MOST_OPEN_TABLES


def test_tests_are_of_behaviour() -> None:
    private = []
    for path in (*CORE.parent.glob("tests/*.py"), *CORE.parent.glob("plugins/*/tests/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gancore"):
                names = [alias.name for alias in node.names if re.match("_[^_]", alias.name)]
                private += [f"{path.name}: {name}" for name in names]
    assert len(private) <= MOST_PRIVATE, private


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CORE.parent)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def test_the_top_level_is_small() -> None:
    names = {path.stem for path in CORE.iterdir()} - {"__init__", "__main__", "py", "__pycache__"}
    assert len(names) <= MOST_NAMES, sorted(names)


READERS = {
    *("read_text", "read_bytes", "open", "load_file", "safe_open", "fromfile", "loadtxt"),
    *("ZipFile", "GzipFile", "TarFile", "imread", "FileIO", "getsource", "mmap"),
}
"""Names of calls that may open a file for reading."""

OPENED = {
    "files.reading": {"os.open"},  # the one that does
    "files.writing": {"open", "os.open"},  # to write
    "training.session": {"opening.open"},  # a run's folder, by what opens its files
    "training.checkpoint": {"load_file"},  # of names that `opened` has had a look at
    "data.cache": {"safe_open"},
    "scoring.classifier": {"load_file"},
    "data.listing": {"zipfile.ZipFile", "self._zip.open"},  # of what `opened` has opened
    "data.mnist": {"gzip.GzipFile"},
    "data.cifar": {"tarfile.open"},
    "data.decoding": {"Image.open"},
    "report.filmstrip": {"Image.open"},
    "scoring.extractors": {"torch.load"},
    "provenance.sources": {"path.read_bytes", "inspect.getsource"},  # what is installed
    "entrypoints.code": {"path.read_bytes"},
    "cli.scaffold": {"item.read_text"},
    "leaderboard.page": {"resources.files(__package__).joinpath('sort.js').read_text"},
    "provenance.machine": {"path.read_text"},  # /proc/cpuinfo
    "cli.streams": {"open"},  # the null device
}
"""Those of each module that are no way around `gancore.files.reading.opened`."""

OURS = {"Run.open", "opening.open", "read_text", "read_bytes"}
"""Our own functions of such names."""


def reads(source: str) -> set[str]:
    """Return the calls in a text that may open a file for reading."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = set()
    for call in calls:
        name = call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "")
        text = ast.unparse(call)
        if (name in READERS and text not in OURS) or text in ("torch.load", "np.load"):
            found.add(text)
    return found


def test_the_finder_of_reads_finds_them() -> None:
    source = (
        "open(x)\npath.open('rb')\nx = (a / b).read_text()\nImage.open(path)\nRun.open(x)\n"
        "def f():\n    with zipfile.ZipFile(p) as z:\n        torch.load(z)\nos.open(x, 0)\n"
    )
    assert reads(source) == {
        *("open", "path.open", "(a / b).read_text", "Image.open", "zipfile.ZipFile", "torch.load"),
        "os.open",
    }


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_are_opened_for_reading_by_one_function(module: str) -> None:
    found = reads(MODULES[module].read_text(encoding="utf-8"))
    assert found <= OPENED.get(module.partition(".")[2], set())


def test_commands_print_by_what_escapes_control_characters() -> None:
    for module, path in MODULES.items():
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        mine = {"cli": {"click.echo"}, "cli.tables": {"click.echo"}, "report.display": {"print"}}
        allowed = mine.get(module.partition(".")[2], set())
        assert calls & {"click.echo", "click.secho", "print"} <= allowed, module


PROJECTS = [CORE.parent / "pyproject.toml", *CORE.parent.glob("plugins/*/pyproject.toml")]
BROUGHT_BY = {"PIL": "pillow", "pydantic_core": "pydantic", "sklearn": "scikit-learn"}
"""Distributions that are called otherwise than their modules."""


def stated(path: Path) -> list[Requirement]:
    """Return the requirements of a pyproject.toml, the optional ones too."""
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    optional = project.get("optional-dependencies", {}).values()
    return [Requirement(each) for each in chain(project["dependencies"], *optional)]


def test_the_lowest_versions_are_those_stated() -> None:
    """tox's environment `lowest` has them, so that a bound is one that was tried."""
    lines = (CORE.parent / "tests" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    lowest = dict(line.split("==") for line in lines)
    bounds: dict[str, set[str]] = {}
    for requirement in chain.from_iterable(map(stated, PROJECTS)):
        if requirement.name != "gancore":
            lower = {each.version for each in requirement.specifier if each.operator == ">="}
            bounds.setdefault(requirement.name, set()).update(lower)
    assert {name: [*versions] for name, versions in bounds.items()} == {
        name: [version] for name, version in lowest.items()
    }
    assert "-c tests/lowest.txt" in (CORE.parent / "tox.ini").read_text(encoding="utf-8")


def test_what_the_core_imports_is_stated() -> None:
    named = chain.from_iterable(imported(path.read_text("utf-8")) for path in MODULES.values())
    others = {name.partition(".")[0] for name in named} - sys.stdlib_module_names
    found = {BROUGHT_BY.get(name, name.replace("_", "-")) for name in others}
    # pytest is whose who calls gancore.testing
    allowed = {requirement.name for requirement in stated(PROJECTS[0])} | {"gancore", "pytest"}
    assert found - allowed == set()
    assert {"numpy", "pillow", "torch"} <= found


METHODS = {
    "digits": "wgan_gp wgan_clip none sngan r1 r2 r1_r2 wgan_gp_lazy r1_lazy",
    "fashion": "wgan_gp wgan_clip none sngan r1 r1_r2",
    "cifar": "wgan_gp wgan_clip sngan r1 r1_lazy r1_r2",
    **dict.fromkeys(("gaussians8", "gaussians25", "swissroll"), "wgan_gp wgan_clip none"),
}
BRINGS = {"gp": "gp", "clip": "clip", "r1": "r1", "r2": "r2", "lazy": "lazy", "sngan": "sn"}
"""The plugin that each word of a method's name stands for."""


@pytest.mark.parametrize("data", METHODS)
def test_the_recipes_are_all_there(data: str) -> None:
    names = {f"{method}_{data}.toml" for method in METHODS[data].split()}
    assert {path.name for path in RECIPES} >= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert 10 <= len(text.splitlines()) <= 40
    assert text.startswith("# ")
    recipe = Recipe.load(path)
    method, _, data = path.stem.rpartition("_")
    assert recipe.data.name.startswith(data)
    assert {each.name for each in recipe.plugin} == {
        BRINGS[word] for word in method.split("_") if word in BRINGS
    }
    assert set(tomllib.loads(text)) <= set(Recipe.model_fields)
    components = [recipe.loss, *recipe.plugin]
    assert Plugins([load(each.name, each.options) for each in components]).loss.name
