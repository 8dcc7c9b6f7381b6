"""A run knows its data and code: what changed is refused, told, and made again on a board."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TOY, Gan, Generator, environment_of, images, parsed, scores_of, trainer
from PIL import Image
from torch import nn

import gancore
from gancore import plugin
from gancore.data import Dataset, Truth
from gancore.data.toys import gaussians8
from gancore.errors import CheckpointError, InputError
from gancore.leaderboard import costs
from gancore.leaderboard import plan as planning
from gancore.leaderboard.board import Board
from gancore.leaderboard.evaluate import evaluate
from gancore.leaderboard.job import Job, left_to_do
from gancore.leaderboard.plan import plan
from gancore.leaderboard.stale import made_again
from gancore.provenance import identity
from gancore.provenance.environment import Stretch
from gancore.provenance.identity import MadeOf, as_now, changes, uncompared
from gancore.provenance.sources import Core
from gancore.report import Display
from gancore.training import Run
from gancore.training import build_trainer as build
from gancore.training import run_folder as folder
from gancore.training.opening import Opening
from gancore.training.run_folder import LARGEST

ROOT = Path(__file__).parents[1]


class Telling(Display):
    def __init__(self) -> None:
        self.told: list[str] = []

    def say(self, line: str) -> None:
        self.told.append(line)


# data


def test_the_hash_is_of_the_samples_alone() -> None:
    data = images()
    digest = hashlib.sha256(b"torch.uint8 (50, 1, 4, 4)")
    digest.update(np.ascontiguousarray(data.samples.numpy()).tobytes())
    assert data.fingerprint == digest.hexdigest()
    labelled = Dataset("other", data.samples, torch.arange(50), "test")
    assert labelled.fingerprint == data.fingerprint
    transposed = Dataset("a", data.samples.mT.contiguous().mT)  # other strides, the same values
    assert transposed.fingerprint == data.fingerprint
    changed = data.samples.clone()
    changed[49, 0, 3, 3] ^= 1
    for other in (changed, data.samples.flip(0), data.samples[:49], data.samples.view(50, 1, 2, 8)):
        assert Dataset("noise", other).fingerprint != data.fingerprint


def test_what_points_scatter_around_is_in_the_hash() -> None:
    points, centres = torch.rand(9, 2), torch.rand(3, 2)
    truths = [None, Truth(centres, 0.1), Truth(centres + 1, 0.1), Truth(centres, 0.2)]
    truths.append(Truth(centres, 0.1, modes=False))
    assert len({Dataset("a", points, truth=truth).fingerprint for truth in truths}) == 5


def test_toys_are_known_by_what_they_draw() -> None:
    found = [gaussians8(samples=100), gaussians8(samples=100, seed=1), gaussians8(samples=99)]
    assert len({data.fingerprint for data in found}) == 3
    assert gaussians8(samples=100).fingerprint == found[0].fingerprint


def test_the_hash_moves_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images()
    known = data.fingerprint
    monkeypatch.setattr(hashlib, "sha256", None)  # none is made again
    assert data.to("cpu").fingerprint == data.to("cpu").sha256 == known


@pytest.mark.gpu
def test_the_hash_is_the_same_on_any_device() -> None:
    assert images().to("cuda").fingerprint == images().fingerprint


def pictures(folder: Path, seed: int, count: int = 12) -> None:
    folder.mkdir(exist_ok=True)
    drawn = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    for number, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of a folder of images, which are there."""
    pictures(tmp_path / "images", 0)
    data = f'"folder"\npath = "{tmp_path}/images"\nsize = 8\nchannels = 1'
    path = tmp_path / "recipe.toml"
    text = TOY.replace('"gaussians8"\nsamples = 400', data).replace("= 16", "= 4")
    path.write_text(text.replace('"gp"', '"clip"'))
    return path


