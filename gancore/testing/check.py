"""A check: a named part of the contract, and its result."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from gancore.isolation.caller import leaving_no_trace
from gancore.testing.scene import CheckFailed, Subject

Verdict = Literal["passed", "failed", "inapplicable"]


@dataclass(frozen=True)
class Result:
    """The verdict of a check.

    detail: what was measured, why the check failed, or why it is inapplicable
    """

    check: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class Check:
    """A named part of the contract, for plugins that implement one of `hooks` (any if empty)."""

    name: str
    about: str
    hooks: frozenset[str]
    function: Callable[[Subject], str]

    def applies(self, subject: Subject) -> bool:
        """Whether the subject implements a hook that this is about."""
        return not self.hooks or bool(self.hooks & set(subject.hooks))

    @leaving_no_trace
    def run(self, subject: Subject) -> Result:
        """Run the check; where the plugin raises anything, it failed."""
        try:
            subject.refuse_needs()
            reasons: Mapping[str, str] = getattr(subject.cls, "inapplicable", {})
            if self.name in reasons:
                return Result(self.name, "inapplicable", reasons[self.name])
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
                return Result(self.name, "passed", self.function(subject))
        except CheckFailed as failure:
            return Result(self.name, "failed", str(failure))
        except (Exception, SystemExit) as error:
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            return Result(self.name, "failed", f"raised {type(error).__name__}: {error}{notes}")


CHECKS: list[Check] = []
"""All checks, in the order in which they run."""


Function = Callable[[Subject], str]


def check(name: str, *hooks: str) -> Callable[[Function], Function]:
    """Make a function a check for plugins that implement one of the hooks.

    It returns what it measured, or raises CheckFailed. Its docstring says what it is about.
    """

    def register(function: Function) -> Function:
        about = (function.__doc__ or "").strip()
        CHECKS.append(Check(name, about, frozenset(hooks), function))
        return function

    return register
