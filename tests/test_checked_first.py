"""Cheap checks first: what can be refused before samples, data or training is, in every command.

And what a run's folder lacks, has broken, or was given in Python, is said with what to do.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DIGITS, TOY, Critic, Gan, Generator, images, is_clear, trainer
from safetensors.torch import load_file, save_file

import gancore
from gancore.data import Dataset
from gancore.errors import GancoreError, InputError, PluginError, ScoreError
from gancore.files.storage import refuse_taken, refuse_unwritable
from gancore.leaderboard import page, plots
from gancore.leaderboard.board import Board
from gancore.leaderboard.evaluate import NO_RECORDS, evaluate
from gancore.leaderboard.job import Job
from gancore.leaderboard.result import RunNote
from gancore.recipe import Score
from gancore.report import save_images
from gancore.scoring import check_scoring, check_section
from gancore.scoring.digits import DigitsExtractor
from gancore.training import Run, loading
from gancore.training.record import Record

NOTHING = "sampling, training and loading are late"


def late(*arguments: object, **options: object) -> Any:
    raise AssertionError(NOTHING)


@pytest.fixture
def nothing_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all that takes long fail the test."""
    for name in (
        "gancore.leaderboard.plan.load_data",  # before the ones that they import
        "gancore.report.writer.generate",
        "gancore.cost.load_data",
        "gancore.training.building.load_data",
        "gancore.training.loading.calibrated",
        "gancore.scoring.sampling.generate",
    ):
        monkeypatch.setattr(name, late)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of points that was not scored."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "toy.toml").write_text(TOY)
    gancore.run(folder / "toy.toml", folder / "run", {"train.steps": 1, "sample.count": 4})
    return folder / "run"


