"""The option --device of the commands that compute, checked before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from gancore.errors import InputError


def device_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option, with this help."""
    return click.option(
        "--device", default="auto", metavar="auto|cpu|cuda", callback=_named, help=text
    )


def _named(context: click.Context, parameter: click.Parameter, given: str) -> str:
    """Return what names a device, whether there is one or not. Raises InputError for all else."""
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d{0,3}))?", given):
        raise InputError(
            f"--device {given!r}: expected auto, cpu, cuda or cuda:N, such as --device cuda:0"
        )
    return given
