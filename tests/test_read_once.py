"""A command reads its run once: one parse, one verification, one load of the data set."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DIGITS, TOY, Gan, parsed, started

import gancore
from gancore.data import toys
from gancore.data.digits import digits
from gancore.report import save_images
from gancore.training import Run
from gancore.training import build_trainer as build

GRIDS = {"train.steps": 2, "sample.every": 1, "sample.count": 16, "checkpoint.every": 1}

OPENED: Counter[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event == "open" and isinstance(arguments[0], str):
        OPENED[arguments[0]] += 1


sys.addaudithook(_note)  # the interpreter's own report of each file that is opened


@pytest.fixture
def opened() -> Iterator[Counter[str]]:
    """Count the files that are opened meanwhile, by path."""
    global OPENED
    OPENED = Counter()
    yield OPENED
    OPENED = None


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the calls of the data set that the toy's recipe names."""
    made: list[int] = []
    real = toys.gaussians8

    @functools.wraps(real)
    def counted(*args: Any, **options: Any) -> Any:
        made.append(1)
        return real(*args, **options)

    monkeypatch.setattr(toys, "gaussians8", counted)
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    build(parsed(TOY, **GRIDS, **{"score.metrics": ["w2"]}), device="cpu").run(path)
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


READS = {
    # command: how often it may parse the recipe, verify a checkpoint, load data, read the records
    "report": (1, 1, 1, 1),
    "score": (1, 1, 1, 0),
    "sample": (1, 1, 0, 0),
    "load_generator": (1, 1, 0, 0),
    "load_critic": (1, 1, 0, 0),
}


@pytest.mark.parametrize("name", READS)
def test_all_is_read_once(
    run: Path, gan: Gan, opened: Counter[str], loads: list[int], name: str, tmp_path: Path
) -> None:
    if name.startswith("load"):
        getattr(gancore, name)(run)
    else:
        out = ["--out", tmp_path / "samples.npz"] if name == "sample" else []
        assert gan(name, run, "--device", "cpu", *out)[0] == 0
    latest = run / "checkpoints" / "step-000002"
    counts = (
        opened[str(run / "recipe.toml")],
        opened[str(latest / "manifest.json")],
        len(loads),
        opened[str(run / "metrics.jsonl")],
    )
    assert counts == READS[name]
    assert opened[str(run / "checkpoints" / "step-000001" / "manifest.json")] == 0
    assert opened[str(run / "scores.json")] <= 2  # read, and written anew
    assert opened[str(run / "environment.json")] <= 1
    assert opened[str(latest / "critic.safetensors")] <= 2  # hashed, and read


def test_the_counter_counts(run: Path, opened: Counter[str], loads: list[int]) -> None:
    for _ in range(2):
        Run(run).read()
        gancore.training.load_data(Run(run).read_recipe())
    assert opened[str(run / "recipe.toml")] == 4
    assert opened[str(run / "metrics.jsonl")] == 2
    assert len(loads) == 2


# samples without the data set


@pytest.fixture(scope="module", params=["mlp", "dcgan"])
def pictures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of images, which are then moved away."""
    folder = tmp_path_factory.mktemp("of-pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        save_images(digits().samples[:80], folder / "pictures")
        data = {"data.name": "folder", "data.path": str(folder / "pictures"), "data.size": 8}
        networks = {"generator.name": request.param, "critic.name": request.param}
        recipe = parsed(
            DIGITS, **data, **networks, **GRIDS, **{"data.channels": 1, "train.batch_size": 8}
        )
        build(recipe, device="cpu").run(folder / "run")
    shutil.move(folder / "pictures", folder / "elsewhere")
    shutil.rmtree(folder / "cache")
    return folder / "run"


def test_samples_are_made_where_the_images_are_gone(pictures: Path, tmp_path: Path) -> None:
    code, out, err = started("sample", pictures, "-n", 16, "--out", tmp_path / "samples.npz")
    assert (code, err) == (0, "")
    assert "16 samples in" in out
    samples = np.load(tmp_path / "samples.npz")["arr_0"]
    assert (samples.shape, samples.dtype) == ((16, 8, 8, 1), np.uint8)
    generator, critic = gancore.load_generator(pictures), gancore.load_critic(pictures)
    with torch.no_grad():
        made = generator(torch.zeros(2, generator.latent))  # type: ignore[operator, call-overload]
        assert made.shape == (2, 1, 8, 8)
        assert critic(made).numel() == 2


def test_a_report_where_the_images_are_gone_says_which_pictures_it_lacks(pictures: Path) -> None:
    code, out, err = started("report", pictures)
    assert code == 0
    (line,) = err.splitlines()
    assert line.startswith("warning: The critic's gradient norms are left out: ")
    assert "pictures" in line  # the folder
    assert out.splitlines()[-1] == f"report in {pictures / 'report.html'}"
    html = (pictures / "report.html").read_text()
    assert "<h3>Weights</h3>" in html
    assert "<h3>Over time</h3>" in html
    assert "<h3>Gradient norms</h3>" in html  # of the curves
    assert html.count("<h3>Gradient norms</h3>") == 1
    assert "left out" in html


def test_scores_where_the_images_are_gone_need_them(pictures: Path) -> None:
    code, _, err = started("score", pictures)
    assert code == 2
    assert "pictures" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "shape", ["x", [], [0], [1.5], [True], [2, -1], [1 << 20, 1 << 20], [1] * 9, {"a": 1}]
)
def test_the_shape_in_a_stranger_s_checkpoint_is_checked(run: Path, gan: Gan, shape: Any) -> None:
    path = run / "checkpoints" / "step-000002" / "state.json"
    rewrite(path, shape=shape)
    code, _, err = gan("sample", run, "--device", "cpu", "--out", run / "samples.npz")
    assert code == 2
    assert "state.json: shape" in err
    assert "train again" in err


def test_another_shape_does_not_fit_the_weights(run: Path, gan: Gan) -> None:
    rewrite(run / "checkpoints" / "step-000002" / "state.json", shape=[3])
    code, _, err = gan("sample", run, "--device", "cpu", "--out", run / "samples.npz")
    assert code == 2
    assert "its weights do not fit" in err


def rewrite(path: Path, **changes: Any) -> None:
    """Change a checkpoint's state as a stranger may, its hash with it."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    manifest = path.with_name("manifest.json")
    hashes = json.loads(manifest.read_text())
    hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(hashes))