@pytest.fixture(scope="module")
def of_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made from Python."""
    folder = tmp_path_factory.mktemp("python")
    trainer(train={"steps": 1, "batch_size": 8}).run(folder / "run")
    return folder / "run"


TOO_LATE: dict[str, tuple[list[str], str]] = {
    "scores of none": (["score", "RUN"], "its recipe asks for no scores (score.metrics = [])"),
    "scores of both": (["score", "RUN", "--metrics", "fid,w2"], "fid are of images, w2 of points"),
    "another extractor": (
        ["score", "RUN3", "--metrics", "fid"],
        "score.extractor: there is no 'digit'. Did you mean 'digits'?",
    ),
    "scores of an empty name": (
        ["score", "RUN", "--metrics", ""],
        "score.metrics: no metric '' is installed. Known: ",
    ),
    "too few": (["score", "RUN2", "--metrics", "isc", "--samples", "9"], "IS needs 10 samples"),
    "too few for FID": (["score", "RUN2", "--metrics", "fid", "--samples", "63"], "63 generated"),
    "no device": (["score", "RUN", "--metrics", "w2", "--device", "cuda:9"], "CUDA device"),
    "broken scores": (["score", "RUN4", "--metrics", "w2"], "scores.json: is no JSON"),
    "a report's scores": (["report", "RUN4"], "scores.json: is no JSON"),
    "samples over a file": (["sample", "RUN", "--out", "toy.toml/x.npz"], "toy.toml can't be"),
    "samples among others": (["sample", "RUN", "--out", "full"], "full is not empty (a.png)"),
    "samples on no device": (["sample", "RUN", "--out", "x", "--device", "cuda:9"], "CUDA device"),
    "a taken folder": (["run", "toy.toml", "--out", "full"], "full is not empty: go on"),
    "a folder of one's own": (
        ["run", "own/recipe.toml", "--resume", "--out", "own"],
        "own is no run's folder, and has a recipe.toml, which a run would replace",
    ),
    "a folder in a file": (["run", "toy.toml", "--out", "toy.toml/x"], "toy.toml/x can't be"),
    "a run of neither": (
        ["run", "toy.toml", "--set", 'score.metrics=["fid", "w2"]', "--out", "x"],
        "fid are of images, w2 of points",
    ),
    "a network's option": (
        ["run", "toy.toml", "--set", "critic.widht=3", "--out", "x"],
        "critic: widht: unknown key. Did you mean 'width'?",
    ),
    "weights of nowhere": (
        ["run", "digits.toml", "--set", "score.weights=none.pth", "--out", "x"],
        "score.weights: there is no file",
    ),
    "weights that are a folder": (
        ["run", "digits.toml", "--set", "score.weights=full", "--out", "x"],
        "can't be read: Is a directory",
    ),
    "a dry run": (["run", "toy.toml", "--dry-run", "--set", "critic.widht=3"], "widht"),
    "costs": (["bench", "toy.toml", "--set", "critic.widht=3"], "widht: unknown key"),
    "a board's network": (["leaderboard", "b.toml", "--out", "x", "--no-cost"], "widht: unknown"),
    "a board in a file": (["leaderboard", "b.toml", "--out", "toy.toml/x"], "toy.toml/x can't be"),
    "a cluster after all": (["leaderboard", "b.toml", "--ray", "auto", "--out", "x"], "widht"),
    "a checked recipe": (["recipe", "check", "both.toml"], "fid are of images, w2 of points"),
    "a tolerance": (["compare", "none", "none", "--tolerance", "nan"], "--tolerance nan"),
    "a name": (["plugins", "new", "9"], "is no name for a plugin"),
    "another plugin": (["plugins", "check", "gq"], "no plugin 'gq' is installed"),
}


@pytest.mark.parametrize("case", TOO_LATE)
@pytest.mark.usefixtures("nothing_slow")
def test_it_is_refused_before_anything_slow(
    case: str, made: Path, gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, said = TOO_LATE[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(TOY)
    (tmp_path / "digits.toml").write_text(DIGITS)
    (tmp_path / "both.toml").write_text(TOY.replace("metrics = []", 'metrics = ["fid", "w2"]'))
    (tmp_path / "b.toml").write_text(
        'recipe = "toy.toml"\nbaseline = "a"\nseeds = [0]\nset = ["score.metrics=[\'w2\']"]\n'
        '[[entry]]\nname = "a"\n[[entry]]\nname = "b"\nset = ["critic.widht=3"]\n'
    )
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "recipe.toml").write_text(TOY)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.png").touch()
    runs = {"RUN": made}
    for name in ("RUN2", "RUN3", "RUN4"):
        if name in arguments:
            runs[name] = Path(shutil.copytree(made, tmp_path / name))
            recipe = runs[name] / "recipe.toml"
            extractor = "digit" if name == "RUN3" else "digits"
            recipe.write_text(recipe.read_text().replace("inception-v3-compat", extractor))
    if "RUN4" in runs:
        (runs["RUN4"] / "scores.json").write_text("{")
    code, _, err = gan(*(runs.get(each, each) for each in arguments))
    assert code in (1, 2), err
    assert said in err
    assert len(err.splitlines()) <= 2, err
    assert NOTHING not in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("own", ["recipe.toml", "metrics.jsonl", "scores.json", "curves.png"])
def test_what_is_not_a_runs_is_not_replaced_by_one(own: str, tmp_path: Path) -> None:
    """But what a run left that ended before its first checkpoint, or a board has prepared."""
    (tmp_path / own).write_text("mine")
    with pytest.raises(InputError, match=f"{tmp_path} is no run's folder, and has a {own}"):
        trainer(train={"steps": 1, "batch_size": 8}).run(tmp_path, resume=True)
    assert sorted(tmp_path.iterdir()) == [tmp_path / own]
    assert (tmp_path / own).read_text() == "mine"
    for mark in ("environment.json", "expected.json", "checkpoints"):
        (tmp_path / mark).touch()
        refuse_taken(tmp_path, resume=True)
        (tmp_path / mark).unlink()
    (tmp_path / own).rename(tmp_path / "notes.txt")
    refuse_taken(tmp_path, resume=True)


def test_metrics_of_another_kind_are_refused_before_sampling(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That needs the data, and nothing more."""
    monkeypatch.setattr("gancore.training.loading.calibrated", late)
    with pytest.raises(AssertionError, match=NOTHING):  # of points: on to the sampling
        loading.score_run(made, {"metrics": ["w2"]})
    before = sorted(made.rglob("*"))
    pictures = Dataset("pictures", images(70).samples)
    with pytest.raises(ScoreError, match="w2 can't be computed for images"):
        loading.score_run(made, {"metrics": ["w2"]}, data=pictures)
    with pytest.raises(ScoreError, match="isc can't be computed for the points"):
        loading.score_run(made, {"metrics": ["isc"], "extractor": "digits"})
    assert sorted(made.rglob("*")) == before