def test_images_replaced_under_a_run_are_refused(recipe: Path, gan: Gan, tmp_path: Path) -> None:
    out = tmp_path / "run"
    go = ("run", recipe, "--out", out, "--device", "cpu", "--resume")
    assert gan(*go)[0] == 0
    assert gan(*go, "--set", "train.steps=4")[0] == 0
    pictures(tmp_path / "images", 1)
    code, _, said = gan(*go, "--set", "train.steps=5")
    assert code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("  ")]
    assert line.startswith("  data: other samples, whose hash was ")
    assert "--force" in said
    assert gan(*go)[0] == 2  # a finished one too: it would be scored against others
    code, said, _ = gan(*go, "--set", "train.steps=5", "--set", "optimizer.lr=0.5", "--force")
    assert code == 0
    told = " ".join(said.split())
    assert (
        f"forced, although this has changed: optimizer.lr: was 0.0002, is 0.5; {line[2:]}" in told
    )
    now = environment_of(Run(out))
    (before,) = now["earlier"]
    assert (before["from_step"], now["from_step"]) == (0, 4)
    assert before["data"] != now["data"]
    assert (
        line
        == f"  data: other samples, whose hash was {before['data'][:12]} and is "
        + (now["data"][:12])
    )


def test_a_folder_of_images_may_move(recipe: Path, gan: Gan, tmp_path: Path) -> None:
    """What is in it is known by its hash; with other images in it, it is another."""
    go = ("run", recipe, "--out", tmp_path / "run", "--device", "cpu", "--resume")
    assert gan(*go)[0] == 0
    (tmp_path / "images").rename(tmp_path / "moved")
    there = ("--set", f"data.path={tmp_path}/moved", "--set", "train.steps=4")
    assert gan(*go, *there)[0] == 0
    pictures(tmp_path / "moved", 1)
    pictures(tmp_path / "elsewhere", 1)
    code, _, said = gan(*go, "--set", f"data.path={tmp_path}/elsewhere", "--set", "train.steps=5")
    assert code == 2
    assert "data.path: was " in said
    assert "other samples" in said


def test_scores_against_other_data_are_told(recipe: Path, gan: Gan, tmp_path: Path) -> None:
    out = tmp_path / "run"
    digits = ("--set=score.extractor=digits", "--set=score.samples=8", "--set=score.metrics=[]")
    assert gan("run", recipe, "--out", out, "--device", "cpu", *digits)[0] == 0
    score = ("score", out, "--metrics", "kid", "--device", "cpu")
    assert "other data" not in "".join(map(str, gan(*score)))
    pictures(tmp_path / "images", 1)
    assert "scored against other data than the run was trained on" in gan(*score)[1]


# code


PLUGIN = """
from gancore import hookimpl, plugin
@plugin
class Pull:
    weight: float = 1.0
    @hookimpl
    def penalty(self, step):
        return self.weight * step.scores(step.real).square().mean()
"""
CRITIC = """
from torch import nn
class Critic(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))
"""

Module = Callable[[str, str], Any]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """Write a module, and import it anew."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, text: str) -> Any:
        (folder / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_edited_code_of_a_plugin_or_a_network_is_refused(tmp_path: Path, module: Module) -> None:
    def made(steps: int, plugin: str = PLUGIN, critic: str = CRITIC) -> Any:
        torch.manual_seed(0)
        return trainer(
            plugins=[module("pull", plugin).Pull()],
            train={"steps": steps, "batch_size": 8},
            critic=module("my_critic", critic).Critic(),
        )

    def trainer(critic: nn.Module, **sections: Any) -> Any:
        more = {"score": {"metrics": []}, "sample": {"count": 4}, "device": "cpu"}
        return gancore.Trainer(Generator(), critic, images(), **sections, **more)

    made(1).run(tmp_path / "run")
    made(2).run(tmp_path / "run", resume=True)
    made(3, PLUGIN + "# a comment\n", CRITIC + "# another\n").run(tmp_path / "run", resume=True)
    edited = {"plugin": PLUGIN.replace("mean()", "sum()"), "critic": CRITIC.replace("Tanh", "ReLU")}
    for what, told in (
        ("plugin", "plugin pull: was 'pull.Pull (code "),
        ("critic", "critic: was "),
    ):
        with pytest.raises(InputError, match="what decides the updates has changed") as caught:
            made(4, **{what: edited[what]}).run(tmp_path / "run", resume=True)
        (line,) = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
        assert told in line
    made(4, **edited).run(tmp_path / "run", resume=True, force=True)


def with_core(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Core:
    """Let the core's code be another; return which."""
    core = identity.core_code().model_copy(update=changes)
    core.modules = {**identity.core_code().modules, **changes.get("modules", {})}
    for place in (identity, importlib.import_module("gancore.provenance.environment")):
        monkeypatch.setattr(place, "core_code", lambda: core)
    return core


