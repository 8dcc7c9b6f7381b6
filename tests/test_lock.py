"""The lock of a run's folder: one process's, its line told to others, and no fork's."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from gancore.errors import InputError
from gancore.files.storage import locked


def test_a_fork_that_ends_keeps_the_lock_its_parents(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(locked(tmp_path))
        held = (tmp_path / ".lock").read_text()
        assert held.startswith(f"process {os.getpid()} on ")
        if not (child := os.fork()):
            code = 1
            try:
                with pytest.raises(InputError, match="in use"), locked(tmp_path):
                    pass
                stack.close()  # as an exception would that leaves the block in the child
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(InputError, match=f"in use by {held.strip()}"), locked(tmp_path):
            pass
        assert (tmp_path / ".lock").read_text() == held
    assert not (tmp_path / ".lock").exists()


def test_a_lock_without_a_holder_is_taken_and_one_taken_twice_is_not(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on a machine that is off, with a long name\n" * 9)
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().count("\n") == 1
        with pytest.raises(InputError, match="in use"), locked(tmp_path):
            pass
        (tmp_path / ".lock").unlink()  # by hand
    with locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import fcntl

    def none(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(InputError, match=r"has no locks\. Choose another --out"), locked(tmp_path):
        pass
