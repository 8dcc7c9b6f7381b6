"""Checkpoints: safetensors and JSON in a folder a step, written so that none is ever half there.

A checkpoint is written beside the others under a fresh name, its files and folder are synced, then
it gets its name in one rename; older ones go only after that.
"""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file, save_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from gancore.errors import CheckpointError, InputError
from gancore.files.reading import opened, read_bytes, sha256, unreadable
from gancore.files.stored import Json
from gancore.files.writing import (
    REPLACED,
    delete,
    replacing,
    replacing_folder,
    sweep,
    write_text,
)
from gancore.text import shown
from gancore.training.state import COPY_AGAIN, STATE, About, join_extra, split_extra, tables
from gancore.training.tally import Best

FORMAT = 2
BY_POSITION = 1
"""The format before, whose optimizer state goes by positions instead of names."""

INVALID = ".invalid-"
MANIFEST = "manifest.json"
BEST = "best.json"
LARGEST_TEXT = 64 << 20
"""Bytes of a manifest or state; ours have two thousand."""

LARGEST_TENSORS = 256 << 30
"""Bytes of a file of tensors."""

NO_FILE = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
        errno.ENXIO,
    }
)
"""What the system says where a file is missing, or something else has its name."""

Tensors = Mapping[str, Tensor]
"""The tensors of a file. A network's extra state, if it has any, is in the JSON state."""


class UnreadableError(CheckpointError):
    """The system does not let a checkpoint be read now. It may be whole."""


@dataclass(frozen=True)
class Checkpoint:
    """What is saved: tensors by file (`generator`, `critic` …), and a JSON state."""

    step: int
    tensors: Mapping[str, Tensors]
    state: Mapping[str, Json]

    def about(self) -> About:
        """Return what the state says of the run. Raises CheckpointError for a state that is odd."""
        return About.of(self.state)


def save(folder: Path, checkpoint: Checkpoint, *, keep: int, best: Best | None = None) -> Path:
    """Write a checkpoint under `folder`, then delete all but the latest `keep` and the best.

    best: which step scored best so far; it is marked
    """
    final = folder / f"step-{checkpoint.step:06d}"
    extra: dict[str, Json] = {}
    with replacing_folder(final) as writing:
        for name, table in checkpoint.tensors.items():
            tensors, extra[name] = split(name, table)
            with replacing(writing / f"{name}.safetensors") as file:
                save_file(tensors, file.name)
        state = {"format": FORMAT, "step": checkpoint.step, **checkpoint.state, "extra": extra}
        write_text(writing / STATE, json.dumps(state, indent=1))
        hashes = {path.name: sha256(path, LARGEST_TENSORS) for path in sorted(writing.iterdir())}
        write_text(writing / MANIFEST, json.dumps(hashes, indent=1))
    mark_best(folder, best)  # before the one that was marked goes
    # those of later steps could not be read, when this run was resumed: they stay
    made = [(step, path) for step, path in _steps(folder) if step <= checkpoint.step]
    for step, path in sorted(made, reverse=True)[keep:]:
        if best is None or step != best.step:
            delete(path)
    return final


