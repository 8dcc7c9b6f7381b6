"""The contract of a plugin, as named checks. Which apply follows from the hooks it implements."""

from __future__ import annotations

from gancore.testing import answers as answers
from gancore.testing import behaviour as behaviour
from gancore.testing.check import CHECKS, Result
from gancore.testing.scene import Subject


def check_plugin(subject: Subject) -> list[Result]:
    """Run every check that applies to a plugin.

    A class may declare checks inapplicable, with a reason that is reported:
    `inapplicable: ClassVar[dict[str, str]] = {"shapes": "flips need images"}`. What samples and
    which critic it needs, it says in other ClassVars: see `Subject`.
    """
    return [check.run(subject) for check in CHECKS if check.applies(subject)]
