"""From `gan plugins new` to a run with the new plugin, in a fresh virtual environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest

from gancore.cli.scaffold import write_plugin
from gancore.errors import InputError

ROOT = Path(__file__).parent.parent


BOTH = """
import json, sys
from gancore.cli import main

for arguments in json.loads(sys.argv[1]):  # in one process: its imports take the longest
    sys.argv = ["gan", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, arguments
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """The Python of a fresh environment that borrows what is installed here, and has no more."""
    venv.create(tmp_path / "venv", with_pip=False)
    (python,) = (tmp_path / "venv" / "bin").glob("python3")
    code = "import site; print(site.getsitepackages()[0])"
    site = Path(run(python, "-c", code, cwd=ROOT).strip())
    # addsitedir, unlike PYTHONPATH, follows the editable installs there
    paths = [sysconfig.get_path("purelib"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    lines = [f"import site; site.addsitedir({path!r})" for path in paths if path]
    (site / "borrowed.pth").write_text("\n".join(lines) + "\n")
    return python


@pytest.mark.slow
def test_from_an_idea_to_a_run(tmp_path: Path, fresh: Path) -> None:
    run(fresh, "-m", "gancore", "plugins", "new", "my_idea", cwd=tmp_path)
    package = tmp_path / "gancore-my-idea"
    pip = (fresh, "-m", "pip", "install", "--no-deps", "--no-build-isolation")
    run(*pip, "-e", package, cwd=tmp_path)
    listed = json.loads(run(fresh, "-m", "gancore", "plugins", "--json", cwd=tmp_path))
    (row,) = [row for row in listed if row["name"] == "my_idea"]
    assert (row["kind"], row["distribution"]) == ("plugin", "gancore-my-idea")
    assert row["version"] == "0.1.0"
    tested = run(fresh, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=package)
    assert " passed" in tested
    train = [
        *("run", str(ROOT / "recipes" / "wgan_gp_digits.toml")),
        *("--set", "plugin.1.name=my_idea", "--set", "plugin.1.weight=0.5"),
        *("--set", "train.steps=2", "--set", "score.metrics=[]", "--out", "run"),
    ]
    told = run(
        fresh, "-c", BOTH, json.dumps([["plugins", "check", "my_idea"], train]), cwd=tmp_path
    )
    assert "0 failed" in told
    assert "penalty/my_idea" in told
    recipe = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())
    assert recipe["plugin"][1] == {"name": "my_idea", "weight": 0.5}


def test_the_written_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_plugin("carded", tmp_path)
    monkeypatch.syspath_prepend(folder / "src")
    card = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    assert namespace["critic"].weight.grad.abs().sum() > 0


def test_what_is_written(tmp_path: Path) -> None:
    folder = write_plugin("my_idea", tmp_path)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        ".github/workflows/tests.yml",
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "src/gancore_my_idea/__init__.py",
        "src/gancore_my_idea/py.typed",
        "tests/test_my_idea.py",
    }
    for path in folder.rglob("*"):
        if path.is_file():
            assert "{{" not in path.read_text().replace("${{", "")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["gancore.plugins"] == {"my_idea": "gancore_my_idea:MyIdea"}
    assert project["dependencies"][0] == "gancore>=0.1,<0.2"


@pytest.mark.parametrize("name", ["my_penalty", "my"])
def test_the_function_says_penalty_once(name: str, tmp_path: Path) -> None:
    folder = write_plugin(name, tmp_path)
    text = (folder / "src" / f"gancore_{name}" / "__init__.py").read_text("utf-8")
    assert re.findall(r"^def (\w+)\(", text, re.M)[0] == "my_penalty"


def test_the_written_code_is_clean(tmp_path: Path) -> None:
    folders = [write_plugin(name, tmp_path) for name in ("my_idea", "x", "path_length")]
    for folder in folders:
        for ruff in ("check --isolated", "format --check --isolated --line-length=100"):
            run(sys.executable, "-m", "ruff", *ruff.split(), ".", cwd=folder)
    run(sys.executable, "-m", "mypy", "--strict", *(each / "src" for each in folders), cwd=ROOT)


@pytest.mark.parametrize("name", ["My", "1st", "a-b", "a__b", "class", "", "../x", "a b"])
def test_a_bad_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no name for a plugin"):
        write_plugin(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plugin gp \(gancore-gp 0\.1\.0\) already"):
        write_plugin("gp", tmp_path)
    (tmp_path / "gancore-mine").mkdir()
    (tmp_path / "gancore-mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already: nothing was written"):
        write_plugin("mine", tmp_path)
    assert [path.name for path in (tmp_path / "gancore-mine").iterdir()] == ["notes.txt"]