def test_an_edited_core_is_refused_by_the_names_of_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(steps: int, **options: Any) -> list[str]:
        display = Telling()
        sections = {"train": {"steps": steps, "batch_size": 8}}
        trainer(**sections).run(tmp_path / "run", display=display, **options)
        return display.told

    go(1)
    with monkeypatch.context() as patch:
        with_core(patch, modules={"step": "0", "brand_new": "1"})
        with pytest.raises(InputError, match=r"\n  gancore's own code, in brand_new, step\n"):
            go(2, resume=True)
        with_core(patch, python="2.7", modules={"step": "0"})
        (line,) = go(2, resume=True)
        assert "gancore's own code (hashed by Python 3." in line
        assert line.endswith("may have changed")
        assert go(3, resume=True) == []
    (line,) = go(4, resume=True)
    assert "hashed by Python 2.7 then" in line
    assert go(5, resume=True) == []


def test_what_a_line_names() -> None:
    def core(python: str = "3.11", **modules: str) -> MadeOf:
        return MadeOf(core=Core(python=python, code="", modules=modules))

    assert changes(core(a="1"), core(a="1")) == []
    assert changes(core(a="1", b="1"), core(a="2", b="1")) == ["gancore's own code, in a"]
    assert changes(core(a="1"), core()) == ["gancore's own code, in a"]
    assert changes(core(), core(b="1")) == ["gancore's own code, in b"]
    assert changes(core("3.12", a="1"), core(a="2")) == []
    many = {f"m{number}": "1" for number in range(7)}
    assert changes(core(), core(**many)) == ["gancore's own code, in m0, m1, m2, m3, m4 and 2 more"]
    then = MadeOf(plugins={"gp": "a", "r1": "x"}, components={"extractor": "e"}, data=None)
    now = MadeOf(plugins={"gp": "b", "r2": "x"}, components={"extractor": "f"}, data="d")
    assert changes(then, now) == ["plugin gp: was 'a', is 'b'", "extractor: was 'e', is 'f'"]
    assert changes(then, now, but=["extractor"]) == ["plugin gp: was 'a', is 'b'"]
    versions = MadeOf(versions={"torch": "1"}, python="3.11.1")
    later = MadeOf(versions={"torch": "2"}, python="3.11.2")
    assert changes(versions, later) == ["torch: was '1', is '2'", "Python: was 3.11.1, is 3.11.2"]
    assert changes(MadeOf(), later.model_copy(update=core(a="1").known())) == []
    nodes = [MadeOf(where={"device": device, "threads": "1"}) for device in ("cpu", "cuda")]
    assert changes(*nodes) == ["device: was 'cpu', is 'cuda'"]
    assert changes(MadeOf(data="a" * 64), MadeOf(data="b" * 64)) == [
        f"data: other samples, whose hash was {'a' * 12} and is {'b' * 12}"
    ]


def test_code_that_can_not_be_had_is_told() -> None:
    core = Core(python="3.11", code="", modules={})
    known = {"plugins": {"a": "a (code unknown)"}, "components": {"critic": "c"}}
    now = MadeOf(data="d", core=core, **known)
    assert uncompared(now, now) == "the code of a"
    assert uncompared(MadeOf(), now) == (
        "data, plugins' code, networks' code, gancore's own code, the code of a"
    )


