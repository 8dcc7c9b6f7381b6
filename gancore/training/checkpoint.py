"""Checkpoints: safetensors and JSON in a folder a step, written so that none is ever half there.

A checkpoint is written beside the others under a temporary name, its files and folder are synced,
then it gets its name in one rename; older ones go only after that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gancore.errors import CheckpointError
from gancore.training.folder import write_text

FORMAT = 1
TEMPORARY = ".writing-"
INVALID = ".invalid-"
MANIFEST = "manifest.json"
STATE = "state.json"
BEST = "best.json"

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What is saved: tensors by file (`generator`, `critic` …), and a JSON state."""

    step: int
    tensors: Mapping[str, Tensors]
    state: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint, *, keep: int, best: int | None = None) -> Path:
    """Write a checkpoint under `folder`, then delete all but the latest `keep` and the best."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{checkpoint.step:06d}"
    writing = folder / f"{TEMPORARY}{final.name}"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    for name, tensors in checkpoint.tensors.items():
        # clones: safetensors refuses tensors that share memory, and strides that are not plain
        plain = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
        save_file(plain, writing / f"{name}.safetensors")
    state = {"format": FORMAT, "step": checkpoint.step, **checkpoint.state}
    (writing / STATE).write_text(json.dumps(state, indent=1))
    hashes = {path.name: _sha256(path) for path in sorted(writing.iterdir())}
    (writing / MANIFEST).write_text(json.dumps(hashes, indent=1))
    for path in (*writing.iterdir(), writing):
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    writing.rename(final)
    _sync(folder)
    for step, old in sorted(_steps(folder), reverse=True)[keep:]:
        if step != best:
            shutil.rmtree(old)
    return final


def mark_best(folder: Path, best: Mapping[str, Any] | None) -> None:
    """Write which step scored best: {"step", "score", "value"}; None if none did yet."""
    if best is None:
        (folder / BEST).unlink(missing_ok=True)
    else:
        write_text(folder / BEST, json.dumps(best) + "\n")


def load_best(folder: Path) -> Checkpoint:
    """Load the checkpoint that scored best. Raises CheckpointError where none is marked."""
    try:
        step = json.loads((folder / BEST).read_text())["step"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no best checkpoint: only a run with score.every marks one"
        ) from error
    return load(folder / f"step-{step:06d}")


def latest(folder: Path, *, mend: bool = False) -> Checkpoint | None:
    """Load the latest checkpoint that is whole, or None if there is none.

    mend: sweep the leftovers of an interrupted save and set damaged checkpoints aside under other
    names; only for whoever goes on with the run, as others may read while it saves.

    Raises CheckpointError when there are checkpoints but all are damaged.
    """
    if mend:
        for leftover in folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(leftover)
    faults = []
    for _, path in sorted(_steps(folder), reverse=True):
        try:
            return load(path)
        except CheckpointError as error:
            faults.append(str(error))
            if mend:
                path.rename(folder / f"{INVALID}{path.name}")
    if faults:
        raise CheckpointError("no checkpoint is whole:\n" + "\n".join(faults))
    return None


def load(path: Path) -> Checkpoint:
    """Load one checkpoint, all hashes checked. Raises CheckpointError when it is damaged."""
    try:
        for name, expected in json.loads((path / MANIFEST).read_text()).items():
            if _sha256(path / name) != expected:
                raise CheckpointError(f"{path / name} is damaged: its SHA-256 is not the saved one")
        state = json.loads((path / STATE).read_text())
        tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {state['format']}, this gancore reads {FORMAT}")
    return Checkpoint(state["step"], tensors, state)


def split_state(state: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split plugin states into tensors, by `plugin/key`, and JSON scalars, by plugin and key.

    Raises CheckpointError for anything else.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for name, values in state.items():
        scalars[name] = {}
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            elif value is None or isinstance(value, bool | int | float | str):
                scalars[name][key] = value
            else:
                raise CheckpointError(
                    f"plugin {name!r}: state {key!r} is a {type(value).__name__}; expected a "
                    "tensor, number, string, bool or None"
                )
    return tensors, scalars


def join_state(tensors: Tensors, scalars: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Undo `split_state`."""
    state = {name: dict(values) for name, values in scalars.items()}
    for path, tensor in tensors.items():
        name, _, key = path.partition("/")
        state[name][key] = tensor
    return state


def _steps(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("step-*"):
        if path.name.removeprefix("step-").isdigit():
            yield int(path.name.removeprefix("step-")), path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
