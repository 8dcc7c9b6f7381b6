"""Every error that gancore raises on purpose.

    GancoreError
    ├── InputError            what the user gave is wrong: `gan` exits with 2
    │   ├── RecipeError       a recipe, an override or a command-line value
    │   ├── PluginError       a plugin or another component that can't be used
    │   │   └── MissingError  one that is not installed
    │   ├── DataError         a data set that can't be read, or does not fit the recipe
    │   └── CheckpointError   a run folder or checkpoint that can't be used
    └── RunError              the run itself failed: `gan` exits with 1
        ├── ContractError     a plugin, critic or generator breaks its contract
        ├── NonFiniteError    a loss, penalty or gradient is inf or nan
        └── ScoreError        scores can't be computed
            └── UnfitError    the ones asked for don't fit the data: `gan` exits with 2

A message says what is wrong, where, what was expected, and ends in the remedy.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class GancoreError(Exception):
    """Base of all gancore errors; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(GancoreError):
    """What the user gave is wrong."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe, an override or a command-line value is wrong."""


class PluginError(InputError):
    """A plugin or another component (network, data set, metric, command…) can't be used."""


class MissingError(PluginError):
    """A plugin or another component is not installed.

    close: whether an installed one has nearly the same name
    """

    def __init__(self, message: str, close: bool = False) -> None:
        super().__init__(message, close)
        self.close = close

    def __str__(self) -> str:
        return str(self.args[0])


class DataError(InputError):
    """A data set can't be read, or does not fit the rest of the recipe."""


class CheckpointError(InputError):
    """A run folder or checkpoint can't be used."""


class RunError(GancoreError):
    """The run itself failed."""


class ContractError(RunError):
    """A plugin's answer, or a critic or generator, breaks its contract."""


class NonFiniteError(RunError):
    """A loss, penalty or gradient is inf or nan."""


class ScoreError(RunError):
    """Scores can't be computed."""


class UnfitError(ScoreError, InputError):
    """The scores asked for can't be taken of these data, or of so few samples."""


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Numbers of system errors: nothing more can be written there."""

BARRED = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
        *(errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO),
    }
)
"""Numbers of system errors: this name can't be used for that, or not by this user."""

PASSING = frozenset({errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ETIMEDOUT})
"""Numbers of system errors: trying again may help."""

MAKE_ROOM = "Make room, and try again"


def of_file(
    error: Exception, number: int | None, place: object, remedy: str = MAKE_ROOM
) -> GancoreError | None:
    """Return the error to raise instead of a system error of a file; None where it is a bug.

    number  of the system error, as in `errno`
    place   the file, where the error does not name one, as on a full disk
    remedy  what to do where nothing more can be written
    """
    told: GancoreError
    place = getattr(error, "filename", None) or place
    if number in FULL:
        told = RunError(f"{place} can't be written to: {os.strerror(number)}. {remedy}")
    elif number in BARRED:
        reason = getattr(error, "strerror", None) or os.strerror(number)
        if number == errno.EEXIST:
            reason = "there is a file, or a link to nowhere, of this name"
        told = InputError(
            f"{place} can't be read or written: {reason}. Choose another, or get the rights to it"
        )
    elif number in PASSING:
        told = RunError(f"{place} can't be read or written: {os.strerror(number)}. Try again")
    else:
        return None
    return with_notes_of(error, told)


def with_notes_of(error: BaseException, told: GancoreError) -> GancoreError:
    """Return `told`, which is raised instead of `error`, with the notes of that one."""
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told


@contextmanager
def told_of_files(place: object = "a file") -> Iterator[None]:
    """Turn system errors of files into GancoreErrors; see `of_file`."""
    try:
        yield
    except OSError as error:
        if told := of_file(error, error.errno, place):
            raise told from error
        raise
