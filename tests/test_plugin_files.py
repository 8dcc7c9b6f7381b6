"""--plugin-file: a plugin in a file, from the command line to the run folder and back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, TOY, Gan, started

import gancore
from gancore import entrypoints
from gancore.errors import ContractError, PluginError
from gancore.files.writing import delete

PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())
(SOURCE,) = re.findall(r"^```python\n(# one_sided\.py\n.*?)^```$", PAGE, re.M | re.S)

SIZE = """
import torch
from gancore import hookimpl, plugin

@plugin
class Size:
    weight: float = 10.0

    @hookimpl
    def penalty(self, step):
        norm = step.input_gradient(step.interpolates).flatten(1).norm(dim=1)
        return self.weight * norm.square().mean()
"""
"""gp with target = 0, whose penalty is not 0 from the start."""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    entrypoints.forget_files()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a recipe that names the plugin of a file beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "size.py").write_text(SIZE)
    (tmp_path / "toy.toml").write_text(TOY.replace('"gp"', '"size"'))
    return tmp_path


def origin(path: Path) -> str:
    return f"{path.name} (code {hashlib.sha256(path.read_bytes()).hexdigest()[:8]})"


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_trains_as_the_installed_plugin_of_the_same_formula(folder: Path, gan: Gan) -> None:
    given = ("--plugin-file", "size.py", "--set", "plugin.0.weight=2.5")
    code, _, err = gan("run", "toy.toml", "--out", "own", *given)
    assert (code, err) == (0, "")
    (folder / "gp.toml").write_text(TOY.replace('"gp"', '"gp"\ntarget = 0.0\nweight = 2.5'))
    assert gan("run", "gp.toml", "--out", "gp")[0] == 0
    pairs = list(zip(records(folder / "own"), records(folder / "gp"), strict=True))
    assert len(pairs) == 2
    for own, gp in pairs:
        assert own["penalty/size"] > 0
        assert own["penalty/size"] == pytest.approx(gp["penalty/gp"], rel=1e-4)
    recipe = tomllib.loads((folder / "own" / "recipe.toml").read_text())
    assert recipe["plugin"] == [{"name": "size", "weight": 2.5}]
    environment = json.loads((folder / "own" / "environment.json").read_text())
    assert environment["plugins"]["size"] == origin(folder / "size.py")
    copies = [path.relative_to(folder / "own") for path in (folder / "own").rglob("*.py")]
    assert copies == [Path("plugin-files", "size.py")]
    assert (folder / "own" / copies[0]).read_text() == SIZE
    assert not (folder / "gp" / "plugin-files").exists()


def test_nothing_of_it_is_left_after_the_command(folder: Path, gan: Gan) -> None:
    assert "size" in gan("plugins", "--plugin-file", "size.py")[1]
    assert "size" not in gan("plugins")[1]
    assert entrypoints.files() == ()
    assert not [name for name in sys.modules if name.startswith("plugin_file_")]


def resume(gan: Gan, *arguments: str) -> tuple[int, str, str]:
    return gan("run", "toy.toml", "--out", "run", "--resume", *arguments)


WITH = ("--plugin-file", "size.py")


def test_resuming_takes_the_same_file_again(folder: Path, gan: Gan) -> None:
    assert resume(gan, *WITH)[0] == 0
    before = origin(folder / "size.py")
    code, out, err = resume(gan)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "no plugin 'size' is installed." in err
    assert err.endswith(" It was run with --plugin-file size.py: give that again\n")
    assert "plugin-file" not in resume(gan, *WITH, "--set", "data.name=celeba")[2]
    (folder / "size.py").write_text(SIZE.replace("square()", "square().sqrt()"))
    code, _, err = resume(gan, *WITH, "--set", "train.steps=5")
    assert code == 2
    assert f"plugin size: was '{before}', is '{origin(folder / 'size.py')}'" in err
    assert (folder / "run" / "plugin-files" / "size.py").read_text() == SIZE
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "size.py").write_text(SIZE)  # where it is does not matter
    moved = ("--plugin-file", "elsewhere/size.py", "--set", "train.steps=5")
    assert resume(gan, *moved)[0] == 0
    assert records(folder / "run")[-1]["step"] == 5
    assert resume(gan, *WITH, "--force", "--set", "train.steps=6")[0] == 0
    assert "sqrt" in (folder / "run" / "plugin-files" / "size.py").read_text()
    (folder / "toy.toml").write_text(TOY)
    assert resume(gan, "--force", "--set", "train.steps=7")[0] == 0
    assert not list((folder / "run" / "plugin-files").iterdir())


def test_the_copy_in_a_run_folder_is_never_run(folder: Path, gan: Gan) -> None:
    assert resume(gan, *WITH)[0] == 0
    copy = folder / "run" / "plugin-files" / "size.py"
    poison = f"open({str(folder / 'was-run')!r}, 'x')\n"
    copy.write_text(poison)
    (copy.parent / "__init__.py").write_text(poison)
    for arguments in (
        ("report", "run"),
        ("score", "run", "--metrics", "w2"),
        ("sample", "run", "--out", "samples.npz"),
        ("recipe", "check", "run/recipe.toml"),
    ):
        code, _, err = gan(*arguments)
        assert code == 0, err
    assert resume(gan)[0] == 2
    assert resume(gan, *WITH, "--set", "train.steps=4")[0] == 0
    assert not (folder / "was-run").exists()
    assert [path.name for path in copy.parent.iterdir()] == ["size.py"]
    assert copy.read_text() == SIZE


def test_a_folder_that_is_a_link_out_is_refused(folder: Path, gan: Gan) -> None:
    assert resume(gan, *WITH)[0] == 0
    (folder / "others").mkdir()
    (folder / "others" / "theirs.py").write_text("")
    delete(folder / "run" / "plugin-files")
    (folder / "run" / "plugin-files").symlink_to(folder / "others")
    code, _, err = resume(gan, *WITH, "--set", "train.steps=4")
    assert code == 2
    assert "is a link that leads out of" in err
    assert [path.name for path in (folder / "others").iterdir()] == ["theirs.py"]


PREPARES = SIZE.replace(
    "    @hookimpl",
    """    @hookimpl
    def prepare_critic(self, critic):
        for module in list(critic.modules()):
            if isinstance(module, torch.nn.Linear):
                torch.nn.utils.parametrizations.weight_norm(module)

    @hookimpl""",
)


def test_what_reads_a_run_does_without_it(folder: Path, gan: Gan) -> None:
    """Pictures of a critic that the plugin has prepared are missing, and told."""
    (folder / "size.py").write_text(PREPARES)
    assert resume(gan, *WITH, "--set", 'score.metrics=["w2"]')[0] == 0
    score = json.loads((folder / "run" / "scores.json").read_text())["scores"]["w2"]
    (folder / "size.py").unlink()
    assert gan("score", "run", "--metrics", "w2")[0] == 0
    assert json.loads((folder / "run" / "scores.json").read_text())["scores"]["w2"] == score
    assert gan("sample", "run", "-n", "7", "--out", "samples.npz")[0] == 0
    assert all(array.shape[0] == 7 for array in np.load("samples.npz").values())
    code, _, err = gan("report", "run")
    assert code == 0, err
    page = (folder / "run" / "report.html").read_text()
    assert "Pictures of the critic are missing: no plugin &#39;size&#39; is installed" in page


def test_a_file_s_name_may_hold_any_character(folder: Path, gan: Gan) -> None:
    """A no-break space, say: its run is scored and resumed, and its origin is plain text."""
    named = (folder / "size.py").rename(folder / "si\u00a0ze.py")
    assert resume(gan, "--plugin-file", named.name)[0] == 0
    assert gan("score", "run", "--metrics", "w2")[0] == 0
    assert resume(gan, "--plugin-file", named.name, "--set", "train.steps=8")[0] == 0
    environment = gancore.Run(folder / "run").read_environment()
    assert environment is not None
    assert environment.plugins["size"] == origin(named).replace("\u00a0", "\\xa0")


BOARD = """
recipe = "toy.toml"
baseline = "own"
seeds = [0]
set = ['score.metrics=["w2"]']
[[entry]]
name = "own"
"""


def test_a_board_gives_it_to_its_runs(folder: Path, gan: Gan) -> None:
    (folder / "board.toml").write_text(BOARD)
    board = ("leaderboard", "board.toml", "--no-cost", "--out", "board", *WITH)
    code, out, err = gan(*board, "--commands")
    assert code == 0, err
    (line,) = out.splitlines()
    assert f"--plugin-file={folder / 'size.py'}" in line.split()
    code, out, err = gan(*board)
    assert code == 0, out + err
    (run,) = (folder / "board" / "runs").iterdir()
    assert (run / "plugin-files" / "size.py").read_text() == SIZE
    plugins = json.loads((run / "environment.json").read_text())["plugins"]
    assert plugins["size"] == origin(folder / "size.py")
    code, _, err = gan(*board[:-2])
    assert code == 2
    assert "It was run with --plugin-file size.py: give that again" in err
    assert gan(*board, "--commands")[1] == ""  # it is done
    (folder / "size.py").write_text(f"{SIZE}\n# edited\n")
    code, out, err = gan(*board, "--commands")
    assert len(out.splitlines()) == 1
    assert "1 run is made again" in err


def test_it_is_checked_and_measured(folder: Path, gan: Gan) -> None:
    code, out, _ = gan("plugins", "check", "size", *WITH)
    assert code == 1  # its option is in no docstring
    assert re.search(r"^options +failed", out, re.M)
    (folder / "one_sided.py").write_text(SOURCE)
    code, out, err = gan("plugins", "check", "one_sided", "--plugin-file", "one_sided.py")
    assert (code, err) == (0, ""), out
    assert out.startswith("one_sided (one_sided.py)\n")
    bench = ("bench", "toy.toml", "--plugins", "gp+size", "--rounds", "1", "--json")
    code, out, err = gan(*bench, *WITH)
    assert code == 0, err
    entries = json.loads(out)["entries"]
    assert entries[1]["plugins"]["size"] == origin(folder / "size.py")


def test_the_list_says_where_it_is(folder: Path, gan: Gan) -> None:
    (row,) = [row for row in json.loads(gan("plugins", "--json", "--verbose", *WITH)[1])
              if row["name"] == "size"]  # fmt: skip
    assert row["distribution"] == str(folder / "size.py")
    assert row["options"] == {"weight": "float = 10.0"}
    assert row["hooks"] == ["penalty"]
    assert f"size  {folder / 'size.py'}\n" in gan("plugins", "--verbose", *WITH)[1]


def test_one_that_no_recipe_names_is_told(folder: Path, gan: Gan) -> None:
    (folder / "one_sided.py").write_text(SOURCE)
    both = ("--plugin-file", "one_sided.py", *WITH)
    code, _, err = gan("run", "toy.toml", "--dry-run", *both)
    assert code == 0
    assert err.count("\n") == 1
    assert err.replace(str(folder), "/home/me").strip() in WORDS
    code, _, err = gan("bench", "toy.toml", "--rounds", "1", "--plugins", "one_sided+size", *both)
    assert (code, "warning" in err) == (0, False)


LOSS = """
from gancore import hookimpl, plugin

