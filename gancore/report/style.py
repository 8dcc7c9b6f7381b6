"""The style of our pictures: the same wherever they are drawn, whatever the user has set."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from gancore.errors import GancoreError, RunError
from gancore.text import shown

THE_USERS = ("backend", "interactive", "toolbar")
"""Settings of matplotlib that decide no picture in a file, and stay."""


@contextmanager
def our_style() -> Iterator[None]:
    """Draw in matplotlib's own style, not in that of a matplotlibrc; then it is the user's again.

    A decorator, too. Raises RunError, in one line, for whatever goes wrong but a file that can't
    be written: a picture is to cost no more than itself.
    """
    with _told():
        matplotlib = _matplotlib()
        style = {key: matplotlib.rcParamsDefault[key] for key in matplotlib.rcParamsDefault}
        ours = {key: value for key, value in style.items() if key not in THE_USERS}
    with _told(but=OSError), matplotlib.rc_context(ours):
        yield


@contextmanager
def spared(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Let a picture that can't be made be told in a line, and end nothing."""
    try:
        yield
    except GancoreError as error:
        tell(f"no {path.name}: {shown(' '.join(str(error).split()), 1000)}")


@contextmanager
def _told(but: type[Exception] = GancoreError) -> Iterator[None]:
    try:
        yield
    except (GancoreError, but):
        raise
    except Exception as error:
        reason = shown(f"{type(error).__name__}: {' '.join(str(error).split())}", 500)
        raise RunError(f"a picture can't be drawn: {reason}") from error


def _matplotlib() -> Any:
    """Import matplotlib, and no error where MPLBACKEND names no backend: we use none."""
    named = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        matplotlib = import_module("matplotlib")
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    if named:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = named
    return matplotlib
