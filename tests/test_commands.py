"""Commands of other packages, those of docs/commands.md among them, in folders on the path."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ESCAPE, ROOT, TOY, Gan, started

PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())


def block(language: str, number: int) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)[number]


SOURCE = block("python", 0)
PROJECT = tomllib.loads(block("toml", 0))["project"]

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Write a distribution with one command, as pip would; return the folder that it is in."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    modules = []

    def make(
        source: str = SOURCE,
        *,
        command: str = "runs",
        distribution: str = "gancore-runs",
        version: str = "0.1.0",
        summary: str | None = PROJECT["description"],
        requires: str = "gancore",
    ) -> Path:
        module = distribution.replace("-", "_")
        (site / f"{module}.py").write_text(source, encoding="utf-8")
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        lines = [f"Name: {distribution}", f"Version: {version}", f"Requires-Dist: {requires}"]
        lines += [f"Summary: {summary}"] if summary else []
        text = "\n".join(["Metadata-Version: 2.1", *lines])
        (info / "METADATA").write_text(f"{text}\n", encoding="utf-8")
        point = f"[gancore.commands]\n{command} = {module}:runs\n"
        (info / "entry_points.txt").write_text(point)
        importlib.invalidate_caches()
        modules.append(module)
        return site

    yield make
    for module in modules:
        sys.modules.pop(module, None)


def test_the_page_s_package_adds_its_command(install: Install, tmp_path: Path) -> None:
    """In processes of their own, as users have it."""
    assert PROJECT["entry-points"] == {"gancore.commands": {"runs": "gancore_runs:runs"}}
    site = install()
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    run = tmp_path / "runs" / "digits-seed0"
    run.mkdir(parents=True)
    (run / "recipe.toml").write_text(TOY)

    def gan(*arguments: object) -> tuple[int, str, str]:
        return started(*arguments, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})

    code, out, err = gan("--help")
    assert (code, err) == (0, "")
    title, line = block("text", 0).splitlines()
    assert re.sub(" +", " ", line) in re.sub(" +", " ", out.partition(title)[2])
    assert gan("runs", "runs") == (0, block("text", 1).removeprefix("$ gan runs runs\n"), "")
    code, out, err = gan("runs", "site")
    assert (code, out) == (2, "")
    assert err == "error: site has no runs: name the folder that they are in\n"
    code, out, _ = gan("runs", "--help")
    assert code == 0
    assert "List the runs in FOLDER, with their losses and plugins." in out


def test_nothing_of_a_package_is_imported_to_list_it(install: Install, gan: Gan) -> None:
    install("raise SystemExit('imported')", summary=None)
    code, out, err = gan("--help")
    assert (code, err) == (0, "")
    assert "runs  no summary (gancore-runs 0.1.0)" in out
    code, out, _ = gan("plugins", "list")
    assert code == 0
    assert re.search(r"^runs +0\.1\.0 +gancore-runs +command$", out, re.M)
    assert "gancore_runs" not in sys.modules


def test_without_any_there_is_no_list_of_them(gan: Gan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gancore.cli.installed.entrypoints.find", lambda kind: iter(()))
    assert "other packages" not in gan("--help")[1]


@pytest.mark.parametrize("source", ["import gancore_run", "runs = 'runs'"])
def test_what_is_no_command_is_told_in_a_line(install: Install, gan: Gan, source: str) -> None:
    install(source)
    code, out, err = gan("runs", "here")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.strip() in WORDS


def test_a_command_that_can_not_be_imported_is_no_ok(install: Install, gan: Gan) -> None:
    install("import gancore_run")
    reason = r"command runs \(gancore-runs 0\.1\.0\) can't be imported: ModuleNotFoundError"
    assert re.search(reason, gan("plugins", "--verbose")[1])
    code, out, _ = gan("doctor")
    assert code == 1
    assert re.search(rf"^command runs \(gancore-runs 0\.1\.0\): {reason}", out, re.M)


def test_a_package_that_is_half_removed_ends_no_list(install: Install, gan: Gan) -> None:
    """Its dist-info has no METADATA any more."""
    for path in install().glob("*/METADATA"):
        path.unlink()
    code, out, _ = gan("plugins")
    assert code == 0
    assert re.search(r"^runs +0 +unknown +command$", out, re.M)


def test_what_is_no_command_is_listed_as_none(install: Install, gan: Gan) -> None:
    install("runs = 3")
    assert "3 is no click command" in " ".join(gan("plugins", "--verbose")[1].split())


def test_two_packages_with_one_name(install: Install, gan: Gan) -> None:
    install()
    install(distribution="other-runs", version="2.0")
    code, _, err = gan("runs", "here")
    assert code == 2
    assert err.strip() in WORDS
    out = gan("--help")[1]
    for brought_by in ("gancore-runs 0.1.0", "other-runs 2.0"):
        assert f"runs  ({brought_by}) 2 packages bring it: uninstall all but one." in out


def test_gans_own_command_wins_and_says_so(
    install: Install, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("raise SystemExit('imported')", command="recipe", distribution="other-runs")
    code, out, err = gan("recipe", "schema")
    assert code == 0
    assert json.loads(out)["title"] == "Recipe"
    assert err.count("\n") == 1
    assert err.strip().replace("recipe (other-runs 0.1.0)", "doctor (other-runs 2.0)") in WORDS
    monkeypatch.setenv("RANK", "1")  # not the process that speaks for all
    assert gan("recipe", "schema")[2] == ""
    assert "recipe  (other-runs 0.1.0) gan's own command of this name is used." in gan("--help")[1]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("context.exit(3)", 3, ""),
        ("context.exit(0)", 0, ""),
        ("raise SystemExit(4)", 4, ""),
        ("return 5", 0, ""),
        ("raise click.ClickException('odd')", 1, "Error: odd"),
        ("raise click.UsageError('wrong')", 2, "Error: wrong"),
        ("raise click.Abort", 130, "stopped"),
        ("from gancore.errors import ScoreError; raise ScoreError('no')", 1, "error: no"),
    ],
)
def test_how_a_command_ends(install: Install, gan: Gan, body: str, code: int, said: str) -> None:
    install(f"import click\n\n@click.command()\n@click.pass_context\ndef runs(context): {body}\n")
    ended, out, err = gan("runs")
    assert (ended, out) == (code, "")
    assert said in err


def test_a_group_is_a_command(install: Install, gan: Gan) -> None:
    install("import click\n\n@click.group()\ndef runs(): pass\n\n@runs.command()\n"
            "def best(): click.echo('this')\n")  # fmt: skip
    assert gan("runs", "best") == (0, "this\n", "")


def test_help_of_a_group_whose_list_is_the_default(gan: Gan) -> None:
    code, out, _ = gan("plugins", "--help")
    assert code == 0
    assert "Write a plugin package to start from." in out


def test_a_mistyped_one_is_suggested(install: Install, gan: Gan) -> None:
    install()
    code, _, err = gan("rns")
    assert code == 2
    assert "no command 'rns'. Did you mean 'runs' or 'run'?" in err


def test_one_for_another_version_of_gancore_is_refused(install: Install, gan: Gan) -> None:
    install(requires="gancore>=9999")
    code, _, err = gan("runs", "here")
    assert code == 2
    assert "command runs (gancore-runs 0.1.0) needs gancore>=9999" in err
    assert "gancore_runs" not in sys.modules


def test_what_a_command_is_said_to_do(install: Install, gan: Gan) -> None:
    install()
    (row,) = [row for row in json.loads(gan("plugins", "--json", "--verbose")[1]) if
              row["name"] == "runs"]  # fmt: skip
    assert row == {
        "kind": "command",
        "name": "runs",
        "version": "0.1.0",
        "distribution": "gancore-runs",
        "summary": "List the runs in FOLDER, with their losses and plugins.",
    }


def test_a_summary_moves_no_cursor(install: Install, gan: Gan) -> None:
    install(summary=f"nice {ESCAPE}")
    code, out, _ = gan("--help")
    assert code == 0
    assert all(line.isprintable() for line in out.split("\n"))
    assert "nice" in out