@plugin
class MyLoss:
    @hookimpl
    def critic_loss(self, step):
        return (step.scores(step.fake) - step.scores(step.real)).mean()

    @hookimpl
    def generator_loss(self, step):
        return -step.scores(step.fake).mean()
"""


def test_a_loss_may_be_in_one(folder: Path, gan: Gan) -> None:
    (folder / "losses.py").write_text(LOSS)
    code, out, err = gan(
        *("run", "toy.toml", "--dry-run", "--plugin-file", "losses.py", "--no-plugin", "size"),
        *("--set", "loss.name=my_loss"),
    )
    assert (code, err) == (0, "")
    assert "my_loss (losses.py)" in out


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def broken(:\n", ", line 1: SyntaxError: invalid syntax"),
        ("x = 1\n\n1 / 0\n", ", line 3: ZeroDivisionError: division by zero"),
        ("def f():\n    raise ValueError('a\\nb')\nf()\n", ", line 2: ValueError: a b"),
        ("import json\njson.loads('{')\n", ", line 2: JSONDecodeError"),
        ("import no_such_module_anywhere\n", ", line 1: ModuleNotFoundError: No module named"),
        ("raise SystemExit('bye')\n", ", line 1: SystemExit: bye"),
        ("# one\0two\n", "SyntaxError: source code string cannot contain null bytes"),
        ("x = '\x1b[2J'; raise ValueError(x)", r", line 1: ValueError: \x1b[2J. Mend"),
        ("x = 1\n", ": no class in it is marked with @gancore.plugin: mark one"),
        ("from gancore_gp import GradientPenalty\n", ": no class in it is marked with"),
        ("from gancore_gp import *\nclass Mine(GradientPenalty): pass\n", ": no class in it is"),
        ("import dataclasses\n@dataclasses.dataclass\nclass A: pass\n", ": no class"),
        (
            "from dataclasses import dataclass\n@dataclass(frozen=True, eq=False)\nclass A: pass\n",
            ": no class in it is marked with",
        ),
        (
            "from gancore import plugin\n@plugin\nclass Lp:\n    weight = 1.0\n",
            ", line 2: TypeError: Lp.weight has a default but no annotation",
        ),
        (
            SIZE.replace("class Size", "class GP"),
            ": its class GP is the plugin 'gp', and so is gp (gancore-gp 0.1.0): rename the class",
        ),
        (
            SIZE + SIZE.replace("Size", "size"),
            ": its classes Size and size are both the plugin 'size': rename one",
        ),
        ("#" * (1 << 20) + "\n", "over the limit of 1024 KiB"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_one_line(folder: Path, gan: Gan, source: str, said: str) -> None:
    path = folder / "wrong.py"
    path.write_text(source)
    code, out, err = gan("run", "toy.toml", "--plugin-file", path)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert str(path) in err
    assert err.count("\n") == 1
    assert err.strip("\n").isprintable()
    assert entrypoints.files() == ()
    assert "plugin_file_wrong" not in sys.modules
    assert not (folder / "runs").exists()


def test_what_is_no_file_is_one_line(folder: Path, gan: Gan) -> None:
    (folder / "folder.py").mkdir()
    os.mkfifo(folder / "fifo.py")
    (folder / "size.txt").write_text(SIZE)
    for name, said in {
        "folder.py": "Is a directory",
        "fifo.py": "it is a FIFO, and no regular file",
        "gone.py": "No such file or directory",
        "size.txt": "expected a file of Python code, NAME.py",
        "~nobody_here/x.py": "~nobody_here has no home here",
    }.items():
        code, out, err = gan("plugins", "check", "size", "--plugin-file", name)
        assert (code, out) == (2, ""), name
        assert said in err
        assert err.count("\n") == 1


def test_the_page_s_messages_are_real(folder: Path, gan: Gan) -> None:
    path = folder / "one_sided.py"
    without = SOURCE.replace(", plugin\n", "\n")
    for source in (without, "", SOURCE.replace("OneSided", "Gp"), None):
        path.unlink(missing_ok=True)
        if source is not None:
            path.write_text(source)
        code, _, err = gan("run", "toy.toml", "--plugin-file", path)
        assert code == 2
        assert err.replace(str(folder), "/home/me").strip() in WORDS


def test_two_files_of_one_name(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "size.py").write_text(SOURCE)
    first = entrypoints.add_file(Path("size.py"))
    assert entrypoints.add_file(folder / "size.py") is first
    assert entrypoints.files() == (folder / "size.py",)
    with pytest.raises(PluginError, match=r"other/size\.py: size\.py is added too: rename one"):
        entrypoints.add_file(Path("other", "size.py"))


def test_two_files_with_one_plugin(folder: Path) -> None:
    entrypoints.add_file(Path("size.py"))
    (folder / "again.py").write_text(SIZE)
    with pytest.raises(PluginError, match=r"is the plugin 'size', and so is size \(size\.py\)"):
        entrypoints.add_file(Path("again.py"))
    assert entrypoints.files() == (folder / "size.py",)


def test_its_content_is_what_was_run(folder: Path) -> None:
    before = origin(folder / "size.py")
    entrypoints.add_file(Path("size.py"))
    (folder / "size.py").write_text("edited meanwhile")
    available = entrypoints.get("plugin", "size")
    assert entrypoints.origin(available) == before
    assert available.file is not None
    assert available.file.content.decode() == SIZE


def test_what_it_draws_or_sets_when_it_is_run_is_undone(folder: Path) -> None:
    (folder / "draws.py").write_text(f"import torch\ntorch.manual_seed(1)\n{SIZE}")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    entrypoints.add_file(Path("draws.py"))
    assert torch.equal(torch.rand(3), expected)
    entrypoints.forget_files()
    (folder / "sets.py").write_text(f"import torch\ntorch.set_grad_enabled(False)\n{SIZE}")
    with pytest.raises(ContractError, match=r"the import of sets\.py left the gradient mode"):
        entrypoints.add_file(Path("sets.py"))
    assert torch.is_grad_enabled()
    assert entrypoints.files() == ()


def test_a_recipe_can_name_no_file(folder: Path, gan: Gan) -> None:
    poison = folder / "poison.py"
    poison.write_text(f"open({str(folder / 'was-run')!r}, 'x')\n{SIZE}")
    for name in ("poison.py", str(poison), "poison", "poison:Size", "plugin_file_poison:Size"):
        (folder / "bad.toml").write_text(TOY.replace('"gp"', json.dumps(name)))
        assert gan("run", "bad.toml")[0] == 2
    (folder / "bad.toml").write_text(f'plugin_file = "poison.py"\n{TOY}')
    code, _, err = gan("run", "bad.toml")
    assert code == 2
    assert "plugin_file: unknown key" in err
    assert not (folder / "was-run").exists()


def test_only_the_option_adds_files() -> None:
    sources = {path: path.read_text("utf-8") for path in (ROOT / "gancore").rglob("*.py")}
    callers = {path.name for path, source in sources.items() if "add_file(" in source}
    assert callers == {"plugin_files.py", "__init__.py"}  # the option, and where it is defined


def test_what_it_draws_is_undone_where_torch_is_not_imported_yet(folder: Path) -> None:
    (folder / "draws.py").write_text(f"import torch\ntorch.manual_seed(1)\n{SIZE}")
    code = (
        "from pathlib import Path; from gancore import entrypoints\n"
        "entrypoints.add_file(Path('draws.py'))\n"
        "import torch; assert torch.initial_seed() != 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)


def test_in_a_process_of_its_own(folder: Path) -> None:
    """Torch is not imported yet where the file is run first."""
    (folder / "draws.py").write_text(f"import torch\ntorch.manual_seed(1)\n{SIZE}")
    code, _, err = started("run", "toy.toml", "--out", "a", *WITH, cwd=folder)
    assert code == 0, err
    given = ("--plugin-file", "draws.py")
    code, _, err = started("run", "toy.toml", "--out", "b", *given, cwd=folder)
    assert code == 0, err
    values = [
        [
            {key: value for key, value in record.items() if key != "seconds"}
            for record in records(run)
        ]
        for run in (folder / "a", folder / "b")
    ]
    assert values[0] == values[1]
