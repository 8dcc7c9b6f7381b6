"""The tally: what a run remembers beside weights and optimizers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Self

from pydantic import ConfigDict, Field, ValidationError

from gancore.errors import CheckpointError
from gancore.files.stored import Json, Number, Stored, Text, Whole
from gancore.options import explain
from gancore.plugins import Plugins
from gancore.scoring.protocol import better
from gancore.training.objective import NOTE

Seconds = Annotated[Number, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
"""What a score is called in a file: fid, kid_std …"""


class Best(Stored):
    """The step that scored best."""

    model_config = ConfigDict(extra="ignore")

    step: Whole
    score: Name
    value: Number


class State(Stored):
    """What of a checkpoint's state is the tally's."""

    model_config = ConfigDict(extra="ignore")

    seconds: Seconds
    penalties: dict[str, Number]
    best: Best | None = None
    notes: dict[Name, Text] = Field(default={})
    still: Whole = 0
    widest: Number = 0.0
    pending: dict[str, Whole | Number] | None = None


@dataclass
class Tally:
    """Seconds spent, the latest value of each penalty, the step that scored best so far, and notes.

    penalties
            what plugins note (`step.note`) as well, by record key
    notes   what was noticed, by kind (`gancore.training.notes`)
    still   generator updates in a row, up to now, without a gradient
    widest  the largest variance of samples so far, as a share of the real data's
    pending the record of a step whose grid and scores are still to come, in a checkpoint that was
            written before them
    """

    seconds: float = 0.0
    penalties: dict[str, float] = field(default_factory=dict)
    best: Best | None = None
    notes: dict[str, str] = field(default_factory=dict)
    still: int = 0
    widest: float = 0.0
    pending: dict[str, float] | None = None

    def remember_penalties(self, values: Mapping[str, float]) -> None:
        """Keep the latest value of each penalty and note, which some updates do not have."""
        self.penalties |= {key: value for key, value in values.items() if "/" in key}

    def keep_penalties(self, plugins: Plugins) -> None:
        """Forget the penalties and notes of plugins that are gone."""
        terms = {*plugins.terms("penalty"), *plugins.terms("generator_penalty")}
        notes = {f"{NOTE}{plugin.name}" for plugin in plugins.loaded}  # a name may hold a slash
        self.penalties = {
            key: value
            for key, value in self.penalties.items()
            if key in terms or key.rpartition("/")[0] in notes
        }

    def remember_best(self, step: int, scores: Mapping[str, float]) -> None:
        """Keep the step with the best value of the first score, if that is a number.

        After a resume with other metrics it is of another score, and the best so far says nothing.
        """
        key, value = next(iter(scores.items()))
        best = self.best if self.best and self.best.score == key else None
        if math.isfinite(value) and (best is None or better(key, value, best.value)):
            self.best = Best(step=step, score=key, value=value)

    def state(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {**asdict(self), "best": self.best.table() if self.best else None}

    @classmethod
    def of(cls, state: Mapping[str, Json]) -> Self:
        """Return what `state` gave, out of a checkpoint's state. Raises CheckpointError."""
        try:
            read = State.model_validate(dict(state))
            known = cls(**{name: getattr(read, name) for name in State.model_fields})
            if known.pending and known.pending.get("step") != state.get("step"):
                known.pending = None
            return known
        except ValidationError as error:
            faults = explain(error, "the checkpoint's state.json", lambda path: ()).splitlines()
            raise CheckpointError(
                f"{'; '.join(faults)}. Copy the run folder anew, or train again"
            ) from error
