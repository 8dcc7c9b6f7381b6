"""The command line. One file a command; torch is imported only by those that compute."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from typing import Any

import click
from click.exceptions import Exit

from gancore.cli.group import Group
from gancore.cli.streams import lasting
from gancore.errors import GancoreError, InputError, RunError, told_of_files, with_notes_of

COMMANDS = {
    "bench": "Measure what a recipe's plugins cost.",
    "compare": "Fail if a leaderboard got worse than an earlier one.",
    "doctor": "Show what this installation can do.",
    "leaderboard": "Run recipes over seeds: which is better, and is it sure?",
    "plugins": "List the installed plugins.",
    "recipe": "Check recipes; print their JSON schema.",
    "report": "Write the pictures and scores of a run as one HTML file.",
    "run": "Train, regularize and score a recipe.",
    "sample": "Write samples of a trained run.",
    "score": "Score a trained run.",
}
"""Each command's short help: its module is imported only when it is used."""


class _Commands(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"gancore.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what a plugin raises is an error, though click would take it for its own.

        It has a note that names the plugin.
        """
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, Exit, EOFError, BrokenPipeError) as error:
            if not getattr(error, "__notes__", ()):
                raise
            told = RunError(f"{type(error).__name__}: {error}")
            raise with_notes_of(error, told) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("gancore"), prog_name="gancore")
def gan() -> None:
    """What does this regularizer do to this GAN, and what does it cost?"""


def main() -> None:
    """Run the command line: exit 0 done, 1 the run failed, 2 the input is wrong."""
    warnings.formatwarning = _as_line
    if sys.warnoptions:  # of PYTHONWARNINGS=error, say: a warning, whosever it is, ends no run
        warnings.filters = [each for each in warnings.filters if each[0] != "error"]
    with lasting():
        _run()


def _as_line(message: Warning | str, *where: object, **line: object) -> str:
    from gancore.text import printable

    return f"warning: {printable(str(message))}\n"


def _run() -> None:
    try:
        with told_of_files():
            _refuse_nowhere()
            gan.main(prog_name="gan", standalone_mode=False)
    except click.ClickException as error:
        from gancore.text import printable

        vars(error)["message"] = printable(error.message)
        error.show()
        sys.exit(2)
    except GancoreError as error:
        _say(error)
        sys.exit(error.exit_code)
    except click.Abort as error:
        click.echo("stopped", err=True)
        _say_notes(error.__cause__)
        sys.exit(130)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and "allocate memory" not in str(error):
            raise
        click.echo(
            f"error: out of memory: {str(error).splitlines()[0]}\n"
            "Lower train.batch_size or the networks' width; the last checkpoint is kept",
            err=True,
        )
        _say_notes(error)
        sys.exit(1)


def _refuse_nowhere() -> None:
    """Refuse a current folder that is gone: half of what is imported would fail, each its way."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise InputError("the current folder is gone: cd to one that is there") from error


def _say(error: GancoreError) -> None:
    """Print an error, whatever it quotes: a terminal obeys control characters."""
    from gancore.text import shown

    for line in f"error: {error}".split("\n"):
        click.echo(shown(line, 4096), err=True)
    _say_notes(error)


def _say_notes(error: BaseException | None) -> None:
    from gancore.text import shown

    for note in getattr(error, "__notes__", ()):
        click.echo(f"  {shown(note, 4096)}", err=True)
