"""A stranger's package with an executor, that of docs/scaling.md, installed without pip."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import ROOT

PAGE = (ROOT / "docs" / "scaling.md").read_text("utf-8")
(SOURCE,) = re.findall(r"^```python\n(# stranger_inline.py\n.*?)^```$", PAGE, re.M | re.S)
(POINT,) = re.findall(
    r'^(\[project.entry-points."gancore.executors"\]\n.*?)^```$', PAGE, re.M | re.S
)


@contextmanager
def installed(folder: Path, source: str = SOURCE) -> Iterator[None]:
    """Have a distribution `stranger-inline` that brings the executor `inline`."""
    info = folder / "stranger_inline-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "stranger_inline.py").write_text(source, "utf-8")
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: stranger-inline\nVersion: 1.0\nRequires-Dist: gancore\n"
    )
    section = POINT.replace('project.entry-points."gancore.executors"', "gancore.executors")
    (info / "entry_points.txt").write_text(section.replace('"', ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.modules.pop("stranger_inline", None)