def test_points_are_no_pictures_before_they_are_sampled(
    made: Path, gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gancore.scoring.sampling.generate", late)
    code, _, err = gan("sample", made, "--out", tmp_path / "pictures")
    assert (code, "no pictures: write them as .npz" in err) == (2, True)
    assert not (tmp_path / "pictures").exists()


BROKEN_WEIGHTS: dict[str, Callable[[Path], object]] = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "a text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "a page": lambda path: path.write_bytes(b"<!DOCTYPE html><html></html>"),
    "cut": lambda path: path.write_bytes(DigitsExtractor.DEFAULT_WEIGHTS.read_bytes()[:9000]),
    "other keys": lambda path: save_file({"x": torch.zeros(2)}, path),
    "another dtype": lambda path: save_file(
        {key: value.half() for key, value in load_file(DigitsExtractor.DEFAULT_WEIGHTS).items()},
        path,
    ),
    "nan": lambda path: save_file(
        {
            key: value * torch.nan if value.is_floating_point() else value
            for key, value in load_file(DigitsExtractor.DEFAULT_WEIGHTS).items()
        },
        path,
    ),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "a pickle's beginning": lambda path: path.write_bytes(b"\x80\x02"),
    "a zip": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    "a number": lambda path: path.write_bytes(b"\x80\x02K\x01."),
    "NumPy": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'"),
    "a tar": lambda path: path.write_bytes(b"x" + bytes(256) + b"ustar" + bytes(250)),
}


