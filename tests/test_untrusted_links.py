"""Links in folders of strangers: no command writes, empties or deletes what one leads to."""

from __future__ import annotations

import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
from helpers import TOY, Gan, parsed, records_of, scores_of

from gancore.errors import InputError
from gancore.leaderboard import files, job
from gancore.leaderboard.costs import measure_costs
from gancore.leaderboard.job import Job
from gancore.leaderboard.result import Result
from gancore.report import pictures, plot_curves
from gancore.report.page import Page, Picture
from gancore.training import Run
from gancore.training.record import Record

EVERY = {
    "checkpoint": {"every": 1, "keep": 2},
    "sample": {"every": 1, "count": 4},
    "log.every": 1,
    "score": {"metrics": ["w2"], "samples": 64, "every": 1},
}
STEPS = 3


class Mine:
    """Files and folders of the user's, outside of what a stranger sent, and links to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.count = 0

    def _named(self, suffix: str) -> Path:
        self.count += 1
        return self.folder / f"{self.count}{suffix}"

    def link(self, path: Path) -> None:
        """Put a link to a file in a path's place."""
        target = self._named("-file")
        target.write_text(f"mine {self.count}")
        self._planted(path, target)

    def link_to_folder(self, path: Path) -> None:
        """Put a link to a folder in a path's place; it holds what pruning would delete."""
        target = self._named("-folder")
        for name in ("kept", "step-000001/kept", ".writing-step-000001/kept"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_text("mine")
        self._planted(path, target)

    def link_to_nothing(self, path: Path) -> None:
        """Put a link to a file that isn't there, and is not to be, in a path's place."""
        self._planted(path, self._named("-nothing"))

    def _planted(self, path: Path, target: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def state(self) -> dict[str, bytes | None]:
        """What there is, to be compared."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(self.folder.rglob("*"))
        }


@pytest.fixture
def mine(tmp_path: Path) -> Mine:
    return Mine(tmp_path / "mine")


def temporary(name: str) -> list[str]:
    """The names that can be foretold under which a file or folder might be written first."""
    *parents, last = name.split("/")
    names = (f".{last}.writing", f".writing-{last}", f".{last}.tmp", f"{last}.part", f".{last}")
    return ["/".join([*parents, each]) for each in names]


def names_in(folder: Path) -> set[str]:
    """The names of the files in a folder and those below it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes that differ in their steps, and the runs of them."""
    from gancore.training import build_trainer as build

    folder = tmp_path_factory.mktemp("trained")
    for name, steps in (("part", 1), ("whole", STEPS)):
        recipe = parsed(TOY, **{**EVERY, "train.steps": steps})
        (folder / f"{name}.toml").write_text(tomli_w.dumps(recipe.table()))
        build(recipe, device="cpu").run(folder / name)
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs draw their curves, as those of users do; one panel does."""
    keys = ("step", "wasserstein")

    def draw(records: Iterable[dict[str, Any]], path: Path, recipe: dict[str, Any]) -> None:
        plot_curves([{key: each[key] for key in keys} for each in records], path, recipe)

    monkeypatch.setattr("gancore.training.session.plot_curves", draw)


LINKS = ("link", "link_to_nothing")


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("kind", LINKS)
def test_a_run_goes_on_where_every_name_that_it_writes_is_a_link(
    trained: Path, gan: Gan, mine: Mine, tmp_path: Path, kind: str
) -> None:
    """All names but those that going on reads, found by making the run once."""
    folder = tmp_path / "run"
    shutil.copytree(trained / "part", folder)
    read = {name for name in names_in(folder) if "step-000001" in name}
    read |= {"recipe.toml", "environment.json", "metrics.jsonl"}
    written = names_in(trained / "whole") - read
    assert {"scores.json", "curves.png", "samples/step-000002.png"} <= written
    assert {"checkpoints/best.json", "checkpoints/step-000003/critic.safetensors"} <= written
    steps = {name for name in written if name.startswith("checkpoints/step-")}
    for name in written - steps:
        getattr(mine, kind)(folder / name)
    for step in {name.rpartition("/")[0] for name in steps}:
        mine.link_to_folder(folder / step)
        for each in temporary(step):
            mine.link_to_folder(folder / each)
    for name in {*(written - steps), "recipe.toml", "environment.json", "metrics.jsonl"}:
        for each in temporary(name):
            getattr(mine, kind)(folder / each)
    before = mine.state()
    code, _, err = gan(
        "run", trained / "whole.toml", "--out", folder, "--device=cpu", "--resume", "--force"
    )
    assert code == 0, err
    assert mine.state() == before
    assert scores_of(Run(folder)) == scores_of(Run(trained / "whole"))
    for name in written:
        assert not (folder / name).is_symlink(), name


def test_scores_report_and_samples_are_written_over_links(
    trained: Path, gan: Gan, mine: Mine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slow in ("over_time", "surface", "weights", "gradients"):
        monkeypatch.setattr(pictures, slow, lambda *given, **more: Picture("", "", "", b""))
    monkeypatch.setattr(pictures, "curves", lambda *given: [])
    monkeypatch.setattr(Page, "html", lambda page: "x" * 101)
    folder = shutil.copytree(trained / "whole", tmp_path / "run")
    plant = itertools.cycle([mine.link, mine.link_to_nothing])
    for name in ("report.html", "samples.gif", "x.npz", "x.png"):
        next(plant)(folder / name)
    mine.link_to_nothing(folder / "scores.json")
    for name in ("scores.json", "report.html", "samples.gif", "x.npz", "x.png", "metrics.jsonl"):
        for each, put in zip(temporary(name), plant, strict=False):
            put(folder / each)
    before = mine.state()
    for command in (
        ["score", folder, "--metrics=modes"],
        ["report", folder],
        ["sample", folder, "-n4", "--out", folder / "x.npz"],
        ["sample", folder, "-n4", "--out", folder / "x.png"],
    ):
        code, _, err = gan(*command, "--device=cpu")
        assert code == 0, err
        assert mine.state() == before, command
    for name in ("report.html", "samples.gif", "x.npz", "x.png", "scores.json"):
        assert (folder / name).stat().st_size > 100
        assert not (folder / name).is_symlink()


def test_pictures_are_not_written_where_links_are(mine: Mine, tmp_path: Path) -> None:
    import torch

    from gancore.report import save_images

    for number in range(2):
        mine.link(tmp_path / "out" / f"{number:06d}.png")
    before = mine.state()
    with pytest.raises(InputError, match="out is not empty"):
        save_images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), tmp_path / "out")
    assert mine.state() == before


@pytest.mark.parametrize("name", ["samples", "checkpoints", "tensorboard"])
def test_a_linked_folder_that_leaves_the_run_is_refused(
    trained: Path, gan: Gan, mine: Mine, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(trained / "part", tmp_path / "run")
    mine.link_to_folder(folder / name)
    before, there = mine.state(), names_in(folder)
    code, _, err = gan(
        "run", trained / "whole.toml", "--out", folder, "--device=cpu", "--resume", "--force"
    )
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith(f"error: {folder / name} is a link that leads out of {folder}")
    assert "Delete it" in line
    assert mine.state() == before
    assert names_in(folder) == there


def test_a_run_may_be_linked_as_a_whole_and_within_itself(
    trained: Path, gan: Gan, tmp_path: Path
) -> None:
    """A large disk elsewhere: the folder is a link, as is one above it, and one inside it."""
    away = shutil.copytree(trained / "part", tmp_path / "disk" / "away")
    shutil.move(away / "samples", away / "grids")
    (away / "samples").symlink_to("grids")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run").symlink_to(away)
    (tmp_path / "above").symlink_to(tmp_path / "runs")
    folder = tmp_path / "above" / "run"
    code, _, err = gan(
        "run", trained / "whole.toml", "--out", folder, "--device=cpu", "--resume", "--force"
    )
    assert code == 0, err
    assert (away / "samples").is_symlink()
    assert (away / "grids" / "step-000003.png").is_file()
    assert scores_of(Run(away)) == scores_of(Run(trained / "whole"))


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


ODD: dict[str, Callable[[Path, Path], Any]] = {
    "a link": Path.symlink_to,
    "a link to nothing": lambda path, mine: path.symlink_to(mine.with_name("nothing")),
    "another name": Path.hardlink_to,
    "a FIFO": fifo,
    "a folder": lambda path, mine: path.mkdir(),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_lock_is_refused(
    trained: Path, gan: Gan, tmp_path: Path, mine: Mine, kind: str
) -> None:
    (file := mine.folder / "file").write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    ODD[kind](folder / ".lock", file)
    before = mine.state()
    code, _, err = gan("run", trained / "part.toml", "--out", folder, "--device=cpu")
    assert code == 2
    (line,) = err.strip().splitlines()
    assert f"{folder / '.lock'} is a link, or no plain file" in line
    assert mine.state() == before
    assert os.listdir(folder) == [".lock"]


def test_records_are_added_to_no_link_and_no_fifo(tmp_path: Path, mine: Mine) -> None:
    run = Run(tmp_path)
    for kind in ("a link", "a link to nothing", "a FIFO", "a folder"):
        (file := mine.folder / "file").write_text("mine")
        ODD[kind](run.metrics_path, file)
        before = mine.state()
        with pytest.raises(InputError, match=r"metrics\.jsonl is a link, or no plain file"):
            run.append(Record(1, 1.0, {"step": 1, "seconds": 1.0}))
        assert mine.state() == before
        run.metrics_path.rmdir() if run.metrics_path.is_dir() else run.metrics_path.unlink()
    run.append(Record(1, 1.0, {"step": 1, "seconds": 1.0}))
    run.append(Record(2, 1.0, {"step": 2, "seconds": 1.0}))
    assert [record["step"] for record in records_of(run)] == [1, 2]


# boards


def made_job(folder: Path) -> Job:
    return Job("gp", 0, parsed(TOY).table(), folder / "runs" / "gp-seed0-0123")


@pytest.mark.parametrize("kind", LINKS)
def test_a_board_writes_over_links(
    tmp_path: Path, mine: Mine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    one = made_job(tmp_path / "board")
    ours = ["recipe.toml", "expected.json", "log.txt"]
    board = ["costs.json", "leaderboard.json", "leaderboard.md", "leaderboard.html"]
    (tmp_path / "board").mkdir()
    for folder, names in ((tmp_path / "board", board), (one.path, ours)):
        for name in names:
            for each in [name, *temporary(name)]:
                getattr(mine, kind)(folder / each)
    (tmp_path / "board" / "costs.json").unlink()  # it is read, and refused if it is none
    before = mine.state()
    monkeypatch.setattr(files, "markdown", lambda result: "x")
    monkeypatch.setattr(files, "page", lambda result, jobs: "x")
    said = b"error: so\n"
    monkeypatch.setattr(
        job.subprocess, "Popen", lambda *_, stdout, **options: os.write(stdout.fileno(), said)
    )
    executor: Any = SimpleNamespace(where="here", measure=lambda recipes: {})
    loaded: Any = SimpleNamespace(threads=1)
    measure_costs(loaded, {}, tmp_path / "board", executor=executor, tell=print)
    one.prepare()
    job.start(one.path, threads=1, device="cpu")
    about = '"format": 1, "metric": "", "higher_is_better": [], "protocol": {}, "budget": null'
    entries = '[{"name": "gp", "scores": {}}]'
    result = Result.model_validate_json(f'{{{about}, "entries": {entries}}}')
    files.write_files(result, [one], tmp_path / "board")
    assert mine.state() == before
    assert (one.path / "log.txt").read_bytes() == said
    for folder, names in ((tmp_path / "board", board), (one.path, ours)):
        assert not [name for name in names if (folder / name).is_symlink()]


def test_a_linked_folder_that_leaves_the_board_is_refused(tmp_path: Path, mine: Mine) -> None:
    for kind in ("link_to_folder", "link_to_nothing"):
        for name in ("runs", "runs/gp-seed0-0123"):
            board = tmp_path / f"{kind}-{name[5:]}"
            getattr(mine, kind)(board / name)
            before = mine.state()
            with pytest.raises(InputError, match=rf"{name} is a link that leads out of {board},"):
                made_job(board).prepare()
            assert mine.state() == before


def test_a_package_is_written_into_no_linked_folder(tmp_path: Path, gan: Gan, mine: Mine) -> None:
    for kind in ("link_to_folder", "link_to_nothing"):
        getattr(mine, kind)(tmp_path / "gancore-mine")
        before = mine.state()
        code, _, err = gan("plugins", "new", "mine", "--in", tmp_path)
        assert code == 2
        assert "gancore-mine is there already: nothing was written" in err
        assert mine.state() == before


# the cache


def test_the_cache_is_written_over_links(tmp_path: Path, mine: Mine) -> None:
    import torch

    from gancore.data.cache import Cache

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        kept = Cache("images", "slot", "key")
        mine.link(kept.file)
        before = mine.state()
        kept.save({"samples": torch.zeros(3)})
        assert mine.state() == before
        assert kept.load() is not None


def test_a_download_replaces_a_link(
    tmp_path: Path, mine: Mine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    from gancore.data.fetch import fetch

    mine.link(tmp_path / "f.bin")
    before = mine.state()
    answer: Any = io.BytesIO(b"x")
    answer.length = 1
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: answer)
    fetch(["http://nowhere/f.bin"], tmp_path / "f.bin", hashlib.md5(b"x").hexdigest())
    assert mine.state() == before
    assert (tmp_path / "f.bin").read_bytes() == b"x"
