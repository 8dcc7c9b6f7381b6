"""The user's surroundings: settings of theirs for other programs, and folders, cost no run."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from helpers import TOY, Gan, parsed, started, trainer
from PIL import Image
from rich.console import Console

from gancore.cli.tables import show_scores
from gancore.errors import ContractError, RunError
from gancore.leaderboard.job import command
from gancore.plugins import load
from gancore.provenance.environment import Stretch
from gancore.report import LinesDisplay, display_for, plot_curves, save_grid
from gancore.report.style import our_style
from gancore.scoring.protocol import Protocol, RealSamples, Scores
from gancore.training import session

RECORDS = [{"step": step, "seconds": 1.0, "wasserstein": 0.1 * step} for step in (1, 2, 3)]
TABLE = parsed(TOY).table()


def pixels(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture)


THEIRS: dict[str, Any] = {
    "text.usetex": True,
    "savefig.dpi": 900,
    "figure.dpi": 900,
    "savefig.bbox": "tight",
    "font.family": "a font that nobody has",
    "axes.facecolor": "black",
    "axes.unicode_minus": False,
    "path.sketch": (5, 100, 2),
}


def test_pictures_are_the_same_whatever_the_users_style_is(tmp_path: Path) -> None:
    with matplotlib.rc_context(dict(matplotlib.rcParamsDefault) | {"backend": "agg"}):
        save_grid(torch.eye(2), tmp_path / "plain.png")
    with matplotlib.rc_context(THEIRS):
        save_grid(torch.eye(2), tmp_path / "theirs.png")
        assert matplotlib.rcParams["text.usetex"]  # theirs again
    plain = pixels(tmp_path / "plain.png")
    assert plain.shape[:2] == (500, 500)  # 5 inches at 100 dots
    assert np.array_equal(plain, pixels(tmp_path / "theirs.png"))


@our_style()
def style_now() -> dict[str, Any]:
    return {key: matplotlib.rcParams[key] for key in THEIRS}


def test_every_figure_is_drawn_in_our_style() -> None:
    """All functions that make a figure, or save one, begin with it."""
    with matplotlib.rc_context(THEIRS):
        assert style_now() == {key: matplotlib.rcParamsDefault[key] for key in THEIRS}
    core = Path(session.__file__).parents[1]
    sources = [path.read_text("utf-8") for path in core.rglob("*.py")]
    makers = [
        part
        for source in sources
        for part in source.split("\n\n\n")
        if ("Figure(" in part and "def _" not in part) or ".savefig(" in part
    ]
    assert len(makers) >= 7
    assert all("@our_style()" in part for part in makers), makers


def fails(*arguments: object, **options: object) -> None:
    raise RuntimeError("no glyphs\nat all")


def test_a_picture_that_fails_costs_no_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "plot_curves", plot_curves)
    monkeypatch.setattr("gancore.report.curves._draw", fails)
    monkeypatch.setattr("gancore.report.grids._save_image_grid", our_style()(fails))
    said = io.StringIO()
    points = torch.randn(64, 1, 4, 4).clamp(-1, 1).mul(127).add(127).to(torch.uint8)
    made = trainer(data=points, train={"steps": 2, "batch_size": 8})
    made.run(tmp_path / "run", display=LinesDisplay(said))
    reason = "a picture can't be drawn: RuntimeError: no glyphs at all"
    assert f"no step-000002.png: {reason}\n" in said.getvalue()
    assert f"no curves.png: {reason}\n" in said.getvalue()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir() or list(
        (tmp_path / "run" / "checkpoints").iterdir()
    )


def test_a_full_disk_is_no_fault_of_the_picture() -> None:
    with pytest.raises(OSError, match="full"), our_style():
        raise OSError(28, "full")
    with pytest.raises(RunError, match="a picture can't be drawn: ZeroDivisionError"), our_style():
        _ = 1 / 0


SURROUNDINGS = {
    "usetex": {},
    "backend": {"MPLBACKEND": "nonsense"},
    "warnings": {"PYTHONWARNINGS": "error"},
    "ascii": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "COLUMNS": "0"},
}


def test_a_run_in_odd_surroundings_is_scored(tmp_path: Path) -> None:
    """All of them at once, in a process as users start it."""
    (tmp_path / "toy.toml").write_text(TOY.replace("metrics = []", 'metrics = ["modes"]'))
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: none such\n")
    for name in ("random", "torch", "json"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not Python`s')\n")
    odd = {key: value for each in SURROUNDINGS.values() for key, value in each.items()}
    env = {key: value for key, value in os.environ.items() if key not in ("HOME", "TMPDIR")}
    code, out, err = started(
        *("run", "toy.toml", "--out", "run", "--set", "optimizer.alpha=0.5"),
        cwd=tmp_path,
        env={**env, **odd, "TMPDIR": "/nowhere"},
    )
    assert code == 0, err
    assert "modes covered  " in out
    assert "warning: optimizer.alpha = 0.5 has no effect" in err
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["step"] == 3
    assert pixels(tmp_path / "run" / "curves.png").std() > 10


def test_children_do_not_import_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What starts a board's run finds Python's modules, and packages on PYTHONPATH, there too."""
    for name in ("random", "json", "typing"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not Python`s')\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "theirs.py").write_text("")
    python, *flags = command(tmp_path, "cpu")[:2]
    done = subprocess.run(
        [python, *flags, "-c", "import random, json, typing, theirs"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "elsewhere")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    core = Path(session.__file__).parents[1]
    starts = [
        line
        for path in core.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if "[sys.executable" in line
    ]
    assert len(starts) == 1
    assert all('"-P"' in line for line in starts)


def test_a_current_folder_that_is_gone_is_told(
    gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for arguments in (("score", tmp_path), ("plugins",), ("compare", "a", "b")):
        code, _, err = gan(*arguments)
        assert (code, err) == (2, "error: the current folder is gone: cd to one that is there\n")


@pytest.mark.parametrize("columns", ["0", "1", "5", "-3", "many"])
def test_scores_show_whole_however_narrow_it_is(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    reference = RealSamples.model_construct(**{"name": "data", "split": "all", "samples": 2})
    protocol = Protocol.model_construct(reference=reference, samples=2, seed=0)
    show_scores(Scores.model_construct(scores={"w2": 1.5}, protocol=protocol))
    assert "2-Wasserstein distance  1.5\n" in capsys.readouterr().out


def test_a_dumb_terminal_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from gancore.leaderboard.board import Board
    from gancore.leaderboard.display import BoardDisplay

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "dumb")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    assert type(display_for(Terminal())) is LinesDisplay
    shown = Terminal()
    entry = {"name": "a", "set": ()}
    board = Board.model_validate_json(
        json.dumps({"recipe": "r", "baseline": "a", "seeds": [0], "entry": [entry]})
    )
    with BoardDisplay(board, shown) as display:
        display.say("a :skull: [b]")
    assert shown.getvalue() == "a :skull: [b]\n"


TOPS: dict[str, tuple[str, str]] = {
    "NumPy's errors": ("numpy.seterr(all='raise')", "NumPy's treatment of errors"),
    "denormals": ("torch.set_flush_denormal(True)", "flushing of denormals at True"),
    "MKL-DNN": ("torch.backends.mkldnn.enabled = False", "mkldnn.enabled at False"),
    "cuDNN": ("torch.backends.cudnn.enabled = False", "cudnn.enabled at False"),
    "dtype": ("torch.set_default_dtype(torch.float64)", "default dtype at torch.float64"),
}


@pytest.fixture
def leaver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Install a plugin, `leaver`, whose package does something when it is imported."""

    def install(top: str) -> None:
        package = tmp_path / "leaver"
        package.mkdir()
        head = "import random, warnings\nimport numpy, torch\n"
        (package / "__init__.py").write_text(f"{head}{top}\n")
        (package / "sub.py").write_text(
            "from gancore import hookimpl, plugin\n@plugin\nclass Leaver:\n"
            "    @hookimpl\n    def post_step(self): ...\n"
        )
        info = tmp_path / "leaver-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaver\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text("[gancore.plugins]\nleaver = leaver.sub:Leaver\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    for name in ("leaver", "leaver.sub"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("top", TOPS)
def test_what_an_import_leaves_changed_is_told_of_it(
    top: str, leaver: Callable[[str], None]
) -> None:
    act, said = TOPS[top]
    leaver(act)
    with pytest.raises(ContractError, match=rf"the import of plugin leaver \(leaver 1.5\).*{said}"):
        load("leaver")
    assert np.geterr()["divide"] == "warn"
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cudnn.enabled
    assert torch.get_default_dtype() is torch.float32
    assert float(np.float64(5e-324) * 1.0) > 0


def test_what_an_import_draws_or_filters_is_put_back(leaver: Callable[[str], None]) -> None:
    leaver(
        "torch.manual_seed(7); numpy.random.seed(7); random.seed(7)\n"
        "warnings.simplefilter('ignore')"
    )
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)
    wanted = [random.random(), torch.rand(2).tolist(), np.random.rand()]
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)
    before = list(warnings.filters)
    load("leaver")
    assert list(warnings.filters) == before
    assert [random.random(), torch.rand(2).tolist(), np.random.rand()] == wanted


def test_what_users_name_is_no_markup(gan: Gan, tmp_path: Path, monkeypatch: Any) -> None:
    """An alias, in a live display as in lines."""
    from gancore.report import LiveDisplay

    alias = "x[/x] :skull:[b]"
    file = io.StringIO()
    display = LiveDisplay(Console(file=file, force_terminal=True, width=200))
    display.begin("title", 0, 2)
    display.advance(1, {"step": 1, f"penalty/{alias}": 2.5})
    display.count(alias, 1, 2)
    display.say(alias)
    display.end()
    assert f"penalty/{alias}" in file.getvalue()
    assert file.getvalue().count(alias) >= 3
    core = Path(session.__file__).parents[1]
    for path in core.rglob("*.py"):  # nothing else makes a console than what was looked at
        if "Console(" in path.read_text("utf-8"):
            assert path.relative_to(core).as_posix() in (
                "cli/tables.py",
                "data/progress.py",
                "leaderboard/display.py",
                "report/display.py",
            )


def test_bench_takes_names_for_text(capsys: pytest.CaptureFixture[str]) -> None:
    from gancore.cli.bench import Entry, show

    recipe = parsed(TOY).model_copy(
        update={"data": parsed(TOY).data.model_copy(update={"name": "d[/d]"})}
    )
    about = Stretch.model_construct(device="cpu", threads=1, versions={"torch": "2"})
    show([Entry("x[/x]", {}, None)], recipe, about, 1)
    out = capsys.readouterr().out
    assert "x[/x]" in out
    assert "d[/d]" in out
