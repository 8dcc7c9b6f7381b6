"""Files from strangers: nothing in them is run, escapes its folder, or ends in a traceback.

Zips and images are in test_data_folder.py, test_data_images.py and test_untrusted_images.py, pages
in test_report_page.py and test_leaderboard_page.py, made-up recipes and boards in test_fuzz.py.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import pickle
import re
import resource
import shutil
import struct
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, TOY, Gan, parsed
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from gancore.errors import CheckpointError, InputError, RecipeError
from gancore.leaderboard.board import Board
from gancore.leaderboard.gate import gate, read, regressed
from gancore.leaderboard.sweep import Job, _finish
from gancore.leaderboard.text import markdown
from gancore.reading import LARGEST
from gancore.recipe import Optimizer, Recipe
from gancore.training import Run, checkpoint, load_critic, load_generator
from gancore.training import trainer as build
from gancore.training.optimizers import (
    apply_gradients,
    make_optimizer,
    optimizer_state,
    restore_optimizer,
)
from gancore.training.tally import Tally

SOURCES = sorted([*(ROOT / "gancore").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")])
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
"""Names the terminal's window and clears it."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    every = {"checkpoint.every": 1, "train.steps": 2, "score.metrics": ["w2"]}
    build(parsed(TOY, **every), device="cpu").run(folder)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A run folder to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def is_clear(text: str, path: Path) -> bool:
    """Whether an error names the file, is short, and holds nothing that moves a cursor."""
    lines = text.strip("\n").split("\n")
    return str(path) in text and len(text) < 10_000 and all(line.isprintable() for line in lines)


# nothing is run


PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unpickling(source: str) -> set[str]:
    """Return what of a source may read pickles: modules imported, names of `pickle`, calls."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names if alias.name.split(".")[0] in PICKLES}
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in PICKLES:
                found.add(f"from {module}")
            case ast.Attribute(value=ast.Name(id="pickle"), attr=name):
                found.add(f"pickle.{name}")
            case ast.Call(func=ast.Attribute(attr=name) as function, keywords=given_):
                call = ast.unparse(function)
                options = {each.arg: ast.unparse(each.value) for each in given_}
                if call == "torch.load" and options.get("weights_only") != "True":
                    found.add(call)
                if options.get("allow_pickle", "False") != "False":
                    found.add(f"{call}(allow_pickle)")
                if name in ("read_pickle", "load_state_dict_from_url") or call == "torch.hub.load":
                    found.add(call)
            case ast.Call(func=ast.Name(id="eval" | "exec" | "__import__" as name)):
                found.add(name)
    return found


def test_the_reader_of_sources_finds_what_unpickles() -> None:
    source = (
        "import pickle, dill.x, torch\nfrom joblib import load\npickle.loads(b'')\n"
        "def f():\n    import marshal\n    torch.load('x')\n"
        "torch.load('x', weights_only=False)\n"
        "np.load('x', allow_pickle=True)\npd.read_pickle('x')\neval('1')\n"
    )
    assert unpickling(source) == {
        *("pickle", "dill.x", "from joblib", "pickle.loads", "marshal", "torch.load"),
        *("np.load(allow_pickle)", "pd.read_pickle", "eval"),
    }
    assert unpickling("torch.load('x', weights_only=True)\nnp.load('x')\nre.compile('x')") == set()


def test_no_source_unpickles() -> None:
    found = {path.relative_to(ROOT).as_posix(): unpickling(path.read_text()) for path in SOURCES}
    assert len(found) > 80
    assert {name: uses for name, uses in found.items() if uses} == {
        "gancore/scoring/extractors.py": {"pickle", "pickle.UnpicklingError"},
    }


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.path,)


def replaced(folder: Path, name: str, content: bytes) -> Path:
    """Put content in place of a file of the latest checkpoint, and make the manifest fit."""
    path = folder / "checkpoints" / "step-000002" / name
    path.write_bytes(content)
    manifest = path.with_name("manifest.json")
    hashes = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**hashes, name: hashlib.sha256(content).hexdigest()}))
    shutil.rmtree(folder / "checkpoints" / "step-000001", ignore_errors=True)
    return path


@pytest.mark.parametrize("how", ["pickle", "zip"])
def test_a_pickle_for_a_checkpoint_is_refused_and_not_run(
    folder: Path, gan: Gan, tmp_path: Path, how: str
) -> None:
    harm = Harm(tmp_path / "harm")
    torch.save(harm, tmp_path / "x.pt")
    content = pickle.dumps(harm) if how == "pickle" else (tmp_path / "x.pt").read_bytes()
    path = replaced(folder, "generator.safetensors", content)
    for command in (["sample", folder, "--out", tmp_path / "x.npz"], ["score", folder]):
        code, _, err = gan(*command, "--device", "cpu")
        assert code == 2
        assert "generator.safetensors is no safetensors file" in err
        assert is_clear(err, path)
    assert not (tmp_path / "harm").exists()
    pickle.loads(pickle.dumps(harm))
    assert (tmp_path / "harm").exists()  # it does harm where it is run


# checkpoints


def described(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file of that header, which may say another length than it has."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


ABSURD = {
    "a header of an exbibyte": described({}, length=2**60),
    "a header of 90 MiB in a short file": described({}, length=90 << 20),
    "a petabyte in four bytes": described({"x": tensor([2**48], 0, 4)}, bytes(4)),
    "a petabyte by its offsets": described({"x": tensor([2**48], 0, 2**50)}, bytes(4)),
    "8 GiB by its offsets": described({"x": tensor([2**31], 0, 2**33)}, bytes(4)),
    "a shape that overflows": described({"x": tensor([2**40, 2**40], 0, 4)}, bytes(4)),
    "a shape that overflows to fit": described({"x": tensor([2**62, 4], 0, 0)}),
    "overlapping": described({"x": tensor([2], 0, 8), "y": tensor([2], 4, 12)}, bytes(12)),
    "a hole": described({"x": tensor([1], 0, 4), "y": tensor([1], 8, 12)}, bytes(12)),
    "out of range": described({"x": tensor([1], 100, 104)}, bytes(4)),
    "backwards": described({"x": tensor([1], 4, 0)}, bytes(4)),
    "negative": described({"x": tensor([-1], 0, 4)}, bytes(4)),
    "no such dtype": described({"x": tensor([1], 0, 4, "OBJECT")}, bytes(4)),
    "deep": described(b'{"x":' + b"[" * 100_000),
    "no JSON": described(b"\x80\x04."),
    "no table": described([1]),
    "cut": described({"x": tensor([4], 0, 16)}, bytes(8)),
    "more than it says": described({"x": tensor([1], 0, 4)}, bytes(8)),
    "empty": b"",
    "seven bytes": bytes(7),
}


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """Let this process allocate only so many bytes more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_header_is_refused_before_anything_is_allocated(folder: Path, name: str) -> None:
    path = replaced(folder, "generator.safetensors", ABSURD[name])
    with little_memory(256 << 20), pytest.raises(CheckpointError) as caught:
        checkpoint.load(path.parent)
    assert f"{path} is no safetensors file, or a damaged one: Error while des" in str(caught.value)
    assert is_clear(str(caught.value), path)


def test_only_files_of_the_manifest_are_loaded_and_only_from_the_folder(
    folder: Path, tmp_path: Path
) -> None:
    path = folder / "checkpoints" / "step-000002"
    manifest = json.loads((path / "manifest.json").read_text())
    secret = tmp_path / "secret"
    secret.write_text("x")
    digest = hashlib.sha256(b"x").hexdigest()
    without = {name: each for name, each in manifest.items() if not name.startswith("gen")}
    for wrong in (
        {**manifest, "../../../secret": digest},
        {**manifest, str(secret): digest},
        {**manifest, "/dev/zero": digest},
        {**manifest, f"a{ESCAPE}": digest},
        without,
        {},
        [1],
        {**manifest, "state.json": 3},
    ):
        (path / "manifest.json").write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match="is damaged: ") as caught:
            checkpoint.load(path)
        assert is_clear(str(caught.value), path)
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "generator.safetensors").unlink()
    (path / "generator.safetensors").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"generator.safetensors is no file"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"{}", b'{"format": "\\u001b"}'),
        *(b'{"format": 1}', b'{"format": 1, "step": "../../x"}', b"9" * 5000),
    ],
)
def test_a_broken_state_is_refused(folder: Path, content: bytes) -> None:
    path = replaced(folder, "state.json", content)
    with pytest.raises(CheckpointError, match=r"is damaged|has format") as caught:
        checkpoint.load(path.parent)
    assert is_clear(str(caught.value), path.parent)


