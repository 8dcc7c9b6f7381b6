"""What the JSON files of runs and boards are made of, each part checked as it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What a JSON file may hold, and a TOML table but for its dates."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("unavailable", "expected text without control characters")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
"""Text that a page or terminal may show."""

Number = Annotated[float, Field(ge=-1e100, le=1e100)]
"""A finite number of a size that statistics can square."""

Whole = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Stored(BaseModel):
    """What a JSON file has at least, of which other code makes use unasked."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    def known(self) -> dict[str, object]:
        """Return the values that were read or set, by their names."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    def table(self) -> dict[str, Json]:
        """Return it as JSON has it: the keys that were read or set, and no others."""
        return self.model_dump(mode="json", exclude_unset=True)
