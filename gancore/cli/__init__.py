"""The command line. One file a command; torch is imported only by those that compute."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import version
from typing import Any

import click
from click.exceptions import Exit

from gancore.cli import installed
from gancore.cli.group import Lazy
from gancore.cli.streams import lasting
from gancore.errors import GancoreError, InputError, RunError, told_of_files, with_notes_of

COMMANDS = {
    "bench": "Measure what a recipe's plugins cost.",
    "compare": "Fail if a leaderboard got worse than an earlier one.",
    "doctor": "Show what this installation can do.",
    "leaderboard": "Run recipes over seeds: which is better, and is it sure?",
    "plugins": "List what is installed; check a plugin; begin a new one.",
    "recipe": "Check recipes; print their JSON schema.",
    "report": "Write the pictures and scores of a run as one HTML file.",
    "run": "Train, regularize and score a recipe.",
    "sample": "Write samples of a trained run.",
    "score": "Score a trained run.",
}
"""Each command's short help: its module is imported only when it is used."""


class _Commands(Lazy):
    """Gan's own commands, and those of other packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(dict.fromkeys([*self.helps, *installed.names()]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.helps:
            return super().get_command(ctx, cmd_name)
        return installed.get(cmd_name) if cmd_name in installed.names() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in self.helps:
            installed.tell_taken(args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. An error with a note is a plugin's, whatever click would make of it."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, Exit, EOFError, BrokenPipeError) as error:
            if getattr(error, "__notes__", ()):
                told = RunError(f"{type(error).__name__}: {error}")
                raise with_notes_of(error, told) from error
            if isinstance(error, Exit) and error.exit_code:
                sys.exit(error.exit_code)  # click would return it
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_commands(ctx, formatter)
        if lines := installed.help_lines(self.helps):
            with formatter.section("Commands of other packages"):
                formatter.write_dl(lines)


@click.group(
    cls=_Commands,
    modules="gancore.cli.",
    helps=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(version("gancore"), prog_name="gancore")
def gan() -> None:
    """What does this regularizer do to this GAN, and what does it cost?"""


def main() -> None:
    """Run the command line: exit 0 done, 1 the run failed, 2 the input is wrong."""
    warnings.formatwarning = _as_line
    if sys.warnoptions:  # PYTHONWARNINGS=error, say, must end no run
        warnings.filters = [rule for rule in warnings.filters if rule[0] != "error"]
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
        sys.exit(error.exit_code)
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
    """Refuse a current folder that is gone: many imports would fail, each in another way."""
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