def test_processes_of_unlike_data_or_code_are_refused() -> None:
    made_of = identity.made_of(images(), [], {"generator": "here", "critic": "here"})
    made = Opening(trainer().learner, Run(Path("nowhere")), Display(), {}, made_of)

    class Ranks:
        is_first = False

        def __init__(self, first: dict[str, Any]) -> None:
            self.from_first = lambda make: json.dumps(first).encode()
            self.any = bool

    for key, word in identity.WORDS.items():
        made.learner.ranks = Ranks({**made_of.table(), key: "other"})  # type: ignore[assignment]
        with pytest.raises(InputError, match=f"don't have the same {word}: give"):
            made._refuse_unlike_processes()
    made.learner.ranks = Ranks(made_of.table())  # type: ignore[assignment]
    made._refuse_unlike_processes()


# earlier checkpoints


def rewrite(run: Run, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the state of the latest checkpoint."""
    path = max(run.checkpoints.glob("step-*")) / "state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    manifest = path.with_name("manifest.json")
    hashes = {**json.loads(manifest.read_text())}
    hashes["state.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(hashes))


def test_what_an_old_checkpoint_lacks_refuses_nothing(tmp_path: Path) -> None:
    small = {"train.steps": 1, "train.batch_size": 8}
    run = build(parsed(TOY, **small), device="cpu").run(tmp_path / "run")

    def of_old(state: dict[str, Any]) -> None:
        del state["made_of"]
        table = state["recipe"]
        del table["checkpoint"], table["train"]["precision"], table["data"]["flip"]
        del table["plugin"][0]["two_sided" if "two_sided" in table["plugin"][0] else "weight"]
        del table["critic"]["depth"], table["data"]["std"], table["optimizer"]["alpha"]

    rewrite(run, of_old)
    display = Telling()
    longer = {**small, "train.steps": 2}
    build(parsed(TOY, **longer), device="cpu").run(run.path, resume=True, display=display)
    (line,) = [line for line in display.told if "can't be compared" in line]
    assert "data, plugins' code, networks' code, gancore's own code" in line

    rewrite(run, of_old)
    others = {"critic.depth": 1, "train.precision": "bf16"}
    others |= {"optimizer.name": "rmsprop", "optimizer.alpha": 0.5}
    with pytest.raises(InputError) as caught:
        build(parsed(TOY, **longer, **others), device="cpu").run(run.path, resume=True)
    lines = {line.strip() for line in str(caught.value).splitlines() if line.startswith("  ")}
    assert {line.partition(":")[0] for line in lines} == others.keys()
    assert "optimizer.alpha: was 0.99, is 0.5" in lines


def test_plugins_from_python_have_defaults_too(module: Module) -> None:
    text = PLUGIN.replace("    @hookimpl", "    on: tuple[str, ...] = ('real',)\n    @hookimpl")
    text = text.replace(
        "    @hookimpl", "    of: list[int] = field(default_factory=lambda: [3])\n    @hookimpl", 1
    ).replace("from gancore", "from dataclasses import field\nfrom gancore", 1)
    cls = module("pull_more", text).Pull
    table = trainer(plugins=[cls()]).recipe
    old = copy.deepcopy(table)
    del old["plugin"][0]["on"], old["plugin"][0]["of"]
    assert as_now(old, {"pull": cls}) == as_now(table, {"pull": cls})
    assert as_now(old, {"pull": cls})["plugin"][0]["of"] == [3]
    assert as_now({"anything": 1}, {}) == {"anything": 1}


def test_losses_have_defaults_too() -> None:
    @plugin
    class Margin:
        gap: float = 1.5

    old = {**trainer().recipe, "loss": {"name": "margin"}}
    assert as_now(old, {"margin": Margin})["loss"] == {"name": "margin", "gap": 1.5}


@pytest.mark.parametrize(
    "made_of",
    [None, 3, {"data": 3}, {"plugins": []}, {"core": {"python": "3.11"}}, {"data": "\x1b[2J"}],
)
def test_a_hostile_identity_is_refused(tmp_path: Path, made_of: Any) -> None:
    run = trainer(train={"steps": 1}).run(tmp_path / "run")
    rewrite(run, lambda state: state.update(made_of=made_of))
    with pytest.raises(CheckpointError, match="made_of") as caught:
        trainer(train={"steps": 2}).run(run.path, resume=True)
    assert all(line.isprintable() for line in str(caught.value).splitlines())


# environment.json


def test_stretches_are_kept_and_equal_ones_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    monkeypatch.setattr(folder, "EARLIER", 5)
    about = {
        **{"versions": {}, "plugins": {}, "python": "3", "platform": "p", "device": "cpu"},
        **{"device_name": "", "threads": 1, "git": None},
    }

    def stretches() -> list[tuple[int, int]]:
        found = environment_of(run)
        return [(each["from_step"], each["threads"]) for each in [*found["earlier"], found]]

    def write(about: dict[str, Any], start: int) -> None:
        run.write_environment(Stretch(**about), run.read_environment(), start)

    for start, threads, expected in (
        (0, 1, [(0, 1)]),
        (10, 1, [(0, 1)]),
        (20, 2, [(0, 1), (20, 2)]),
        (30, 2, [(0, 1), (20, 2)]),
        (40, 1, [(0, 1), (20, 2), (40, 1)]),
        (40, 3, [(0, 1), (20, 2), (40, 3)]),  # nothing is left of the last one
        (15, 1, [(0, 1)]),
        (25, 2, [(0, 1), (25, 2)]),
        (0, 1, [(0, 1)]),
    ):
        write({**about, "threads": threads}, start)
        assert stretches() == expected
    for step in range(1, 9):
        write({**about, "threads": step}, step)
    assert stretches() == [(step, step) for step in range(3, 9)]
    big = {**about, "versions": {f"package-{number}": "1" * 900 for number in range(300)}}
    for step in range(200, 204):
        write({**big, "threads": step}, step)
    assert stretches()[-1] == (203, 203)
    assert run.environment_path.stat().st_size <= LARGEST
    run.write_environment(Stretch(**about), None, 300)  # of one that can't be read
    assert stretches() == [(300, 1)]


def test_an_environment_of_an_earlier_gancore_is_a_stretch(tmp_path: Path) -> None:
    run = trainer(train={"steps": 1}).run(tmp_path / "run")
    old = environment_of(run)
    for key in ("data", "core", "components", "from_step", "earlier"):
        del old[key]
    run.write_json(run.environment_path, old)
    trainer(train={"steps": 2}).run(run.path, resume=True)
    now = environment_of(run)
    assert now["earlier"] == [old]
    assert now["from_step"] == 1
    rows = importlib.import_module("gancore.report.writer")._environment(run.read_environment())
    assert rows["samples' hash"] == images().fingerprint[:12]
    assert rows["made in stretches, from step"] == "0, 1"


def test_a_hostile_list_of_stretches_is_refused(tmp_path: Path) -> None:
    run = trainer(train={"steps": 1}).run(tmp_path / "run")
    good = environment_of(run)
    (stretch,) = [{key: good[key] for key in good if key != "earlier"}]
    for earlier in (3, [3], [{}], [{**stretch, "from_step": -1}], [stretch] * (folder.EARLIER + 1)):
        run.write_json(run.environment_path, {**good, "earlier": earlier})
        with pytest.raises(InputError, match=r"environment\.json: earlier"):
            _ = run.read_environment()
    for key, value in (("from_step", "x"), ("data", "\x1b"), ("core", {"modules": {"a": 1}})):
        run.write_json(run.environment_path, {**good, key: value})
        with pytest.raises(InputError, match=rf"environment\.json: {key}"):
            _ = run.read_environment()
    run.write_json(run.environment_path, {**good, "earlier": [stretch] * folder.EARLIER})
    assert len(environment_of(run)["earlier"]) == folder.EARLIER


# boards


BOARD = """
recipe = "recipe.toml"
baseline = "none"
seeds = [0, 1]
set = ["score.samples=8", "score.extractor=digits", "score.metrics=[\\"kid\\"]"]
[[entry]]
name = "none"
set = ["plugin=[]"]
[[entry]]
name = "clip"
"""


@pytest.fixture
def board(recipe: Path) -> Path:
    path = recipe.with_name("board.toml")
    path.write_text(BOARD)
    recipe.write_text(recipe.read_text().replace("steps = 3", "steps = 1"))
    return path


def planned(board: Path) -> list[Job]:
    loaded = Board.load(board)
    return plan(loaded, loaded.recipes(board.parent), board.parent / "out", device="cpu")


def make(jobs: list[Job]) -> None:
    """Make runs as a board has them made, in this process."""
    for job in left_to_do(jobs):
        job.prepare()
        gancore.run(job.run.recipe_path, job.path, device="cpu", resume=True)
        job.finish(0, 1.0)
        assert job.state == "done", job.error


def begin(jobs: list[Job]) -> None:
    """Leave folders as of runs that were killed."""
    for job in jobs:
        job.prepare()
        job.run.checkpoints.mkdir()


def states(board: Path) -> list[str]:
    jobs = planned(board)
    left_to_do(jobs)
    return [job.state for job in jobs]


def test_a_board_makes_runs_of_replaced_data_again(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, real = list[str](), planning.load_data
    monkeypatch.setattr(
        planning, "load_data", lambda recipe: loads.append(recipe.data.name) or real(recipe)
    )
    jobs = planned(board)
    assert loads == ["folder"]  # once, for two entries and two seeds
    assert made_again(jobs) == []
    make(jobs[:1])
    begin(jobs[1:])
    assert states(board) == ["done", *["queued"] * 3]
    assert made_again(planned(board)) == []
    pictures(tmp_path / "images", 1)
    assert states(board) == ["queued"] * 4
    (line,) = made_again(planned(board))
    assert line.startswith(
        "4 runs are made again (none seed 0, 1; clip seed 0, 1), as this has changed: "
        "data: other samples, whose hash was "
    )
    begin(planned(board)[:1])
    (line,) = made_again(planned(board))
    assert line.startswith("3 runs are made again (clip seed 0, 1; none seed 1)")
    pictures(tmp_path / "images", 0)
    assert states(board) == ["done", *["queued"] * 3]


def test_what_an_edit_makes_stale(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(planned(board))
    origin = identity.entrypoints.origin
    with monkeypatch.context() as patch:
        patch.setattr(
            identity.entrypoints,
            "origin",
            lambda found: origin(found) + "+" * (found.name == "clip"),
        )
        (line,) = made_again(planned(board))
    assert line.startswith("2 runs are made again (clip seed 0, 1), as this has changed: plugin cl")
    with monkeypatch.context() as patch:
        with_core(patch, modules={"step": "0"}, code="0")
        (line,) = made_again(planned(board))
        assert line.endswith("as this has changed: gancore's own code, in step")
        assert line.startswith("4 runs")
    board.write_text(board.read_text().replace("[0, 1]", "[0, 1, 2]\nthreads = 2"))
    (line,) = made_again(planned(board))
    assert line.startswith("4 runs")
    assert line.endswith("threads: was '1', is '2'")
    board.write_text(
        board.read_text()
        .replace("\nthreads = 2", "")
        .replace("set = [", ('set = ["train.steps=2", '), 1)
    )
    (line,) = made_again(planned(board))
    assert line.endswith("train.steps: was 1, is 2")
    for path in (board.parent / "out").glob("runs/*/expected.json"):
        path.unlink()
    (line,) = made_again(planned(board))
    assert line.endswith("it was not recorded then which data and code a run was made of")


def test_a_run_of_a_board_sees_that_data_or_code_are_not_the_boards(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gan: Gan
) -> None:
    first, second, *_ = planned(board)
    for job in (first, second):
        job.prepare()
    go = ("run", first.run.recipe_path, "--out", first.path, "--device", "cpu", "--resume")
    pictures(tmp_path / "images", 1)
    for force in ((), ("--force",)):
        code, _, said = gan(*go, *force)
        assert code == 2
        assert "is for a run of a board made of other data or code: data: other sam" in said
        assert "Run its board again" in said
        assert said.count("\n") == 1
    pictures(tmp_path / "images", 0)
    with monkeypatch.context() as patch:
        with_core(patch, modules={"step": "0"})
        assert "gancore's own code, in step" in gan(*go)[2]
    assert gan(*go)[0] == 0
    second.run.expected_path.write_text('{"core": {}}')
    go = ("run", second.run.recipe_path, "--out", second.path, "--device", "cpu", "--resume")
    code, _, said = gan(*go)
    assert code == 2
    assert "expected.json: core.python: missing" in said


def test_the_command_says_what_is_stale(board: Path, tmp_path: Path, gan: Gan) -> None:
    go = ("leaderboard", board, "--out", tmp_path / "out", "--device", "cpu", "--commands")
    code, lines, said = gan(*go)
    assert (code, said) == (0, "")
    assert lines.count("--resume") == 4
    begin(planned(board))
    assert gan(*go)[1:] == (lines, "")
    pictures(tmp_path / "images", 1)
    code, again, said = gan(*go)
    assert again.count("--resume") == 4
    assert not {*again.splitlines()} & {*lines.splitlines()}
    assert said.startswith("4 runs are made again (")
    assert said.count("\n") == 1


def test_costs_are_of_the_core_that_measured_them(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, said = Board.load(board), list[str]()
    executor: Any = SimpleNamespace(where="cpu", measure=lambda recipes: {})

    def measure() -> int:
        recipes = loaded.recipes(tmp_path)
        costs.measure_costs(loaded, recipes, tmp_path, executor=executor, tell=said.append)
        return len(said)

    assert [measure(), measure()] == [1, 1]
    with_core(monkeypatch, modules={"step": "0"})
    assert [measure(), measure()] == [2, 2]
    monkeypatch.setattr(costs, "file_code", lambda path: path.name)
    assert [measure(), measure()] == [3, 3]


def test_scores_of_other_weights_are_made_again(board: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    shutil.copy(ROOT / "gancore/scoring/digits.safetensors", weights)
    text = board.read_text()
    board.write_text(text.replace('set = ["', f'set = ["score.weights={weights}", "', 1))
    paths = [job.path for job in planned(board)]
    assert [job.path for job in planned(board)] == paths
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert not {job.path for job in planned(board)} & {*paths}


def test_scores_of_a_run_against_other_samples_are_told(board: Path) -> None:
    jobs = planned(board)[:2]
    make(jobs)
    loaded = Board.load(board)
    result = evaluate(loaded, jobs, {})
    assert result.protocol.table()["reference"]["name"] == "folder"
    assert "modules" not in result.table()["environment"]["core"]
    scores = scores_of(jobs[1].run)
    assert scores is not None
    scores["protocol"]["reference"]["sha256"] = "0" * 64
    jobs[1].run.write_json(jobs[1].run.scores_path, scores)
    assert jobs[1].is_scored()  # reads it again
    with pytest.raises(InputError, match="has scores against other real samples than") as caught:
        evaluate(loaded, jobs, {})
    assert str(jobs[1].path) in str(caught.value)
    gancore.run(jobs[1].run.recipe_path, jobs[1].path, device="cpu", resume=True)  # scored anew
    assert jobs[1].is_scored()
    assert evaluate(loaded, jobs, {}).protocol == result.protocol


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/boards/results").glob("*.json")))
def test_results_of_earlier_versions_are_read(path: Path, gan: Gan) -> None:
    code, said, error = gan("compare", path, path)
    assert (code, error) == (0, "")
    assert said
