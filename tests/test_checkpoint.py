"""Checkpoints: what is loaded is what was saved, and no moment leaves half of one."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from gancore.errors import CheckpointError
from gancore.files import writing
from gancore.training import checkpoint
from gancore.training.checkpoint import (
    Checkpoint,
    UnreadableError,
    latest,
    load,
    load_best,
    mark_best,
    save,
)
from gancore.training.state import join_state, split_state
from gancore.training.tally import Best


def made(step: int) -> Checkpoint:
    torch.manual_seed(step)
    tied = torch.randn(3, 4)
    tensors = {
        "generator": {
            "plain": torch.randn(2, 3),
            "transposed": tied.T,
            "tied": tied,
            "tied again": tied,
            "part of it": tied[1:],
            "count": torch.tensor(step),
            "half": torch.randn(5).bfloat16(),
        },
        "empty": {},
    }
    return Checkpoint(step, tensors, {"seconds": 0.1 + step, "penalties": {"penalty/gp": 1 / 3}})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    saved = made(7)
    loaded = load(save(tmp_path, saved, keep=1))
    assert loaded.step == 7
    assert loaded.state["penalties"] == {"penalty/gp": 1 / 3}
    assert set(loaded.tensors) == {"generator", "empty"}
    for key, tensor in saved.tensors["generator"].items():
        assert loaded.tensors["generator"][key].dtype == tensor.dtype
        torch.testing.assert_close(loaded.tensors["generator"][key], tensor, rtol=0, atol=0)


def test_a_checkpoint_is_safetensors_and_json_only(tmp_path: Path) -> None:
    path = save(tmp_path, made(1), keep=1)
    assert {each.suffix for each in path.iterdir()} == {".safetensors", ".json"}
    manifest = json.loads((path / "manifest.json").read_text())
    assert sorted(manifest) == ["empty.safetensors", "generator.safetensors", "state.json"]


def test_only_the_latest_are_kept(tmp_path: Path) -> None:
    for step in (999, 1000, 10_000, 1_000_000):
        save(tmp_path, made(step), keep=2)
    assert names(tmp_path) == ["step-010000", "step-1000000"]
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 1_000_000


def test_the_best_is_kept_and_found(tmp_path: Path) -> None:
    save(tmp_path, made(1), keep=1)
    with pytest.raises(CheckpointError, match=r"no best checkpoint: only a run with score.every"):
        load_best(tmp_path)
    mark_best(tmp_path, None)
    best = Best(step=2, score="fid", value=1.5)
    for step in (2, 3, 4):
        save(tmp_path, made(step), keep=1, best=best)
    assert names(tmp_path) == ["best.json", "step-000002", "step-000004"]
    assert load_best(tmp_path).step == 2
    assert json.loads((tmp_path / "best.json").read_text())["value"] == 1.5
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 4
    mark_best(tmp_path, None)
    assert names(tmp_path) == ["step-000002", "step-000004"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest(tmp_path) is None


@pytest.mark.parametrize(
    ("module", "failing"), [(checkpoint, "save_file"), (checkpoint, "sha256"), (writing, "sync")]
)
def test_a_save_that_fails_leaves_the_older_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, failing: str
) -> None:
    save(tmp_path, made(1), keep=1)

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, failing, fail)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, made(2), keep=1)
    assert names(tmp_path) == ["step-000001"]
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_what_a_killed_save_left_is_swept(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, made(1), keep=1), tmp_path / ".writing-0123456789abcdef")
    assert latest(tmp_path) is not None
    assert names(tmp_path) == [".writing-0123456789abcdef", "step-000001"]  # readers leave it alone
    latest(tmp_path, mend=print)
    assert names(tmp_path) == ["step-000001"]


@pytest.mark.parametrize("at", [1, 2])
def test_saving_a_step_again_loses_it_at_no_failed_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    save(tmp_path, made(1), keep=1)
    calls, real = itertools.count(1), Path.rename

    def rename(path: Path, to: Path) -> Path:
        if next(calls) == at:
            raise KeyboardInterrupt
        return real(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, made(1), keep=1)
    assert names(tmp_path) == ["step-000001"]
    assert load(tmp_path / "step-000001").step == 1


def test_a_step_is_there_when_a_save_of_it_again_is_killed_between_its_renames(
    tmp_path: Path,
) -> None:
    """For readers, and for whoever goes on with it, which gives it its name back."""
    best = Best(step=2, score="fid", value=1.0)
    save(tmp_path, made(1), keep=2)
    save(tmp_path, made(2), keep=2, best=best).rename(tmp_path / ".replaced-step-000002")
    for mend, name in ((None, ".replaced-step-000002"), (print, "step-000002")):
        found = latest(tmp_path, mend=mend, tell=pytest.fail)
        assert found is not None
        assert found.step == load_best(tmp_path).step == 2
        assert names(tmp_path) == sorted(["best.json", "step-000001", name])
    shutil.copytree(tmp_path / "step-000002", tmp_path / ".replaced-step-000002")
    latest(tmp_path, mend=print)  # killed after them, it has its new one
    assert names(tmp_path) == ["best.json", "step-000001", "step-000002"]


def test_a_folder_may_have_a_name_that_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    save(folder, made(1), keep=1)
    found = latest(folder)
    assert found is not None
    for key, tensor in made(1).tensors["generator"].items():
        assert torch.equal(found.tensors["generator"][key], tensor)


@pytest.mark.parametrize("name", ["generator.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, name: str, damage: str
) -> None:
    save(tmp_path, made(1), keep=2)
    path = save(tmp_path, made(2), keep=2) / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.warns(UserWarning, match=r"step-000002.* is damaged: .* Taking step 1$"):
        assert latest(tmp_path) is not None
    assert (tmp_path / "step-000002").is_dir()  # readers leave it alone
    told: list[str] = []
    found = latest(tmp_path, mend=told.append)
    assert found is not None
    assert found.step == 1
    assert names(tmp_path) == [".invalid-step-000002", "step-000001"]
    (line,) = told
    assert "step-000002" in line
    assert line.endswith("Going on from step 1")


@pytest.mark.parametrize("name", ["state.json", "generator.safetensors", "empty.safetensors"])
def test_a_file_that_can_be_read_and_is_another_is_damaged(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, made(7), keep=1)
    other = save(tmp_path / "other", made(8), keep=1)
    content = (other / name).read_bytes().replace(b'"step": 8', b'"step": 7')
    if name.startswith("empty"):
        content += b" "
    (path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is damaged: its SHA-256"):
        load(path)


def test_a_checkpoint_that_is_damaged_twice_is_set_aside_twice(tmp_path: Path) -> None:
    for _ in range(3):
        save(tmp_path, made(1), keep=2)
        (save(tmp_path, made(2), keep=2) / "state.json").unlink()
        found = latest(tmp_path, mend=print)
        assert found is not None
        assert found.step == 1
    invalid = ".invalid-step-000002"
    assert names(tmp_path) == [invalid, f"{invalid}-2", f"{invalid}-3", "step-000001"]


def test_files_and_links_with_a_checkpoints_name_are_in_nobodys_way(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    (folder / "step-000001").write_text("a file")
    (folder / "step-000002").symlink_to(elsewhere)
    (folder / "step-000003").symlink_to(tmp_path / "nowhere")
    (folder / ".writing-step-000003").write_text("a file")
    (folder / ".writing-step-000009").symlink_to(elsewhere)
    save(folder, made(3), keep=1)
    found = latest(folder, mend=print)
    assert found is not None
    assert names(folder) == ["step-000003"]
    assert names(elsewhere) == ["kept"]


def test_a_save_that_is_killed_leaves_the_best_that_it_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every call that changes the folder: what best.json names is there."""
    calls = {"deleted": 0, "renamed": 0, "marked": 0}

    def killed(name: str, real: Any, at: int) -> Any:
        def call(*args: Any) -> Any:
            calls[name] += 1
            if calls[name] == at:
                raise KeyboardInterrupt
            return real(*args)

        return call

    spots = {
        "deleted": (checkpoint, "delete"),
        "renamed": (writing, "sync"),
        "marked": (checkpoint, "mark_best"),
    }
    for name, (module, spot) in spots.items():
        for at in range(1, 13):
            folder = tmp_path / f"{name}-{at}"
            save(folder, made(2), keep=1, best=Best(step=2, score="fid", value=2.0))
            calls[name] = 0
            with monkeypatch.context() as patch:
                patch.setattr(module, spot, killed(name, getattr(module, spot), at))
                with contextlib.suppress(KeyboardInterrupt):
                    save(folder, made(4), keep=1, best=Best(step=4, score="fid", value=1.0))
            assert load_best(folder).step in (2, 4)
    assert min(calls.values()) > 0


