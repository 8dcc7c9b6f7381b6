"""The tally: what a run remembers beside weights and optimizers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from gancore.protocol import better


@dataclass
class Tally:
    """Seconds spent, the latest value of each penalty, and the step that scored best so far."""

    seconds: float = 0.0
    penalties: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None

    def remember_penalties(self, values: Mapping[str, float]) -> None:
        """Keep the latest due value of each penalty; a lazy one has none in most updates."""
        self.penalties |= {key: value for key, value in values.items() if "/" in key}

    def keep_penalties(self, names: Collection[str]) -> None:
        """Forget those of plugins that are gone."""
        self.penalties = {key: each for key, each in self.penalties.items() if key in names}

    def remember_best(self, step: int, scores: Mapping[str, float]) -> None:
        """Keep the step with the best value of the first score."""
        key, value = next(iter(scores.items()))
        if self.best is None or better(key, value, self.best["value"]):
            self.best = {"step": step, "score": key, "value": value}

    def state(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Return what `state` gave, out of a checkpoint's state."""
        return cls(state["seconds"], dict(state["penalties"]), state.get("best"))
