"""The report's page: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gancore.report.style import our_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    title    a few words above it
    caption  what one sees, and what to look for
    alt      what it shows, for those who can't see it
    data     the file, whose type is `mime`
    """

    title: str
    caption: str
    alt: str
    data: bytes
    mime: str = "image/png"

    @classmethod
    @our_style()
    def of(cls, figure: Figure, *, title: str, caption: str, alt: str) -> Picture:
        """Return a figure as a picture."""
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI)
        return cls(title, caption, alt, file.getvalue())

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode()}"


@dataclass
class Section:
    """A section of pictures, a line for each that could not be made, and one about all."""

    title: str
    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    about: str = ""


@dataclass(frozen=True)
class Page:
    """What the report of a run shows.

    title        the run's name
    summary      what was trained, in a line
    scores       each score by its name
    protocol     how they were taken, in a line; without scores, why there are none
    sections     the pictures
    recipe       TOML text
    environment  what the run ran on
    record       the last record
    notes        what the run noticed, a sentence each
    """

    title: str
    summary: str
    scores: Mapping[str, str]
    protocol: str
    sections: Sequence[Section]
    recipe: str
    environment: Mapping[str, str]
    record: Mapping[str, float]
    notes: Sequence[str] = ()

    def html(self) -> str:
        """Return the page; every text in it is escaped."""
        return render("report/report.html.jinja", page=self)


def render(template: str, **values: object) -> str:
    """Return a page from one of gancore's templates; every text in it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("gancore", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(template).render(values)