def split(name: str, table: Tensors) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Return the tensors of a file, plain and on the CPU, and its extra state.

    Raises CheckpointError for what can't be saved.
    """
    try:
        tensors, trees = split_extra(table)
        # clones: safetensors refuses tensors that share memory, and strides that are not plain
        return {key: _plain(key, tensor) for key, tensor in tensors.items()}, trees
    except CheckpointError as error:
        raise CheckpointError(f"the state of {name}: {error}") from error


def _plain(key: str, tensor: Tensor) -> Tensor:
    """Return a tensor as safetensors takes it. Raises CheckpointError."""
    try:
        plain = tensor.detach().cpu().clone().contiguous()
        load_tensors(save_tensors({key: plain.flatten()[:0]}))
    except (SafetensorError, RuntimeError, LookupError, ValueError) as error:
        kind = f"{tensor.dtype} {tensor.layout} on {tensor.device}".replace("torch.", "")
        reason = " ".join(f"{kind}; {type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{shown(key, 200)} can't be saved ({shown(reason, 200)}): keep numbers in dense "
            "tensors with values, floating-point, whole or complex64, under a plain name"
        ) from error
    return plain


def mark_best(folder: Path, best: Best | None) -> None:
    """Write which step scored best: {"step", "score", "value"}; None if none did yet."""
    if best is None:
        delete(folder / BEST)
    else:
        write_text(folder / BEST, json.dumps(best.table()) + "\n")


def load_best(folder: Path) -> Checkpoint:
    """Load the checkpoint that scored best. Raises CheckpointError where none is marked."""
    if not os.path.lexists(folder / BEST):
        raise CheckpointError(
            f"{folder} has no best checkpoint: only a run with score.every marks one"
        )
    with _told(folder / BEST):
        step = _table(folder / BEST).get("step")
    if type(step) is not int:
        raise CheckpointError(f"{folder / BEST} is damaged: it has no step. {COPY_AGAIN}")
    seen = _seen(folder)
    try:
        paths = {number: path for number, path, _ in seen}
        return load(paths.get(step, folder / f"step-{step:06d}"))
    except CheckpointError:
        if _seen(folder) != seen:  # the run goes on, and has saved
            return load_best(folder)
        raise


def latest(
    folder: Path,
    *,
    mend: Callable[[str], None] | None = None,
    tell: Callable[[str], None] = warnings.warn,
) -> Checkpoint | None:
    """Load the latest checkpoint that is whole and can be read, or None if there is none.

    tell: called with a line about every later one, where an older one has to do
    mend: called likewise. Leftovers of an interrupted save are swept then, and damaged checkpoints
        are set aside under another name; one that can't be read now stays. Only for whoever goes on
        with the run, as others may read while it saves.

    Raises CheckpointError when there are checkpoints but none of them will do.
    """
    if mend:
        sweep(folder)
        for leftover in folder.glob(f"{REPLACED}step-*"):  # of a save that was killed in between
            final = folder / leftover.name.removeprefix(REPLACED)
            if not os.path.lexists(final):
                leftover.rename(final)
            else:
                with suppress(OSError):
                    delete(leftover)
    seen = _seen(folder)
    faults: dict[Path, CheckpointError] = {}
    for step, path, _ in seen:
        try:
            checkpoint = load(path)
        except CheckpointError as error:
            if _seen(folder) != seen:  # the run goes on, and has saved
                return latest(folder, mend=mend, tell=tell)
            faults[path] = error
            continue
        going_on = "Going on from" if mend else "Taking"
        for later, fault in faults.items():
            (mend or tell)(f"{str(fault).rstrip('.')}. {going_on} step {step}")
            if mend and not isinstance(fault, UnreadableError):
                later.rename(_unused(folder / f"{INVALID}{later.name}"))
        return checkpoint
    if faults:
        raise CheckpointError(
            "no checkpoint can be used:\n" + "\n".join(map(str, [*faults.values()][:5]))
        )
    return None


def load(path: Path) -> Checkpoint:
    """Load one checkpoint, all hashes checked. Raises CheckpointError when it is damaged.

    Its files are what the manifest names, all in its folder, and nothing else is read. Nothing is
    allocated by what a file says of itself: safetensors first compares that with its size.
    """
    with _told(path):
        manifest = _table(path / MANIFEST)
        files = {file.name for file in path.glob("*.safetensors")} | {STATE}
        if manifest.keys() != files:
            odd = sorted(manifest.keys() ^ files)[:3]
            raise CheckpointError(
                f"{path} is damaged: its manifest and its files differ in "
                f"{', '.join(map(shown, odd))}. {COPY_AGAIN}"
            )
        for name, expected in manifest.items():
            if sha256(path / name, LARGEST_TENSORS) != expected:
                raise CheckpointError(
                    f"{path / name} is damaged: its SHA-256 is not the saved one. {COPY_AGAIN}"
                )
        state = _table(path / STATE)
        tensors = _Files({Path(name).stem: _tensors(path / name) for name in files - {STATE}})
        try:
            for name, trees in tables(state.get("extra", {})).items():
                if name in tensors:
                    tensors[name] = join_extra(tensors[name], trees)
        except (LookupError, TypeError, ValueError) as error:
            reason = shown(repr(error), 200)
            raise CheckpointError(f"{path / STATE}: extra: {reason}. {COPY_AGAIN}") from error
    number = state.get("format")
    if type(number) is not int or number not in (BY_POSITION, FORMAT):
        raise CheckpointError(
            f"{path} has format {shown(repr(number))}, this gancore reads {BY_POSITION} and "
            f"{FORMAT}"
        )
    step = state.get("step")
    if type(step) is not int:
        raise CheckpointError(f"{path / STATE} is damaged: it has no step. {COPY_AGAIN}")
    tensors.path = path
    return Checkpoint(step, tensors, state)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what the system says of a checkpoint's files into a CheckpointError."""
    try:
        yield
    except InputError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged: {error}. {COPY_AGAIN}") from error
    except OSError as error:
        place = error.filename or path
        if error.errno in NO_FILE:
            reason = error.strerror or error
            raise CheckpointError(f"{place} is damaged: {reason}. {COPY_AGAIN}") from error
        raise UnreadableError(unreadable(error, place)) from error


