"""The files of a board: the result for programs, for pull requests and for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gancore.errors import InputError
from gancore.files.reading import is_there
from gancore.files.writing import write_text
from gancore.leaderboard.job import Job
from gancore.leaderboard.page import page
from gancore.leaderboard.result import Result
from gancore.leaderboard.text import markdown
from gancore.text import shown

JSON, MARKDOWN, PAGE = "leaderboard.json", "leaderboard.md", "leaderboard.html"


def refuse_strangers(out: Path) -> None:
    """Raise InputError for a folder with files of these names that may be a stranger's.

    leaderboard.json tells: it is a board's, or the folder has none of the three.
    """
    there = [name for name in (JSON, MARKDOWN, PAGE) if is_there(out / name)]
    try:
        _ = Result.read(out / JSON) if there else None
    except InputError as error:
        raise InputError(
            f"{shown(str(out / there[0]), 4096)} may be no board's, and would be replaced: move or "
            "delete it, or choose another --out"
        ) from error


def write_files(result: Result, jobs: Sequence[Job], out: Path) -> None:
    """Write leaderboard.json, leaderboard.md and leaderboard.html, each whole or not at all.

    jobs: the runs, from whose folders the page takes curves and samples
    """
    result.write(out / JSON)
    write_text(out / MARKDOWN, markdown(result))
    write_text(out / PAGE, page(result, jobs))