@pytest.mark.parametrize("content", ["", "[]", '{"step": "../../x"}', '{"step": 1.5}', "{}"])
def test_a_broken_mark_of_the_best_is_refused(folder: Path, content: str) -> None:
    (folder / "checkpoints" / "best.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"best.json is damaged"):
        checkpoint.load_best(folder / "checkpoints")


def test_a_checkpoint_without_a_network_is_refused(folder: Path) -> None:
    path = folder / "checkpoints" / "step-000002"
    manifest = json.loads((path / "manifest.json").read_text())
    for name in ("generator", "critic"):
        (path / f"{name}.safetensors").unlink()
        del manifest[f"{name}.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    for load, name in ((load_generator, "generator"), (load_critic, "critic")):
        with pytest.raises(CheckpointError, match=f"has no {name}.safetensors"):
            load(folder)


def test_folders_beside_the_checkpoints_are_left_alone(folder: Path) -> None:
    for name in ("step-²", "step-../x", "step-", "step--1"):
        (folder / "checkpoints" / name.replace("/", "_")).mkdir()
    found = checkpoint.latest(folder / "checkpoints")
    assert found is not None
    assert found.step == 2


# what a run goes on from


def resume(folder: Path, **changes: Any) -> None:
    recipe = parsed(TOY, **{"train.steps": 3, **changes})
    build(recipe, device="cpu").run(folder, resume=True, force=bool(changes))


def optimizers(folder: Path) -> dict[str, torch.Tensor]:
    content = (folder / "checkpoints" / "step-000002" / "optimizers.safetensors").read_bytes()
    return dict(load_tensors(content))


MOMENT = "expected float32 (16, 2), found"
WRONG = {
    "a number for a moment": ({"0/exp_avg": torch.zeros(1)}, f"{MOMENT} float32 (1,)"),
    "turned": ({"0/exp_avg": torch.zeros(2, 16)}, f"{MOMENT} float32 (2, 16)"),
    "integers": ({"0/exp_avg": torch.zeros(16, 2).int()}, f"{MOMENT} int32 (16, 2)"),
    "steps": ({"0/step": torch.zeros(2)}, "expected float32 (), found float32 (2,)"),
    "one missing": ({"0/exp_avg_sq": None}, f"{MOMENT} none"),
    "one more": ({"0/max_exp_avg_sq": torch.zeros(1)}, "expected none, found float32 (1,)"),
    "no such parameter": ({"99/step": torch.ones(1)}, "expected none, found float32 (1,)"),
    "no index": ({f"-0{ESCAPE}": torch.ones(1)}, "expected none, found float32 (1,)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_optimizer_s_state_fits_or_is_refused(folder: Path, name: str) -> None:
    """Fused kernels would read and write beyond a small one."""
    changes, said = WRONG[name]
    tensors = optimizers(folder) | {f"critic/{key}": each for key, each in changes.items()}
    whole = {key: each for key, each in tensors.items() if each is not None}
    replaced(folder, "optimizers.safetensors", save_tensors(whole))
    with pytest.raises(CheckpointError, match=rf"state critic/.*: {re.escape(said)}\. ") as caught:
        resume(folder)
    assert str(caught.value).isprintable()


def test_an_optimizer_of_another_kind_or_without_state_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"generator/0/exp_avg: expected none.*\. Undo what"):
        resume(folder, **{"optimizer.name": "rmsprop"})
    replaced(folder, "optimizers.safetensors", save_tensors({}))
    with pytest.raises(CheckpointError, match="has no state of the generator's optimizer"):
        resume(folder)


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_an_optimizer_s_state_comes_back_and_none_where_there_was_no_gradient(name: str) -> None:
    section = Optimizer(name=name)  # type: ignore[arg-type]
    one, other, twin = ([torch.nn.Parameter(torch.ones(3)) for _ in range(3)] for _ in range(3))
    began, later = make_optimizer(section, one), make_optimizer(section, other)
    gradients = [torch.tensor([1.0, -2.0, 3.0]), None, torch.ones(3)]
    apply_gradients(began, one, gradients)
    saved = {key: each.clone() for key, each in optimizer_state("critic", began).items()}
    assert {path.split("/")[1] for path in saved} == {"0", "2"}
    restore_optimizer("critic", later, saved)
    assert torch.equal(torch.stack(other), torch.ones(3, 3))
    for parameters, optimizer in ((one, began), (other, later), (twin, None)):
        with torch.no_grad():
            for each in parameters:
                each.fill_(1.0)
        opposite = [None if each is None else -0.5 * each for each in gradients]
        apply_gradients(optimizer or make_optimizer(section, parameters), parameters, opposite)
    assert torch.equal(torch.stack(one), torch.stack(other))
    assert not torch.equal(torch.stack(one), torch.stack(twin))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seconds": "x"}, "seconds: expected a valid number, got 'x'"),
        ({"seconds": -1.0}, "seconds: expected greater than or equal to 0"),
        ({"penalties": [["a", 1]]}, "penalties: expected a valid dictionary"),
        ({"penalties": {"a": float("nan")}}, "penalties.a: expected "),
        ({"best": [1]}, "best: expected a valid dictionary"),
        ({"best": {"step": 1}}, "best.score: missing.*; .*best.value: missing"),
        ({"best": {"step": 1, "score": ESCAPE, "value": 1.0}}, "best.score: expected "),
        ({"best": {"step": 1, "score": "[/]", "value": 1.0}}, "best.score: expected "),
        ({"best": {"step": 1, "score": "w2", "value": "x"}}, "best.value: expected a valid number"),
        ({"best": {"step": "../x", "score": "w2", "value": 1.0}}, "best.step: expected "),
        ({"plugins": []}, "plugins: expected a table for each plugin"),
        ({"plugins": None}, "plugins: expected a table for each plugin"),
        ({"plugins": {"gp": 5}}, "plugins: expected a table for each plugin"),
    ],
)
def test_what_a_run_remembers_is_checked(folder: Path, changes: dict[str, Any], said: str) -> None:
    state = json.loads((folder / "checkpoints" / "step-000002" / "state.json").read_text())
    replaced(folder, "state.json", json.dumps(state | changes).encode())
    with pytest.raises(CheckpointError, match=rf"state\.json: {said}.*train again$") as caught:
        resume(folder)
    assert str(caught.value).isprintable()


def test_the_best_is_of_the_score_looked_at_now() -> None:
    tally = Tally()
    tally.remember_best(1, {"w2": float("nan")})
    assert tally.best is None
    for step, scores, best in (
        (10, {"w2": 1.4, "modes": 8.0}, 10),
        (20, {"w2": 1.5}, 10),
        (30, {"quality": 0.2}, 30),  # resumed with another metric
        (40, {"quality": 0.1}, 30),
        (50, {"w2": 9.0}, 50),
    ):
        tally = Tally.of(json.loads(json.dumps(tally.state())))
        tally.remember_best(step, scores)
        assert tally.best is not None
        assert (tally.best["step"], tally.best["score"] in scores) == (best, True)


# run folders


BROKEN = {
    "cut": b'{"scores": {"w2": 1.',
    "empty": b"",
    "a list": b"[1]",
    "null": b"null",
    "no text": b"\xff\xfe\x00",
    "deep": b'{"scores":' + b"[" * 100_000,
    "nested": b'{"scores": ' + b"[" * 500 + b"]" * 500 + b"}",
    "a long number": b'{"step": 1, "seconds": ' + b"9" * 5000 + b"}",
    "nan": b'{"step": 1, "seconds": NaN, "scores": {"w2": NaN}, "versions": NaN}',
    "wrong types": b'{"step": "1", "seconds": [], "scores": {"w2": "1"}, "plugins": 3, "git": 3}',
    "control characters": json.dumps(
        {"step": 1, "seconds": 1, ESCAPE: ESCAPE, "scores": {ESCAPE: 1}, "versions": {ESCAPE: "1"}}
    ).encode(),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("what", ["scores", "environment", "records", "recipe", "seed"])
def test_a_broken_file_of_a_run_is_named(folder: Path, what: str, name: str) -> None:
    run = Run(folder)
    path = {
        "scores": run.scores_path,
        "environment": run.environment_path,
        "records": run.metrics_path,
    }.get(what, run.recipe_path)
    getattr(run, what)
    path.write_bytes(BROKEN[name] + b"\n")
    with pytest.raises(InputError) as caught:
        getattr(run, what)
    assert is_clear(str(caught.value), path)


def test_every_key_that_others_use_is_asked_for(folder: Path) -> None:
    run = Run(folder)
    for path, what in ((run.scores_path, "scores"), (run.environment_path, "environment")):
        whole = json.loads(path.read_text())
        needed = {"protocol", "scores"} if what == "scores" else set(whole) - {"world_size"}
        needed -= {"float32"}
        for key in needed:
            path.write_text(json.dumps({name: each for name, each in whole.items() if name != key}))
            with pytest.raises(InputError, match=rf"{path.name}: {key}: missing"):
                getattr(run, what)
        path.write_text(json.dumps(whole))
        assert getattr(run, what) == whole
    scores = json.loads(run.scores_path.read_text())
    for key in ("reference", "samples", "seed", "versions"):
        protocol = {name: each for name, each in scores["protocol"].items() if name != key}
        run.scores_path.write_text(json.dumps({**scores, "protocol": protocol}))
        with pytest.raises(InputError, match=rf"protocol.{key}: missing"):
            _ = run.scores


def test_a_record_that_is_none_is_named_by_its_line(folder: Path) -> None:
    run = Run(folder)
    count = len(run.records)
    good = run.metrics_path.read_text()
    run.metrics_path.write_text(good + '{"cut off')
    assert len(run.records) == count
    for line in (
        "{}",
        '{"step": 1}',
        '{"step": 1, "seconds": true}',
        '{"step": 1.5, "seconds": 1}',
        '{"step": 1, "seconds": NaN}',
        '{"step": 1, "seconds": 1, "critic_loss": 1e300}',
    ):
        run.metrics_path.write_text(f"{good}{line}\n")
        with pytest.raises(InputError, match=f"line {count + 1}: expected finite numbers"):
            _ = run.records


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("recipe.toml", ("report", "score", "sample")),
        ("metrics.jsonl", ("report",)),
        ("scores.json", ("report", "score")),
        ("environment.json", ("report",)),
        ("checkpoints/step-000002/state.json", ("report", "score", "sample")),
        ("checkpoints/step-000002/manifest.json", ("sample",)),
    ],
)
def test_a_broken_run_folder_is_one_clear_line_and_exit_2(
    folder: Path, gan: Gan, tmp_path: Path, name: str, commands: tuple[str, ...]
) -> None:
    shutil.rmtree(folder / "checkpoints" / "step-000001")
    (folder / name).write_text("{\n")
    out = ["--out", tmp_path / "samples.npz"]
    for command in commands:
        given_ = [command, folder, "--device", "cpu", *(out if command == "sample" else [])]
        code, _, err = gan(*given_)
        assert code == 2
        assert is_clear(err, folder / name)
        assert err.count("\n") <= 2
    assert not (tmp_path / "samples.npz").exists()


