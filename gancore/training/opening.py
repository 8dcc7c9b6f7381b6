"""The opening of a session: the folder made ready, and the checkpoint to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from gancore.errors import CheckpointError, InputError, with_notes_of
from gancore.files.storage import refuse_taken
from gancore.files.stored import Json
from gancore.files.writing import delete, refuse_links_out, sweep
from gancore.provenance.environment import (
    Environment,
    Stretch,
    environment,
    made_with,
    unlike,
)
from gancore.provenance.identity import (
    SCORING,
    WORDS,
    MadeOf,
    as_now,
    changes,
    uncompared,
)
from gancore.provenance.machine import TO_ROUNDING, taken_again
from gancore.recipe import differences
from gancore.report import Display
from gancore.scoring.sampling import frozen_parts
from gancore.text import shown
from gancore.training import checkpoint
from gancore.training.checkpoint import Checkpoint
from gancore.training.learner import Learner
from gancore.training.rehearsal import rehearse
from gancore.training.run_folder import BOARD_AGAIN, Run
from gancore.training.tally import Tally


class Opening:
    """Makes a run's folder ready for a trainer, and brings the trainer to where the run is."""

    def __init__(
        self,
        learner: Learner,
        run: Run,
        display: Display,
        recipe: Mapping[str, Json],
        made_of: MadeOf,
    ) -> None:
        self.learner = learner
        self.run = run
        self.display = display
        self.tally = Tally()
        self._recipe = recipe
        self._made_of = made_of

    def open(self, *, resume: bool, force: bool, threads: int | None) -> tuple[int, Tally]:
        """Bring all processes to the folder's latest checkpoint; return its step and tally."""
        ranks, start = self.learner.ranks, 0
        self._refuse_unlike_processes()

        def first() -> bytes:
            nonlocal start
            saved = self._prepare(resume=resume, force=force, threads=threads)
            start = saved.step if saved else 0
            return checkpoint.packed(saved) if saved and ranks.count > 1 else b""

        sent = ranks.from_first(first)
        if sent and not ranks.is_first:
            saved = checkpoint.unpacked(sent)
            self._restore(saved)
            start = saved.step
        if ranks.count > 1:
            count = ranks.from_first(lambda: str(torch.get_num_threads()).encode())
            torch.set_num_threads(int(count))
        self.learner.equalize()
        return start, self.tally

    def _refuse_unlike_processes(self) -> None:
        """Refuse processes that have other data or code than the first."""
        ranks = self.learner.ranks
        sent = ranks.from_first(lambda: json.dumps(self._made_of.table()).encode())
        first, mine = json.loads(sent), self._made_of.table()
        differing = [word for key, word in WORDS.items() if ranks.any(first[key] != mine[key])]
        if differing:
            raise InputError(
                f"the processes of this run don't have the same {', '.join(differing)}: give all "
                "the same files and packages"
            )

    def _prepare(self, *, resume: bool, force: bool, threads: int | None) -> Checkpoint | None:
        """Make the folder ready to go on from the checkpoint that is returned and restored."""
        run = self.run
        refuse_links_out(run.path)
        refuse_taken(run.path, resume=resume)
        sweep(run.sample_path(0).parent)
        saved = checkpoint.latest(run.checkpoints, mend=self.display.say) if resume else None
        before = self._environment() if saved is not None else None
        if saved is None:
            self.learner.use.refuse()
        else:
            changed = {"threads": (before.threads, threads)} if before and threads else {}
            self._refuse_another(saved, changed, force=force)
            self._take_threads(before, threads)
        about = environment(
            self.learner.device,
            made_with(self.learner.plugins.loaded).model_copy(update=self._made_of.known()),
            world_size=self.learner.ranks.count,
        )
        self._refuse_unexpected(about)
        if before and (differing := unlike(before, about)):
            self.display.say(
                "this is not the kind of machine that the run was made on so far, or not known to "
                f"be ({'; '.join(differing)}): {TO_ROUNDING}"
            )
        if saved is not None:
            self._restore(saved)
        start = saved.step if saved else 0
        if start < self.learner.settings.train.steps:
            rehearse(
                self.learner,
                checkpoint_of(self.learner, self.tally, self._recipe, self._made_of, start),
            )
        if saved is not None:
            checkpoint.mark_best(run.checkpoints, self.tally.best)
        run.write_environment(about, before, start)  # first: by it a folder is known for a run's
        run.write_recipe(self._recipe)
        sources = [plugin.source for plugin in self.learner.plugins.loaded if plugin.source]
        run.write_plugin_files(source.file for source in sources if source.file)
        run.cut_records(start - bool(self.tally.pending), self.display.say)
        if start < self.learner.settings.train.steps:
            delete(run.scores_path)
        return saved

    def _environment(self) -> Environment | None:
        """Return what the run was made on so far; None, and a line, where that can't be read."""
        reason = f"there is no {self.run.environment_path}"
        try:
            if before := self.run.read_environment():
                return before
        except InputError as error:
            reason = str(error)
        reason = shown(" ".join(reason.split()), 1000)
        self.display.say(f"threads and machine of the run so far are not known: {reason}")
        return None

    def _take_threads(self, before: Environment | None, asked: int | None) -> None:
        """Compute on as many threads as the run so far, unless another number is asked for.

        With another number, results differ in their last bits.
        """
        now = torch.get_num_threads()
        if before is None or before.threads == now:
            return
        then = before.threads
        if asked is not None:
            self.display.say(f"threads: {now} instead of {then} so far: {TO_ROUNDING}")
        elif taken_again(then):
            self.display.say(f"threads: {then} as so far, instead of {now}")
        else:
            self.display.say(f"threads: {then} so far, which can't be had here: {TO_ROUNDING}")

    def _refuse_another(
        self, saved: Checkpoint, changed: Mapping[str, tuple[object, object]], *, force: bool
    ) -> None:
        """Refuse a checkpoint of another run, or of one that will be shorter.

        changed: what was and what is of other things that may have changed
        """
        about = saved.about()
        if about.recipe is None:
            raise CheckpointError("the checkpoint does not say of which recipe it is: train again")
        classes = {plugin.method: type(plugin.instance) for plugin in self.learner.plugins.loaded}
        recipes = (as_now(about.recipe, classes), as_now(self._recipe, classes))
        lines = differences(*recipes) + self._changes_of_identity(about.made_of)
        if about.made_of.data == self._made_of.data:
            lines = [line for line in lines if not line.startswith("data.path: ")]  # it has moved
        processes = (about.processes, self.learner.ranks.count)
        for name, (were, are) in {"processes": processes, **changed}.items():
            if were != are:
                lines.append(f"{name}: was {were!r}, is {are!r}")
        if lines and not force:
            raise InputError(
                "what decides the updates has changed since the checkpoint, so this would be "
                "another run:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nUndo that, choose another --out, or resume all the same by --force"
            )
        if overridden := [line for line in lines if not line.startswith("threads: ")]:
            self.display.say(f"forced, although this has changed: {'; '.join(overridden)}")
        steps = self.learner.settings.train.steps
        if saved.step > steps:
            raise InputError(
                f"the checkpoint is at step {saved.step}, beyond train.steps = {steps}: "
                "raise train.steps, or choose another --out"
            )

    def _changes_of_identity(self, then: MadeOf) -> list[str]:
        """Return a line for what of data and code is not the checkpoint's; tell what can't be."""
        if unknown := uncompared(then, self._made_of):
            self.display.say(
                f"resuming: {unknown} can't be compared with the checkpoint's, and may have changed"
            )
        return changes(then, self._made_of, but=SCORING)

    def _refuse_unexpected(self, about: Stretch) -> None:
        """Refuse a board's run whose data or code are not those that the board files it under."""
        expected = self.run.read_expected()
        if lines := changes(expected, about) if expected else []:
            raise InputError(
                f"{self.run.path} is for a run of a board made of other data or code: "
                f"{'; '.join(lines)}. {BOARD_AGAIN}"
            )

    def _restore(self, saved: Checkpoint) -> None:
        by_position = saved.state.get("format") == checkpoint.BY_POSITION
        try:
            told = self.learner.load_state(
                saved.tensors, saved.state["plugins"], by_position=by_position
            )
            self.tally = Tally.of(saved.state)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            reason = shown(" ".join(str(error).split()), 1000)
            failure = CheckpointError(f"the checkpoint does not fit this run: {reason}")
            raise with_notes_of(error, failure) from error
        if by_position:
            told.append(
                "this checkpoint is an older gancore's, whose optimizer state goes by position: it "
                "is right as long as no layer has changed its place since"
            )
        for line in told:
            self.display.say(line)
        self.tally.keep_penalties(self.learner.plugins)


def checkpoint_of(
    learner: Learner, tally: Tally, recipe: Mapping[str, Json], made_of: MadeOf, step: int
) -> Checkpoint:
    """Return all that a run goes on from after a step."""
    tensors, plugins = learner.state()
    state = {
        **tally.state(),
        "plugins": plugins,
        "recipe": recipe,
        "made_of": made_of.table(),
        "processes": learner.ranks.count,
        "frozen": frozen_parts(learner.generator),
        "shape": list(learner.data.shape),
    }
    return Checkpoint(step, tensors, state)