def test_nothing_but_damaged_ones_is_an_error_that_names_them(tmp_path: Path) -> None:
    path = save(tmp_path, made(1), keep=2)
    (path / "generator.safetensors").write_bytes(b"")
    for mend in (None, print):  # a second try may not take the folder for a fresh one
        with pytest.raises(CheckpointError, match=r"generator\.safetensors is damaged"):
            latest(tmp_path, mend=mend)


def test_plugin_states_are_split_and_joined() -> None:
    state = {"ema": {"mean": torch.ones(2), "count": 3, "on": True, "note": "x"}, "none": {}}
    tensors, scalars = split_state(state)
    assert list(tensors) == ["ema/mean"]
    joined = join_state(tensors, json.loads(json.dumps(scalars)))
    torch.testing.assert_close(joined["ema"].pop("mean"), torch.ones(2))
    assert joined == {"ema": {"count": 3, "on": True, "note": "x"}, "none": {}}


def test_states_of_plugins_whose_names_begin_alike_are_kept_apart() -> None:
    names = ("a", "a/b", "a/b/c", "b")
    state = {name: {"d": torch.tensor(float(n)), "n": n} for n, name in enumerate(names)}
    joined = join_state(*split_state(state))
    assert {name: (values["d"].item(), values["n"]) for name, values in joined.items()} == {
        name: (n, n) for n, name in enumerate(names)
    }