class _Files(dict[str, Tensors]):
    """Tensors by file; a file that is not there is a CheckpointError for whoever needs it."""

    path: Path

    def __missing__(self, name: str) -> Tensors:
        raise CheckpointError(f"{self.path} has no {name}.safetensors. {COPY_AGAIN}")


def _table(path: Path) -> dict[str, Json]:
    """Read a JSON table. Raises CheckpointError and OSError."""
    try:
        table: object = json.loads(read_bytes(path, LARGEST_TEXT).decode("utf-8-sig"))
        if not isinstance(table, dict):
            raise ValueError("expected a table")
    except (InputError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged: {shown(str(error), 200)}. {COPY_AGAIN}"
        ) from error
    return table


def _tensors(path: Path) -> Tensors:
    """Read a safetensors file. Raises CheckpointError for any other, a pickle among them."""
    try:
        with opened(path) as file:  # it is a regular file then, which is read by its name
            tensors: Tensors = load_file(path) if _is_text(path) else load_tensors(file.read())
    except (OSError, MemoryError):
        raise
    except Exception as error:  # safetensors' own, and whatever torch makes of an odd dtype
        reason = shown(str(error), 200)
        raise CheckpointError(
            f"{path} is no safetensors file, or a damaged one: {reason}. {COPY_AGAIN}"
        ) from error
    return tensors


def _is_text(path: Path) -> bool:
    """Whether a name is UTF-8, as safetensors wants those of the files that it reads."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))


def packed(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as bytes, for a process that can't read the folder."""
    parts = {name: split(name, table) for name, table in checkpoint.tensors.items()}
    tensors = {
        f"{name}/{key}": tensor
        for name, (table, _) in parts.items()
        for key, tensor in table.items()
    }
    state = {**checkpoint.state, "extra": {name: trees for name, (_, trees) in parts.items()}}
    about = json.dumps({"step": checkpoint.step, "state": state}).encode()
    return len(about).to_bytes(8) + about + save_tensors(tensors)


def unpacked(data: bytes) -> Checkpoint:
    """Undo `packed`."""
    end = 8 + int.from_bytes(data[:8])
    about = json.loads(data[8:end])
    tensors: dict[str, dict[str, Tensor]] = {}
    for path, tensor in load_tensors(data[end:]).items():
        name, _, key = path.partition("/")
        tensors.setdefault(name, {})[key] = tensor
    state = about["state"]
    for name, trees in state["extra"].items():
        tensors[name] = join_extra(tensors.get(name, {}), trees)
    return Checkpoint(about["step"], {"plugins": {}, **tensors}, state)


def _steps(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the checkpoints of a folder. Raises UnreadableError; it must not be taken for empty.

    One that is just being replaced, or was when the run was killed, has its other name.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnreadableError(unreadable(error, folder)) from error
    for name in names:
        final = name.removeprefix(REPLACED)
        number = final.removeprefix("step-")
        is_step = final.startswith("step-") and number.isascii() and number.isdigit()
        if is_step and (name == final or final not in names):
            yield int(number), folder / name


def _seen(folder: Path) -> list[tuple[int, Path, tuple[int, int]]]:
    """Return the checkpoints of a folder, the latest first, and what tells when one is replaced."""
    seen = []
    for step, path in _steps(folder):
        about = (0, 0)
        with suppress(OSError):
            about = (path.lstat().st_ino, path.lstat().st_mtime_ns)
        seen.append((step, path, about))
    return sorted(seen, reverse=True)


def _unused(path: Path) -> Path:
    """Return a name that nothing has yet: this one, or it with a number."""
    names = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(name for name in chain([path], names) if not os.path.lexists(name))
