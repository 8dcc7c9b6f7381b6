"""Lazy regularization.

Karras et al., 2020, "Analyzing and Improving the Image Quality of StyleGAN".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from annotated_types import Gt

from gancore import hookimpl, plugin
from gancore.checks.marks import implemented

__all__ = ["Lazy"]

PENALTIES = frozenset({"penalty", "generator_penalty"})


@plugin
class Lazy:
    """Evaluate penalties every N updates, N times as strong (Karras et al., 2020, appendix B).

    every: N; 1 is no laziness.
    targets: recipe names of the penalties that this is for; all of them if empty.
    """

    every: Annotated[int, Gt(0)] = 16
    targets: tuple[str, ...] = ()

    @hookimpl
    def configure(self, plugins: Mapping[str, object]) -> None:
        """Refuse targets that are no penalties of this run, and a second Lazy on the same."""
        penalties = [
            name for name, other in plugins.items() if PENALTIES.intersection(implemented(other))
        ]
        for target in self.targets:
            if target not in penalties:
                raise ValueError(
                    f"target {target!r} is no penalty of this recipe; "
                    f"its penalties: {', '.join(penalties) or 'none'}"
                )
        for name, other in plugins.items():
            if other is self or not isinstance(other, Lazy):
                continue
            if not (self.targets and other.targets) or set(self.targets) & set(other.targets):
                raise ValueError(
                    f"{name!r} makes the same penalties lazy, and their factors would multiply: "
                    "give each its own targets"
                )

    @hookimpl
    def penalty_scale(self, plugin: str, update: int) -> float | None:
        """Answer N on due updates, 0 on the others, nothing for other penalties."""
        if self.targets and plugin not in self.targets:
            return None
        return float(self.every) if update % self.every == 0 else 0.0
