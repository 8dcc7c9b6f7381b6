"""The files of a board: the result for programs, for pull requests and for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gancore.files.writing import write_text
from gancore.leaderboard.job import Job
from gancore.leaderboard.page import page
from gancore.leaderboard.text import markdown


def write(found: Mapping[str, Any], jobs: Sequence[Job], out: Path) -> None:
    """Write leaderboard.json, leaderboard.md and leaderboard.html, each whole or not at all.

    found: of `result`; jobs: the runs, from whose folders the page takes curves and samples.
    """
    numbers = json.dumps(found, indent=2, ensure_ascii=False)
    write_text(out / "leaderboard.json", f"{numbers}\n")
    write_text(out / "leaderboard.md", markdown(found))
    write_text(out / "leaderboard.html", page(found, jobs))
