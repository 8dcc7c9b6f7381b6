"""The documents: their code runs, their messages are real, and nothing public is left out."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import EntryPoint, version
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, entrypoints, hookimpl, hooks, plugin
from gancore.cli import COMMANDS
from gancore.entrypoints import Available
from gancore.errors import GancoreError
from gancore.plugins import HOOKS, Loaded, Plugins, load
from gancore.recipe import Recipe
from gancore.testing import CHECKS, Subject, check_plugin
from gancore.training import check_recipe
from gancore.training.objective import Gradients, objective, to_host

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text("utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
DOCS = {name: PAGES[name] for name in ("plugins.md", "functions.md", "metrics.md")}
"""Those with blocks of Python, which are run."""

PLUGINS = DOCS["plugins.md"]


def sections(text: str) -> dict[str, str]:
    """Return the text of each `##` section, by its title."""
    _, *parts = re.split(r"^## (.+)\n", text, flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


SECTIONS = [
    (name, title)
    for name, text in DOCS.items()
    for title, section in sections(text).items()
    if blocks(section, "python")
]

SCORES = {"wgan_gp_digits": (5.5, 5.8, 5.3), "wgan_lp_digits": (5.7, 6.0, 5.7)}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in whose `src` is on the path; what is imported from there is forgotten."""
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "src")
    (tmp_path / "src").mkdir()
    for recipe, values in SCORES.items():
        for seed, value in enumerate(values):
            folder = tmp_path / "runs" / f"{recipe}-seed{seed}"
            folder.mkdir(parents=True)
            found = {"scores": {"fid": value}, "protocol": {"seed": seed}}
            (folder / "scores.json").write_text(json.dumps(found))
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith(("gancore_lp", "other_lp", "docs_")):
            del sys.modules[name]


def install(
    site: Path,
    source: str,
    *,
    distribution: str = "gancore-lp",
    number: str = "0.1.0",
    requires: str = "gancore",
    value: str = "gancore_lp:Lp",
) -> Available:
    """Make a distribution with the entry point `lp`, without pip."""
    module = site / "src" / f"{value.split(':')[0]}.py"
    module.write_text(source, "utf-8")
    info = site / "src" / f"{distribution.replace('-', '_')}-{number}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {number}\n"
    (info / "METADATA").write_text(f"{metadata}Requires-Dist: {requires}\n")
    (info / "entry_points.txt").write_text(f"[gancore.plugins]\nlp = {value}\n")
    importlib.invalidate_caches()
    return entrypoints.get("plugin", "lp")


def files() -> dict[str, str]:
    """Return the tutorial's files: its blocks by the path in their first lines."""
    found: dict[str, str] = {}
    for language in ("python", "toml"):
        for block in blocks(PLUGINS, language):
            if match := re.match(r"# ((?:src|tests|recipes)/[\w./]+)", block):
                found[match[1]] = found.get(match[1], "") + block
    return found


def package() -> str:
    return files()["src/gancore_lp/__init__.py"]


def run_section(name: str, title: str) -> ModuleType:
    """Run the python blocks of a section, in one namespace, but for those that are files."""
    namespace = ModuleType(f"docs_{name[:-3]}")
    sys.modules[namespace.__name__] = namespace  # where dataclasses look for annotations
    for block in blocks(sections(DOCS[name])[title], "python"):
        if not re.match(r"# (src|tests)/", block):
            before = DOCS[name][: DOCS[name].index(block)].count("\n")
            code = compile("\n" * before + block, f"docs/{name}", "exec")  # its line numbers
            exec(code, vars(namespace))
    return namespace


@pytest.mark.parametrize(("name", "title"), SECTIONS)
def test_python_blocks_run(name: str, title: str, site: Path) -> None:
    torch.manual_seed(0)
    run_section(name, title)


def test_all_blocks_are_in_sections_and_of_a_known_language() -> None:
    for name, text in DOCS.items():
        assert set(re.findall(r"^```(\w*)$", text, re.M)) <= {"", "python", "toml", "text"}
        assert text.count("```") % 2 == 0
        in_sections = [
            block for part in sections(text).values() for block in blocks(part, "python")
        ]
        assert in_sections == blocks(text, "python"), name
    assert len(SECTIONS) >= 12


