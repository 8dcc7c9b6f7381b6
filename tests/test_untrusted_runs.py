"""Run folders and checkpoints from strangers: none runs anything, or ends in a traceback."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import resource
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import BROKEN, ESCAPE, TOY, Gan, is_clear, parsed
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from gancore.errors import CheckpointError, InputError
from gancore.recipe import Optimizer
from gancore.training import Run, checkpoint, load_critic, load_generator
from gancore.training import build_trainer as build
from gancore.training.optimizers import (
    apply_gradients,
    make_optimizer,
    optimizer_state,
    restore_optimizer,
)
from gancore.training.tally import Tally


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
    with pytest.raises(CheckpointError, match=r"generator.safetensors is damaged: it is a d"):
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


W = "layers.1.weight"
MOMENT = "expected float32 (16, 2), found"
WRONG = {
    "a number for a moment": ({f"{W}/exp_avg": torch.zeros(1)}, f"{MOMENT} float32 (1,)"),
    "turned": ({f"{W}/exp_avg": torch.zeros(2, 16)}, f"{MOMENT} float32 (2, 16)"),
    "integers": ({f"{W}/exp_avg": torch.zeros(16, 2).int()}, f"{MOMENT} int32 (16, 2)"),
    "steps": ({f"{W}/step": torch.zeros(2)}, "expected float32 (), found float32 (2,)"),
    "one missing": ({f"{W}/exp_avg_sq": None}, f"{MOMENT} none"),
    "one more": ({f"{W}/max_exp_avg_sq": torch.zeros(1)}, "expected none, found float32 (1,)"),
    "no such parameter": ({"99/step": torch.ones(1)}, "expected none, found float32 (1,)"),
    "a position": ({"0/exp_avg": torch.ones(16, 2)}, "expected none, found float32 (16, 2)"),
    "no name": ({f"-0{ESCAPE}": torch.ones(1)}, "expected none, found float32 (1,)"),
    "no key": ({"": torch.ones(1)}, "expected none, found float32 (1,)"),
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
    with pytest.raises(CheckpointError, match=r"generator/layers.0.\w+/exp_avg: expected none"):
        resume(folder, **{"optimizer.name": "rmsprop"})
    replaced(folder, "optimizers.safetensors", save_tensors({}))
    with pytest.raises(CheckpointError, match="has no state of the generator's optimizer"):
        resume(folder)


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_an_optimizer_s_state_comes_back_and_none_where_there_was_no_gradient(name: str) -> None:
    section = Optimizer(name=name)  # type: ignore[arg-type]
    network, another, third = (
        torch.nn.ParameterList([torch.ones(3) for _ in range(3)]) for _ in range(3)
    )
    one, other, twin = list(network), list(another), list(third)
    began, later = make_optimizer(section, one), make_optimizer(section, other)
    gradients = [torch.tensor([1.0, -2.0, 3.0]), None, torch.ones(3)]
    apply_gradients(began, one, gradients)
    saved = {key: each.clone() for key, each in optimizer_state("critic", began, network).items()}
    assert {path.split("/")[1] for path in saved} == {"0", "2"}
    (told,) = restore_optimizer("critic", later, another, saved)
    assert told == "the critic's 1 has no optimizer state in the checkpoint, so that begins anew"
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
        assert (tally.best.step, tally.best.score in scores) == (best, True)


# run folders


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("what", ["scores", "environment", "records", "recipe", "expected"])
def test_a_broken_file_of_a_run_is_named(folder: Path, what: str, name: str) -> None:
    run = Run(folder)
    path = {
        "scores": run.scores_path,
        "environment": run.environment_path,
        "records": run.metrics_path,
        "expected": run.expected_path,
    }.get(what, run.recipe_path)
    if what == "expected":
        path.write_text("{}")
    assert run.read().run == run
    path.write_bytes(BROKEN[name] + b"\n")
    for read in (run.read, lambda: list(getattr(run, f"read_{what}")() or ())):
        with pytest.raises(InputError) as caught:
            read()
        assert is_clear(str(caught.value), path)


def test_every_key_that_others_use_is_asked_for(folder: Path) -> None:
    run = Run(folder)
    for path, what in ((run.scores_path, "scores"), (run.environment_path, "environment")):
        whole = json.loads(path.read_text())
        needed = {"protocol", "scores"} if what == "scores" else set(whole) - {"world_size"}
        needed -= {"float32", "cpu", "cpu_capability", "blas"}  # older folders are without
        needed -= {"data", "components", "core", "from_step", "earlier"}
        for key in needed:
            path.write_text(json.dumps({name: each for name, each in whole.items() if name != key}))
            with pytest.raises(InputError, match=rf"{path.name}: {key}: missing"):
                getattr(run, f"read_{what}")()
        path.write_text(json.dumps(whole))
        assert getattr(run, f"read_{what}")().table() == whole
    scores = json.loads(run.scores_path.read_text())
    for key in ("reference", "samples", "seed", "versions"):
        protocol = {name: each for name, each in scores["protocol"].items() if name != key}
        run.scores_path.write_text(json.dumps({**scores, "protocol": protocol}))
        with pytest.raises(InputError, match=rf"protocol.{key}: missing"):
            _ = run.read_scores()


def test_a_record_that_is_none_is_named_by_its_line(folder: Path) -> None:
    run = Run(folder)
    count = len([*run.read_records()])
    good = run.metrics_path.read_text()
    run.metrics_path.write_text(good + '{"cut off')
    assert len([*run.read_records()]) == count
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
            _ = list(run.read_records())


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