# leaderboards


def leaderboard() -> dict[str, Any]:
    def entry(name: str, values: list[Any]) -> dict[str, Any]:
        return {"name": name, "scores": {"fid": {"values": values, "seeds": [0, 1, 2]}}}

    return {
        "format": 1,
        "metric": "fid",
        "higher_is_better": [],
        "entries": [entry("none", [1.0, 1.1, 1.2]), entry("gp", [2.0, 2.1, 2.3])],
        "protocol": {"extractor": "digits", "weights_sha256": "ab" * 32},
        "budget": None,
    }


def altered(path: str, value: Any) -> dict[str, Any]:
    """Return a leaderboard with another value at a path; None leaves it out."""
    whole = leaderboard()
    here: Any = whole
    *parents, last = path.split(".")
    for part in parents:
        here = here[int(part) if part.isdigit() else part]
    key = int(last) if last.isdigit() else last
    if value is None:
        del here[key]
    else:
        here[key] = value
    return whole


STRANGE: dict[str, Any] = {
    **{f"no {key}": altered(key, None) for key in leaderboard() if key != "budget"},
    **{f"{key} a number": altered(key, 3) for key in leaderboard() if key != "format"},
    "another format": altered("format", 2),
    "no entries": altered("entries", []),
    "a million entries": altered("entries", [{"name": "a", "scores": {}}] * 10**6),
    "numbers for entries": altered("entries", [1] * 10**5),
    "one name twice": altered("entries", leaderboard()["entries"][:1] * 2),
    "a path for a name": altered("entries.0.name", "../../x"),
    "markup for a name": altered("entries.0.name", "[/red]"),
    "control characters": altered("entries.0.name", ESCAPE),
    "a score's name": altered("entries.0.scores", {ESCAPE: {"values": [], "seeds": []}}),
    "an extractor": altered("protocol.extractor", "[/]"),
    "no weights": altered("protocol.weights_sha256", None),
    "no values": altered("entries.0.scores.fid.values", None),
    "fewer values": altered("entries.0.scores.fid.values", [1.0]),
    "text for values": altered("entries.0.scores.fid.values", ["1", "2", "3"]),
    "NaN": altered("entries.0.scores.fid.values", [float("nan"), 1.0, 2.0]),
    "inf": altered("entries.0.scores.fid.values", [float("inf"), 1.0, 2.0]),
    "1e300": altered("entries.0.scores.fid.values", [1e300, 1.0, 2.0]),
    "a seed twice": altered("entries.0.scores.fid.seeds", [0, 0, 1]),
    "text for seeds": altered("entries.0.scores.fid.seeds", ["0", "1", "2"]),
    "another budget": altered("budget", {ESCAPE: ESCAPE}),
    "a list": [leaderboard()],
    "null": None,
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_leaderboard_is_refused_with_exit_2(tmp_path: Path, gan: Gan, name: str) -> None:
    good, strange = tmp_path / "good.json", tmp_path / "strange.json"
    good.write_text(json.dumps(leaderboard()))
    strange.write_text(json.dumps(STRANGE[name]))
    code, out, err = gan("compare", good, strange)
    assert (code, out) == (2, "")
    assert is_clear(err, strange)
    if "million" not in name:  # which takes seconds to read
        code, out, err = gan("compare", strange, good)
        assert (code, out) == (2, "")


@pytest.mark.parametrize("name", ["cut", "empty", "a list", "null", "no text", "deep", "nested"])
def test_a_broken_leaderboard_is_refused_with_exit_2(tmp_path: Path, gan: Gan, name: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(BROKEN[name])
    code, out, err = gan("compare", path, path)
    assert (code, out) == (2, "")
    assert is_clear(err, path)


def test_the_leaderboard_that_they_are_made_from_is_compared(tmp_path: Path, gan: Gan) -> None:
    path = tmp_path / "good.json"
    path.write_text(json.dumps(leaderboard()))
    code, out, err = gan("compare", path, path)
    assert (code, err) == (0, "")
    assert "tie" in out


def test_a_score_without_values_decides_nothing(tmp_path: Path, gan: Gan) -> None:
    path = tmp_path / "none.json"
    path.write_text(json.dumps(altered("entries.1.scores.fid", {"values": [], "seeds": []})))
    code, out, err = gan("compare", path, path)
    assert (code, err) == (0, "")
    assert "undecided" in out


def test_unlike_leaderboards_say_so_without_control_characters() -> None:
    one, other = leaderboard(), leaderboard()
    other["protocol"][ESCAPE] = ESCAPE
    with pytest.raises(InputError, match="can't be compared") as caught:
        gate(one, other, "fid")
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


@pytest.mark.parametrize(("old", "new", "worse"), [(1e-300, 1e100, True), (1e100, 1e-300, False)])
def test_scores_of_any_size_have_a_verdict(
    tmp_path: Path, old: float, new: float, worse: bool
) -> None:
    paths = tmp_path / "old.json", tmp_path / "new.json"
    for path, size, last in zip(paths, (old, new), (0.8, 0.5), strict=True):
        values = [size, 0.9 * size, last * size]
        path.write_text(json.dumps(altered("entries.1.scores.fid.values", values)))
    found = gate(read(paths[0]), read(paths[1]), "fid")["gp"]
    assert found.verdict == ("worse" if worse else "better")
    assert regressed(found, "fid", 0.0) == worse


# names


NAMES = [
    "../x",
    "/etc/x",
    "a/../../x",
    "..",
    "a\0b",
    "a\nb",
    "a\rb",
    ESCAPE,
    "\u202ea",
    "~/x",
    "x" * 300,
]


def quoted(name: str) -> str:
    return json.dumps(name)  # is a TOML string too


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["plugin", "data", "generator", "critic", "loss"])
def test_a_component_s_name_is_looked_up_and_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gan: Gan, key: str, name: str
) -> None:
    text = re.sub(rf"(\[{key}\]\]?\nname = ).*", lambda found: found[1] + quoted(name), TOY)
    assert text != TOY
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    Path("r.toml").write_text(text)
    code, out, err = gan("run", "r.toml", "--device", "cpu")
    assert (code, out) == (2, "")
    assert all(line.isprintable() for line in err.split("\n"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["r.toml"]


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_s_name_that_is_no_file_s_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "board.toml"
    for key, text in (
        ("entry.0.name", 'baseline = "a"\n[[entry]]\nname = {}\n'),
        ("baseline", 'baseline = {}\n[[entry]]\nname = "a"\n'),
    ):
        path.write_text('recipe = "r.toml"\nseeds = [0]\n' + text.format(quoted(name)))
        with pytest.raises(RecipeError, match=key) as caught:
            Board.load(path)
        assert is_clear(str(caught.value), path)


def test_a_label_or_metric_of_a_board_is_text(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    text = 'recipe = "r.toml"\nseeds = [{seed}]\nbaseline = "a"\n{metric}[[entry]]\nname = "a"\n'
    path.write_text(text.format(seed=0, metric="") + f"label = {quoted(ESCAPE)}\n")
    with pytest.raises(RecipeError, match=r"entry.0.label: expected text without control"):
        Board.load(path)
    path.write_text(text.format(seed=0, metric='metric = "[/]"\n'))
    with pytest.raises(RecipeError, match="metric: expected one of fid, isc, "):
        Board.load(path)
    path.write_text(text.format(seed=2**63, metric=""))
    with pytest.raises(RecipeError, match=r"seeds.0: expected less than"):
        Board.load(path)


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b"])
def test_an_alias_names_no_file(tmp_path: Path, name: str) -> None:
    """The run is as any other, goes on where it stopped, and nothing is outside of its folder."""
    folder = tmp_path / "a" / "b" / "run"
    for steps in (2, 3):
        changes = {"plugin.0.name": "lecam", "plugin.0.as": name, "train.steps": steps}
        build(parsed(TOY, **changes), device="cpu").run(folder, resume=True)
    found = checkpoint.latest(folder / "checkpoints")
    assert found is not None
    assert name in found.state["plugins"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert all(path.is_relative_to(folder) for path in files)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", ESCAPE, "\u202ea"])
def test_an_alias_without_control_characters_is_asked_for(name: str) -> None:
    with pytest.raises(RecipeError, match=r"plugin.0.as: expected text without control") as caught:
        parsed(TOY, **{"plugin.0.as": name})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a\0b", "a\nb", ESCAPE, "\u202ea"])
def test_a_key_with_control_characters_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(TOY.replace("width", quoted(name)))
    with pytest.raises(RecipeError, match="a key with control characters") as caught:
        Recipe.load(path)
    assert is_clear(str(caught.value), path)


# limits


def test_an_override_that_can_not_be_is_refused() -> None:
    table = tomllib.loads(TOY)
    with pytest.raises(RecipeError, match="is no index from 0 to 1"):
        Recipe.parse(table, overrides=[f"plugin.{'9' * 5000}.weight=1"])
    with pytest.raises(RecipeError, match="a value that TOML does not have"):
        Recipe.parse(table, overrides={"generator.width": object()})
    with pytest.raises(RecipeError, match="nested over 32 deep"):
        Recipe.parse(table, overrides=[f"generator.{'a.' * 900}a=1"])


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(TOY + "#" * (LARGEST - len(TOY)))
    Recipe.load(path)
    path.write_text(TOY + "#" * (LARGEST - len(TOY) + 1))
    with pytest.raises(RecipeError, match="over the limit of 256 KiB"):
        Recipe.load(path)
    for endless in (Path("/dev/zero"), tmp_path / "link"):
        if endless.name == "link":
            endless.symlink_to("/dev/zero")
        with pytest.raises(RecipeError, match="over the limit"):
            Recipe.load(endless)


def test_a_path_with_a_null_byte_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"a\\x00b: can't be read: embedded null byte"):
        Recipe.load("a\0b")


def test_a_key_of_many_parts_is_refused_at_once(tmp_path: Path) -> None:
    """tomllib takes over a minute for this one."""
    path = tmp_path / "r.toml"
    path.write_text(TOY + "a." * 60_000 + "a = 1\n")
    with pytest.raises(RecipeError, match="a key of over 32 parts"):
        Recipe.load(path)
    dots = '# {0}\nx = "{0}"\ny = \'{0}\'\nz = """{0} "" {0}"""\n'.format("a." * 50)
    for text in (dots, f"x = [{'1.5, ' * 100}]\n"):
        path.write_text(text)
        with pytest.raises(RecipeError, match="unknown key"):
            Recipe.load(path)


# what is shown


def test_messages_hold_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / f"{ESCAPE.replace('/', '')}.toml"
    for text in (None, "[", "x = 1", f"'{ESCAPE}' = 1", f"x = {quoted(ESCAPE)}", "x." * 99 + "x=1"):
        if text is not None:
            path.write_text(text)
        for load in (Recipe.load, Board.load):
            with pytest.raises(RecipeError) as caught:
                load(path)
            assert all(line.isprintable() for line in str(caught.value).split("\n"))


def test_the_error_of_a_failed_run_is_text(tmp_path: Path) -> None:
    job = Job("gp", 0, {}, tmp_path)
    (tmp_path / "log.txt").write_text(f"Traceback\nerror: {ESCAPE}red{'x' * 5000}\n")
    _finish(job, 1)
    assert job.state == "failed"
    assert job.error.isprintable()
    assert "red" in job.error
    assert len(job.error) < 1200


def cells(row: str) -> list[str]:
    return [unescape(re.sub("<.*?>", "", each)) for each in row.split("<td>")[1:]]


def rendered(label: str, error: str) -> tuple[list[list[str]], str]:
    """Return the cells of a leaderboard's Markdown as a reader renders them, and what is below."""
    about = {"plugins": {}, "seconds": [1.0], "missing": [], "collapsed": [], "cost": {}}
    entries = [
        {**copy.deepcopy(each), **about, "label": label, "failed": [{"seed": 0, "error": error}]}
        for each in leaderboard()["entries"]
    ]
    for entry in entries:
        entry["scores"]["fid"] |= {"median": 1.0, "low": 1.0, "high": 1.0, "verdict": "baseline"}
        entry["scores"]["fid"] |= {"seeds_compared": 0, "detectable": None, "scale": "ratio"}
    found = {**leaderboard(), "entries": entries, "baseline": "none", "seeds": [0, 1, 2]}
    text = markdown({**found, "protocol": {}})
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    table, _, below = html.partition("</table>")
    return [cells(row) for row in table.split("<tr>")[2:]], below


@settings(max_examples=100, derandomize=True, deadline=None)
@given(label=st.text("ab |\\`<>&*_[]()!#~-+=\n\r\t\x1b:", max_size=12) | st.text(max_size=12))
def test_any_label_is_text_in_markdown(label: str) -> None:
    rows, below = rendered(label, label)
    assert [len(row) for row in rows] == [9, 9]
    plain = "".join(each if each.isprintable() else " " for each in label)
    assert rows[0][1].strip() == plain.strip()
    assert set(re.findall("<(.*?)>", below)) <= {"p", "/p", "br /", "br"}


@pytest.mark.parametrize(
    "label",
    [
        *("a | b", "a\n| --- |\n<b>", "`a`", "<script>alert(1)</script>", "![x](javascript:x)"),
        *("[x](https://x.invalid)", "a\\|b", "| a |", "</td></tr></table><img src=x>", ESCAPE),
        *("- a", "1. a", "2) a", "    a", "+ a", "===", "> a", "~~~", "# a", "---", "&lt;b&gt;"),
    ],
)
def test_wicked_labels_are_text_in_markdown(label: str) -> None:
    rows, below = rendered(label, f"{label}\n\n# {label}")
    plain = "".join(each if each.isprintable() else " " for each in label)
    assert [len(row) for row in rows] == [9, 9]
    assert rows[0][1].strip() == plain.strip()
    assert set(re.findall("<(.*?)>", below)) <= {"p", "/p", "br /", "br"}