@pytest.mark.parametrize("extractor", ["digits", "inception-v3-compat"])
@pytest.mark.parametrize("case", BROKEN_WEIGHTS)
def test_broken_weights_are_one_line(case: str, extractor: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    BROKEN_WEIGHTS[case](path)
    pictures = Dataset("pictures", torch.zeros(70, 1, 8, 8, dtype=torch.uint8))
    section = Score(metrics=("isc",), samples=64, extractor=extractor, weights=str(path))
    with pytest.raises(ScoreError) as raised:
        check_scoring(pictures, section)
    assert is_clear(str(raised.value), path)
    assert "\n" not in str(raised.value)
    assert "score.weights" in str(raised.value)


def test_what_no_data_would_mend() -> None:
    check_section(Score(metrics=()))
    check_section(Score(metrics=("w2", "modes", "quality"), samples=2))
    check_section(Score(metrics=("fid",), samples=64, extractor="digits"))
    check_section(Score(metrics=("kid",), samples=2))
    check_section(Score(metrics=("prc",), samples=4, extractor="digits"))
    for metrics, samples, said in (
        (("fid",), 63, "FID in 64 features"),
        (("prc",), 3, "neighbour number 3, and here are 3 generated: raise"),
        (("isc",), 9, "IS needs 10"),
        (("kid", "modes"), 64, "kid are of images, modes of points"),
    ):
        with pytest.raises(ScoreError, match=said):
            check_section(Score(metrics=metrics, samples=samples, extractor="digits"))
    few = Dataset("few", torch.zeros(63, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ScoreError, match="64 generated and 63 real: use kid$"):
        check_scoring(few, Score(metrics=("fid",), samples=64, extractor="digits"))


def test_pictures_go_into_a_folder_of_their_own(tmp_path: Path, monkeypatch: Any) -> None:
    pictures = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / ".gitkeep").touch()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for name in ("new/er", "link"):
        save_images(pictures, tmp_path / name)
        names = sorted(set(os.listdir(tmp_path / name)) - {".gitkeep"})
        assert names == ["000000.png", "000001.png", "000002.png"]
    with pytest.raises(InputError, match=r"link is not empty \(000000\.png and 2 more\)"):
        save_images(pictures, tmp_path / "link")
    (tmp_path / "empty").mkdir()

    def full(image: Any, file: Any, *rest: Any) -> None:
        if next(left, None) is None:
            raise OSError(28, "full")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    for name in ("empty", "other"):
        left = iter(range(2))
        with pytest.raises(OSError, match="full"):
            save_images(pictures, tmp_path / name)
    assert not any((tmp_path / "empty").iterdir())
    assert not (tmp_path / "other").exists()


def test_a_run_of_python_says_which_call_does_it(of_python: Path, gan: Gan, tmp_path: Path) -> None:
    call = f"gancore.score_run('{of_python}', generator=…, data=…)"
    for arguments, said in (
        (("score", of_python, "--metrics", "isc"), call),
        (("sample", of_python, "--out", tmp_path / "x.npz"), "gancore.load_generator('"),
        (("run", of_python / "recipe.toml", "--out", tmp_path / "x"), "give it to gancore.Trainer"),
        (("recipe", "check", of_python / "recipe.toml"), "was made in Python"),
        (("bench", of_python / "recipe.toml"), "was made in Python"),
    ):
        code, _, err = gan(*arguments)
        assert code == 2, err
        assert said in err
        assert len(err.splitlines()) == 1
    code, _, err = gan("report", of_python)
    assert code == 0, err
    page = (of_python / "report.html").read_text()
    assert "gancore.write_report(&#39;" in page
    with pytest.raises(PluginError, match="gancore.load_critic"):
        gancore.load_critic(of_python)


def test_and_that_call_does_it(of_python: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(of_python, tmp_path / "run"))
    section = {"metrics": ["isc"], "extractor": "digits"}
    with pytest.raises(ScoreError, match="takes 1×8×8 images"):
        gancore.score_run(folder, section, generator=Generator(), data=images(70).samples)
    gancore.write_report(folder, generator=Generator(), critic=Critic(), data=images())
    page = (folder / "report.html").read_text()
    assert "Gradient norms" in page
    assert "was made from Python" not in page


def test_a_folder_without_the_right_to_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_unwritable(tmp_path / "new" / "er")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root has all
    with pytest.raises(InputError, match="can't be read or written: .*[Pp]ermission"):
        refuse_unwritable(tmp_path / "new" / "er")


def finished(folder: Path) -> Job:
    """A run of a board as it is when it is done, of two steps."""
    recipe = {
        **{key: {"name": "mlp"} for key in ("generator", "critic")},
        "data": {"name": "gaussians8"},
        "train": {"steps": 2, "critic_steps": 1},
        "score": {"metrics": ["w2"], "samples": 9, "extractor": "x"},
        "loss": {"name": "hinge"},
    }
    run = Run(folder)
    folder.mkdir()
    run.write_recipe(recipe)
    for step in (1, 2):
        numbers = {"step": step, "seconds": 2.0 * step, "update": step, "wasserstein": 0.5}
        run.append(Record.of(numbers))
    reference = {"name": "points", "split": "train", "samples": 9}
    protocol = {"reference": reference, "samples": 9, "seed": 0, "versions": {}}
    found = {"scores": {"w2": 1.5}, "protocol": protocol, "spread": 1.0, "step": 2}
    run.write_json(run.scores_path, found)
    about = {"versions": {}, "plugins": {}, "python": "3", "platform": "x", "device": "cpu"}
    run.write_json(run.environment_path, {**about, "device_name": "", "threads": 1, "git": None})
    return Job("a", 0, recipe, folder)


@pytest.mark.parametrize("how", ["missing", "empty", "cut"])
def test_a_finished_run_without_records_is_done(how: str, tmp_path: Path) -> None:
    job = finished(tmp_path / "run")
    assert job.is_scored()
    path = job.run.metrics_path
    match how:
        case "missing":
            path.unlink()
        case "empty":
            path.write_text("")
        case "cut":
            path.write_text(path.read_text().split("\n")[0] + "\n")
    assert job.is_scored()
    job.finish(0, 3.0)
    assert job.state == "done"
    board = Board.model_validate_json(
        json.dumps({"recipe": "r", "baseline": "a", "seeds": [0], "entry": [{"name": "a"}]})
    )
    result = evaluate(board, [job], {})
    (entry,) = result.entries
    assert entry.failed == ()
    assert entry.scores["w2"].values == (1.5,)
    assert entry.notes == (RunNote(seed=0, note=NO_RECORDS),)
    assert plots.estimates(result, [job]) == {"a": []}
    assert NO_RECORDS in page.page(result, [job])


def test_what_can_be_made_again_is(tmp_path: Path) -> None:
    """The board's child writes a new environment.json, and leaves out the record."""
    for name, content in (
        ("environment.json", None),
        ("environment.json", "{"),
        ("scores.json", None),
        ("scores.json", "{"),
        ("metrics.jsonl", "no record\n"),
    ):
        job = finished(tmp_path / f"{name}-{content}".strip())
        path = job.path / name
        path.unlink() if content is None else path.write_text(content)
        assert not job.is_scored(), (name, content)


def test_a_folder_that_lost_its_recipe_says_what_writes_it(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "run"))
    (folder / "recipe.toml").unlink()
    with pytest.raises(InputError, match=r"no recipe.toml, but checkpoints: gan run RECIPE --res"):
        Run.open(folder)
    changes = {"train.steps": 1, "sample.count": 4}
    gancore.run(made.parent / "toy.toml", folder, changes, resume=True)
    assert Run.open(folder).read_recipe().train.seed == 0


def test_a_page_is_as_whole_as_it_can_be(tmp_path: Path, monkeypatch: Any) -> None:
    def fails(*arguments: object) -> None:
        raise GancoreError("no glyphs")

    job = finished(tmp_path / "run")
    assert job.is_scored()
    job.state = "done"
    board = Board.model_validate_json(
        json.dumps({"recipe": "r", "baseline": "a", "seeds": [0], "entry": [{"name": "a"}]})
    )
    monkeypatch.setattr(plots, "plot_intervals", fails)
    html = page.page(evaluate(board, [job], {}), [job])
    assert "Not made: no glyphs." in html
    assert "1.5" in html


def test_no_record_is_read_of_a_run_that_is_not_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finished(tmp_path / "run")
    job.run.scores_path.unlink()
    monkeypatch.setattr(Run, "read_records", late)
    assert not job.is_scored()
