"""The options --device and --threads of the commands that compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from gancore.errors import InputError


def device_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option, with this help."""
    return click.option(
        "--device", default="auto", metavar="auto|cpu|cuda", callback=_named, help=text
    )


def threads_option(
    otherwise: str = "as OMP_NUM_THREADS says", *, is_asked: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option; the command computes on so many threads, and is told if it asks."""
    return click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        metavar="N",
        callback=_taken,
        expose_value=is_asked,
        help=f"How many to compute on; by default {otherwise}.",
    )


def _taken(context: click.Context, parameter: click.Parameter, given: int | None) -> int | None:
    """Compute on so many threads until the command ends."""
    if given is not None:
        from gancore.provenance.machine import on_threads

        context.with_resource(on_threads(given))
    return given


def _named(context: click.Context, parameter: click.Parameter, given: str) -> str:
    """Return what names a device, whether there is one or not. Raises InputError for all else."""
    if given != "auto":
        from gancore.training.device import named_device

        try:
            named_device(given)
        except InputError as error:
            raise InputError(f"--{error}") from error
    return given