def test_a_slash_in_a_name_or_key_leads_to_no_other_plugin() -> None:
    state = {
        "a/b": {"c/d": torch.tensor(1.0), "[": torch.tensor(2.0)},
        "a/b/c": {"e": torch.tensor(3.0)},  # no "d": that is a key of "a/b"
        "[1]": {"d": torch.tensor(4.0)},
        '["a", "b': {'x"]': torch.tensor(5.0)},  # with a slash between them JSON
        "a": {"b/c/d": torch.tensor(6.0)},
    }
    assert join_state(*split_state(state)) == state


def test_states_of_earlier_checkpoints_go_to_the_longest_name() -> None:
    tensors = {f"{name}/mean": torch.tensor(1.0) for name in ("a", "a/b", "[1]", "[")}
    names = ["a", "a/b", "[1]", "["]
    joined = join_state(tensors, {name: {} for name in names})
    assert joined == {name: {"mean": torch.tensor(1.0)} for name in names}


def test_a_plugin_state_that_is_no_tensor_or_scalar_is_refused() -> None:
    with pytest.raises(CheckpointError, match="plugin 'mine': state 'net' is a Linear"):
        split_state({"mine": {"net": nn.Linear(1, 1)}})


def refused(patch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """Let the system refuse to open what is in a folder; as root nothing else does."""
    real = os.open

    def opened(path: Any, *args: Any, **options: Any) -> int:
        if str(path).startswith(f"{folder}/"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **options)

    patch.setattr(os, "open", opened)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_what_only_can_not_be_read_is_told_and_left_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    save(tmp_path, made(1), keep=5)
    newest = save(tmp_path, made(2), keep=5, best=Best(step=2, score="fid", value=1.0))
    said = rf"^{newest}/manifest.json: can't be read: {os.strerror(number)}\..* [^.]* step 1$"
    told: list[str] = []
    with monkeypatch.context() as patch:
        refused(patch, newest, number)
        with pytest.warns(UserWarning, match=said):
            found = latest(tmp_path)
        assert found is not None
        assert found.step == 1
        found = latest(tmp_path, mend=told.append)
        assert found is not None
        assert found.step == 1
        with pytest.raises(UnreadableError, match=os.strerror(number)):
            load_best(tmp_path)
        refused(patch, tmp_path, number)
        with pytest.raises(CheckpointError, match="no checkpoint can be used:\n") as caught:
            latest(tmp_path, mend=told.append)
        assert "damaged" not in str(caught.value)
        assert "train again" not in str(caught.value)
    (line,) = told
    assert re.match(said, line)
    assert line.endswith("Going on from step 1")
    assert names(tmp_path) == ["best.json", "step-000001", "step-000002"]
    assert load(newest).step == 2
    save(tmp_path, made(1), keep=1)  # made again: what is later does not push it out
    assert names(tmp_path) == ["step-000001", "step-000002"]


def test_checkpoints_that_can_not_be_listed_are_not_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would begin anew."""
    save(tmp_path, made(1), keep=1)

    def fail(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "listdir", fail)
    with pytest.raises(UnreadableError, match=f"^{tmp_path}: can't be read: Permission"):
        latest(tmp_path, mend=print)


def test_a_checkpoint_that_goes_while_it_is_read_makes_room_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run saves meanwhile, and keeps one: half of the old one is deleted, or all of it."""
    for left in ("manifest.json", None):
        old = save(tmp_path, made(1), keep=1)

        def load_late(path: Path, old: Path = old, left: str | None = left) -> Checkpoint:
            if path == old and path.is_dir():
                save(tmp_path, made(2), keep=2)
                (path / "manifest.json").unlink() if left else shutil.rmtree(path)
            return load(path)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "load", load_late)
            found = latest(tmp_path, tell=pytest.fail)
        assert found is not None
        assert found.step == 2
        shutil.rmtree(tmp_path)


@pytest.mark.parametrize("read", [lambda folder: latest(folder, tell=pytest.fail), load_best])
def test_a_step_that_is_saved_again_while_it_is_read_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any
) -> None:
    """Its manifest is the old one then, and its files are the new ones."""
    best = Best(step=1, score="fid", value=1.0)
    save(tmp_path, made(1), keep=1, best=best)
    real, again = checkpoint.sha256, dataclasses.replace(made(1), state={"seconds": 7.0})

    def sha256(path: Path, largest: int) -> str:
        monkeypatch.setattr(checkpoint, "sha256", real)
        save(tmp_path, again, keep=1, best=best)
        return real(path, largest)

    monkeypatch.setattr(checkpoint, "sha256", sha256)
    assert read(tmp_path).state["seconds"] == 7.0