def test_toml_blocks_parse() -> None:
    tables = [tomllib.loads(block) for text in DOCS.values() for block in blocks(text, "toml")]
    assert len(tables) == 5


def test_the_tutorials_tests_pass(site: Path) -> None:
    install(site, package())
    path = site / "test_lp.py"
    path.write_text(files()["tests/test_lp.py"], "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path.name]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{site / 'src'}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    applying = sum(each.applies(Subject(type(load("lp").instance))) for each in CHECKS)
    assert f"{applying + 4} passed" in done.stdout
    assert f"# {applying} checks, 0 failed" in PLUGINS


def test_the_tutorials_package_is_the_scaffolds(site: Path) -> None:
    from gancore.cli.scaffold import write_plugin

    folder = write_plugin("lp", site)
    for path in files():
        assert path.startswith("recipes/") or (folder / path).is_file()
    scaffold = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    ours = tomllib.loads(blocks(PLUGINS, "toml")[0])
    ours["project"]["optional-dependencies"]["test"].remove("gancore-gp")
    for key in ("description", "readme"):
        del scaffold["project"][key]
    assert ours == scaffold


def test_the_tutorials_recipes_are_valid(site: Path) -> None:
    install(site, package())
    own = Recipe.parse(tomllib.loads(files()["recipes/wgan_lp_digits.toml"]))
    assert check_recipe(own) == []
    path = ROOT / "recipes" / "wgan_gp_digits.toml"
    assert Recipe.load(path, {"plugin.0.name": "lp"}) == own
    added = Recipe.load(path, ["plugin.1.name=lp"]).without(["gp"])
    assert check_recipe(added) == []
    assert [each.name for each in added.plugin] == ["lp"]
    with pytest.raises(GancoreError, match="no such plugin"):
        Recipe.load(path, ["plugin.0.name=lp"]).without(["gp"])
    (options,) = (block for block in blocks(PLUGINS, "toml") if block.startswith("[[plugin]]"))
    gp = Recipe.load(path).table()
    assert check_recipe(Recipe.parse({**gp, **tomllib.loads(options)})) == []


@pytest.mark.parametrize("title", ["Options", "Hooks"])
def test_example_plugins_keep_the_contract(title: str, site: Path) -> None:
    found = vars(run_section("plugins.md", title)).values()
    classes = [
        each for each in found if isinstance(each, type) and each.__module__ == "docs_plugins"
    ]
    assert len(classes) == {"Options": 1, "Hooks": 11}[title]
    for cls in classes:
        failed = [each for each in check_plugin(Subject(cls)) if each.verdict == "failed"]
        assert not failed, cls


def headings(text: str) -> dict[str, str]:
    """Return the parameters of each `### \\`name(parameters)\\`` heading, by name."""
    return dict(re.findall(r"^### `(\w+)(\([^`]*\))?`$", text, re.M))


def test_every_hook_has_its_section_and_its_signature() -> None:
    documented = headings(sections(PLUGINS)["Hooks"])
    assert documented == {
        hook: f"({', '.join(signature(getattr(hooks, hook)).parameters)})" for hook in HOOKS
    }


def test_every_attribute_of_the_steps_has_its_section() -> None:
    x = torch.zeros(1, 1)
    steps = [CriticStep(nn.Identity(), x, x), GeneratorStep(nn.Identity(), nn.Identity(), x, x)]
    names = {name for step in steps for name in {*vars(step), *dir(step)} if name[0] != "_"}
    documented = headings(sections(PLUGINS)["Steps"])
    assert set(documented) == names
    for step in steps:
        assert f"{type(step).__name__}{_plain(type(step))}" in " ".join(PLUGINS.split())


def _plain(function: Callable[..., Any]) -> str:
    parameters = signature(function).parameters.values()
    plain = [
        each.name if each.default is each.empty else f"{each.name}={each.default}"
        for each in parameters
    ]
    first = next(i for i, each in enumerate(parameters) if each.kind is each.KEYWORD_ONLY)
    return f"({', '.join([*plain[:first], '*', *plain[first:]])})"


def test_every_check_is_in_the_contract() -> None:
    table = sections(PLUGINS)["The contract"]
    documented = re.findall(r"^\| `([\w-]+)` \| (.+?) \|", table, re.M)
    assert [name for name, _ in documented] == [each.name for each in CHECKS]
    answers = {"penalty", "generator_penalty", "critic_loss", "generator_loss"}
    for (_, told), each in zip(documented, CHECKS, strict=True):
        named = set(re.findall(r"`(\w+)`", told)) or (answers if told == "answers" else set())
        assert named == each.hooks, each.name


def test_function_signatures_are_those_of_the_packages() -> None:
    text = " ".join(DOCS["functions.md"].split())
    for name in (
        "gancore_gp.gradient_penalty",
        "gancore_r1.r1_penalty",
        "gancore_r2.r2_penalty",
        "gancore_clip.clip_weights",
        "gancore_sn.apply_spectral_norm",
    ):
        module, _, function = name.partition(".")
        found = signature(getattr(importlib.import_module(module), function))
        bare = [each.replace(annotation=each.empty) for each in found.parameters.values()]
        short = found.replace(parameters=bare, return_annotation=found.empty)
        assert f"{name}{short}" in text


@pytest.mark.parametrize("name", PAGES)
def test_commands_exist(name: str) -> None:
    theirs = {"commands.md": {"runs"}, "truth.md": {"try"}}  # of other packages
    assert set(re.findall(r"\bgan ([a-z]+)", PAGES[name])) <= {*COMMANDS, *theirs.get(name, ())}


def anchors(page: str) -> set[str]:
    """Return what links may lead to: headings as GitHub names them."""
    return {
        re.sub(r"[^\w -]", "", each).lower().replace(" ", "-")
        for each in re.findall(r"^#+ (.+)$", page, re.M)
    }


@pytest.mark.parametrize("name", PAGES)
def test_links(name: str) -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", PAGES[name]):
        path, _, anchor = link.partition("#")
        assert not path or (ROOT / "docs" / path).exists(), link
        assert not anchor or anchor in anchors(PAGES[path or name]), link


@pytest.mark.parametrize("name", DOCS)
def test_lines(name: str) -> None:
    assert max(map(len, DOCS[name].splitlines())) <= 100


def step(critic: Callable[[Tensor], Tensor] | None = None) -> CriticStep:
    return CriticStep(critic or nn.Linear(2, 1), torch.ones(4, 2), torch.zeros(4, 2), update=7)


def lp(*, hook: str = "penalty", answer: Callable[..., Any]) -> Loaded:
    """Make the plugin `lp` with one hook."""
    answer.__name__ = hook
    source = Available("plugin", "lp", "gancore-lp", "0.1.0", EntryPoint("lp", "m:C", "g"))
    return Loaded("lp", plugin(type("Lp", (), {hook: hookimpl(answer)}))(), source)


def answering(value: Callable[[CriticStep], Any]) -> object:
    """Take the objective of an update to which `lp` answers `value`."""
    each = lp(answer=lambda self, step: value(step))
    return objective(Plugins([load("wasserstein"), each]), step(), nullcontext())


def made(source: str) -> object:
    """Run a class body of `Lp`."""
    namespace: dict[str, Any] = {"plugin": plugin, "hookimpl": hookimpl, "__name__": __name__}
    exec(f"@plugin\nclass Lp:\n    {source}\n", namespace)
    return namespace["Lp"]


def broken(site: Path, source: str, **changes: Any) -> object:
    install(site, source, **changes)
    return load("lp", where="plugin.0")


def optioned(site: Path, **options: Any) -> object:
    install(site, package())
    return load("lp", options, where="plugin.0")


def together(*loaded: Loaded) -> Plugins:
    return Plugins([load("wasserstein"), *loaded])


def normal(self: object, step: CriticStep) -> Tensor:
    return step.scores(step.real).mean()


def misnamed(self, stp): ...  # as bare as its quoted signature


def misread(site: Path) -> object:
    source = package().replace("weight: Annotated[float, Gt(0)]", "weight: Literal[1.0, 10.0]")
    return broken(site, source)


def twice(site: Path) -> object:
    install(site, package())
    return broken(site, "Lp = 1", distribution="other-lp", number="2.0", value="other_lp:Lp")


STRICT = {"__module__": "my_script", "penalty": lambda self, step: None}

FAULTS: list[Callable[[Path], object]] = [
    lambda site: made("weight = 10.0"),
    lambda site: made("def penalty(self, step): ..."),
    lambda site: made("@hookimpl\n    def post_step(self, critic): yield"),
    lambda site: made("@hookimpl\n    def post_step(self, critic, *, update=0): ..."),
    lambda site: made("@hookimpl\n    @staticmethod\n    def penalty(step): ..."),
    lambda site: made("name: str = 'x'"),
    lambda site: (install(site, package()), load("lpp")),
    twice,
    lambda site: broken(site, package(), requires="gancore<0.1"),
    lambda site: broken(site, "import gancore_lq"),
    lambda site: broken(site, package(), value="gancore_lp:lp_penalty"),
    lambda site: optioned(site, wieght=1.0),
    lambda site: optioned(site, weight="3"),
    lambda site: optioned(site, weight=-1.0),
    misread,
    lambda site: together(replace(lp(answer=normal), instance=object())),
    lambda site: together(Loaded("strict", type("Strict", (), STRICT)())),
    lambda site: together(lp(hook="penalti", answer=lambda self, step: None)),
    lambda site: together(lp(answer=misnamed)),
    lambda site: together(lp(answer=normal), lp(answer=normal)),
    lambda site: together(load("clip"), load("sn")),
    lambda site: together(load("hinge")),
    lambda site: together(lp(answer=normal), load("lazy", {"targets": ["gpp"]})),
    lambda site: answering(lambda step: step.scores(step.real)),
    lambda site: answering(lambda step: step.scores(step.real).mean().detach()),
    lambda site: answering(lambda step: 0.5),
    lambda site: together(lp(hook="penalty_scale", answer=lambda self: "4"), load("gp")).scale(
        load("gp"), 7
    ),
    lambda site: answering(lambda step: step.real.detach().zero_()),
    lambda site: answering(lambda step: torch.set_grad_enabled(False)),
    lambda site: answering(lambda step: sys.exit(0)),
    lambda site: answering(lambda step: step.note("Norm", 1.0)),
    lambda site: answering(lambda step: step.input_gradient(torch.zeros(4, 2)).mean()),
    lambda site: (lambda s: s.input_gradient(s.real))(step(lambda x: x.detach().sum(1))),
    lambda site: (lambda s: s.input_gradient(s.real))(
        step(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))
    ),
    lambda site: (lambda s: s.scores(s.real))(step(lambda x: (x.sum(1), x))),
    lambda site: to_host(Gradients(("penalty/lp",), torch.tensor([torch.nan]), ()), 7),
    lambda site: answering(lambda step: step.interplates),
]

QUOTED = [
    " ".join(block.split()) for block in blocks(sections(PLUGINS)["When it goes wrong"], "text")
]


def test_every_quoted_message_is_provoked() -> None:
    assert len(QUOTED) == len(FAULTS)


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_messages_are_real(number: int, site: Path) -> None:
    with pytest.raises((GancoreError, TypeError, AttributeError)) as caught:
        FAULTS[number](site)
    if isinstance(caught.value, AttributeError):
        (message,) = caught.value.__notes__
    else:
        message = str(caught.value)
    core = version("gancore")
    for package in ("gancore", "gancore-clip", "gancore-sn", "gancore-lazy"):
        message = message.replace(f"{package} {core}", f"{package} 0.1.0")
    # which of two distributions is found first is the file system's choice
    message = message.replace(
        "other-lp 2.0 and gancore-lp 0.1.0", "gancore-lp 0.1.0 and other-lp 2.0"
    )
    message = re.sub(r"(<function \w+) at 0x\w+>", r"\1>", message)
    assert " ".join(message.split()) == QUOTED[number], textwrap.fill(message, 100)
