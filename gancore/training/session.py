"""A session: the making of a run, from the opening of its folder to the end, or to a stop."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gancore.errors import CheckpointError, InputError, with_notes_of
from gancore.files.storage import refuse_taken
from gancore.files.writing import delete, refuse_links_out
from gancore.provenance.environment import environment
from gancore.provenance.identity import (
    SCORING,
    WORDS,
    as_now,
    changes,
    made_of,
    made_of_in,
    uncompared,
)
from gancore.provenance.machine import TO_ROUNDING, taken_again, unlike
from gancore.recipe import differences
from gancore.report import Display, plot_curves, save_grid, spared
from gancore.scoring.extractors import extractor
from gancore.scoring.protocol import answers
from gancore.scoring.sampling import CALIBRATING, SAMPLING, frozen_parts, generate
from gancore.text import shown
from gancore.training import checkpoint
from gancore.training.checkpoint import Checkpoint
from gancore.training.idle import warn_never_due
from gancore.training.notes import Notes
from gancore.training.rehearsal import rehearse
from gancore.training.run_folder import BOARD_AGAIN, Run
from gancore.training.tally import Tally

if TYPE_CHECKING:
    from gancore.training.trainer import Trainer


ALONE = (
    "each process draws its own numbers for dropout, noise and plain torch.rand: with these, "
    "results equal those of one process in distribution only; what step.rand draws is the same"
)


ELSEWHERE = "stopped with another of its processes"


class _StoppedError(Exception):
    """A signal came while the first process scored."""


class Session:
    """Makes a trainer's run in a folder: opens it, loops, records, samples, saves and scores.

    Of several processes the first alone reads and writes the folder, and calls the plugins' hooks
    for output (`start`, `sample`, `log`).

    `stopped` is why the loop is to save and stop after the update that it is in; empty if it isn't.
    """

    def __init__(self, trainer: Trainer, run: Run, display: Display) -> None:
        self.trainer = trainer
        self.run = run
        self.display = display
        self.tally = Tally()
        networks = {"generator": trainer.generator, "critic": trainer.critic}
        self.notes = trainer.notes = Notes(networks, trainer.data, self.tally, display.say)
        self.stopped = ""
        self._scores: dict[str, Any] | None = None
        self._made_of = made_of(trainer.data, trainer.plugins.loaded, trainer.components)

    def go(self, *, resume: bool, force: bool, threads: int | None = None) -> None:
        """Make the run, or the rest of it. Raises as `Trainer.run`."""
        trainer, first = self.trainer, self.trainer.ranks.is_first
        start = self._open(resume=resume, force=force, threads=threads)
        if first:
            trainer.plugins.start(self.run.path, start - bool(self.tally.pending))
        self.display.begin(self._title(start), start, trainer.train.steps)
        if trainer.ranks.count > 1:
            self.display.say(ALONE)
        try:
            stopped = self._loop(start)
            if first and not stopped and start < trainer.train.steps:
                warn_never_due(trainer.plugins, trainer.were_due | self.tally.penalties.keys())
            if first:
                with spared(self.run.curves_path, self.display.say):
                    plot_curves(self.run.read_records(), self.run.curves_path, trainer.recipe)
            if stopped:
                self.display.say(f"{stopped}: saved in {self.run.path}; go on with --resume")
            elif trainer.score.metrics and not self._is_scored(start):
                found = self._scores if self._scores is not None else self._last_scores()
                if found:
                    steps = trainer.train.steps
                    self.run.write_scores(self.notes.scored(found, steps), steps)
                elif first:
                    self.display.say(
                        f"{self.stopped}: trained, and saved in {self.run.path}, but not scored: "
                        "go on with --resume"
                    )
            if best := self.tally.best:
                self.display.say("best: {score} {value:.4g} at step {step}".format(**best))
        finally:
            trainer.calibrated = None
            self.display.end()

    def _is_scored(self, start: int) -> bool:
        """Whether there was nothing to train, and the scores asked for are there already."""
        steps, asked = self.trainer.train.steps, self.trainer.score.model_dump()
        here = self.trainer.ranks.is_first and start == steps
        is_there = here and answers(self.run.scores, asked, steps) and self._has_same_features()
        return self.trainer.ranks.any(is_there)

    def _has_same_features(self) -> bool:
        """Whether the scores that are there are of the data and the extractor's weights of now."""
        scores, score = self.run.scores, self.trainer.score
        if scores is None:
            return True
        if scores["protocol"]["reference"].get("sha256") != self.trainer.data.sha256:
            return False
        if "weights_sha256" not in scores["protocol"]:
            return True
        chosen = extractor(score.extractor, score.weights)
        return bool(chosen.weights_sha256() == scores["protocol"]["weights_sha256"])

    def _last_scores(self) -> dict[str, Any]:
        """Return scores and protocol; {} but on the first process, and there if it is stopped.

        All is saved by now; scores during the training are finished, as they are records too.
        """

        def count(what: str, done: int, total: int) -> None:
            self.display.count(what, done, total)
            # while all sample, one can't leave
            if self.stopped and (
                self.trainer.ranks.count == 1 or what not in (CALIBRATING, SAMPLING)
            ):
                raise _StoppedError

        try:
            return self.trainer.scores(count)
        except _StoppedError:
            return {}

    def _loop(self, start: int) -> str:
        """Make updates; return why not all of them, or an empty string.

        A signal may come at any moment, to any process: only what all have agreed on decides.
        """
        trainer, train = self.trainer, self.trainer.train
        began = time.perf_counter()
        before = self.tally.seconds
        # what it was stopped in comes first
        stop = bool(self.tally.pending) and self._finish(start, self.tally.pending or {})
        if stop and start < train.steps:
            return self.stopped or ELSEWHERE
        for step in range(start, train.steps):
            trainer.set_rates(step)
            for number in range(train.critic_steps):
                values = trainer.critic_update(step * train.critic_steps + number)
                self.tally.remember_penalties(values)
            values |= trainer.generator_update(step)
            self.notes.norm(step + 1, values["generator_grad_norm"])
            self.tally.remember_penalties(values)
            seconds = time.perf_counter() - began
            self.tally.seconds = before + seconds
            done = step + 1
            if done == start + 1 and self.trainer.ranks.is_first:
                checkpoint.packed(self._checkpoint(done))  # what updates add to it can be saved too
            if train.max_seconds and seconds > train.max_seconds and done < train.steps:
                self.stopped = f"train.max_seconds is over after step {done}"
            stop = self._after(done, values)
            if stop and done < train.steps:
                return self.stopped or ELSEWHERE
        return ""

    def _after(self, step: int, values: Mapping[str, float]) -> bool:
        """Do what is due after a generator update; return whether to stop, as all have agreed.

        A checkpoint comes before what takes long: that can be made again from there.
        """
        trainer, record = self.trainer, self._record(step, values)
        last, scored = step == trainer.train.steps, self._is_scored_at(step)
        self.display.advance(step, record)
        if last:
            self.notes.finish()
        if last or scored or step % trainer.checkpoint.every == step % trainer.sample.every == 0:
            self.tally.pending = record
            self._save(step)
        return self._finish(step, record)

    def _finish(self, step: int, record: dict[str, Any]) -> bool:
        """Score, record, sample, and save what is due; return whether to stop."""
        trainer = self.trainer
        last, scored = step == trainer.train.steps, self._is_scored_at(step)
        if scored or (last and trainer.score.metrics):
            self._sampler()  # by all at once, not by the first for its grid and then by the others
        found = trainer.scores(self.display.count) if scored else {}
        self._scores = found if scored and last else None
        if trainer.ranks.is_first:
            self._report(step, {**record}, found, last=last)
        stop = trainer.ranks.any(bool(self.stopped))
        self.tally.pending = None
        if last or scored or stop or step % trainer.checkpoint.every == 0:
            self._save(step)
        if not last:
            trainer.calibrated = None
        return stop

    def _sampler(self) -> nn.Module:
        """Return the generator of this step to sample from: calibrated once, which takes a while.

        The grid, the scores and the checkpoint share it.
        """
        if self.trainer.calibrated is None:
            self.trainer.calibrated = self.trainer.sampler(self.display.count)
        return self.trainer.calibrated

    def _is_scored_at(self, step: int) -> bool:
        score = self.trainer.score
        return bool(score.metrics and score.every and step % score.every == 0)

    def _report(
        self, step: int, record: dict[str, Any], found: Mapping[str, Any], *, last: bool
    ) -> None:
        """Record and sample what is due."""
        trainer = self.trainer
        if found:
            record |= {f"score/{key}": value for key, value in found["scores"].items()}
            self.tally.remember_best(step, found["scores"])
            self.notes.scored(found, step)
        samples = None
        if last or step % trainer.sample.every == 0:
            samples = self._save_samples(step)
        if last or step == 1 or step % trainer.log.every == 0 or found:
            sentences = self.notes.sentences if last and not trainer.score.metrics else []
            self.run.append({**record, "notes": sentences} if sentences else record)
            trainer.plugins.log(record)
            self.display.record(record)
        if samples is not None:
            trainer.plugins.sample(samples, step)

    def _record(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        terms = {key: value for key, value in values.items() if "/" not in key}
        return {
            "update": step * self.trainer.train.critic_steps,
            "step": step,
            "seconds": round(self.tally.seconds, 3),
            **terms,
            "wasserstein": values["d_real"] - values["d_fake"],
            **self.tally.penalties,
        }

    def _save_samples(self, step: int) -> Tensor:
        trainer = self.trainer
        samples = generate(
            self._sampler(),
            trainer.sample.count,
            seed=trainer.train.seed,
            broken=lambda text: self.notes.broken(text, step),
        )
        path = self.run.sample_path(step)
        with spared(path, self.display.say):
            save_grid(samples, path, like=trainer.data.samples)
        self.notes.grid(samples, step)
        return samples

    def _checkpoint(self, step: int) -> Checkpoint:
        tensors, plugins = self.trainer.state()
        state = {
            **self.tally.state(),
            "plugins": plugins,
            "recipe": self.trainer.recipe,
            "made_of": self._made_of,
            "processes": self.trainer.ranks.count,
            "frozen": frozen_parts(self.trainer.generator),
        }
        return Checkpoint(step, tensors, state)

    def _save(self, step: int) -> None:
        if not self.trainer.ranks.is_first:
            return
        self.run.sync_records()
        checkpoint.save(
            self.run.checkpoints,
            self._checkpoint(step),
            keep=self.trainer.checkpoint.keep,
            best=self.tally.best,
        )

    def _open(self, *, resume: bool, force: bool, threads: int | None) -> int:
        """Bring all processes to the folder's latest checkpoint; return the step to start at."""
        ranks, start = self.trainer.ranks, 0
        self._refuse_unlike_processes()

        def first() -> bytes:
            nonlocal start
            found = self._prepare(resume=resume, force=force, threads=threads)
            start = found.step if found else 0
            return checkpoint.packed(found) if found and ranks.count > 1 else b""

        sent = ranks.from_first(first)
        if sent and not ranks.is_first:
            found = checkpoint.unpacked(sent)
            self._restore(found)
            start = found.step
        if ranks.count > 1:
            count = ranks.from_first(lambda: str(torch.get_num_threads()).encode())
            torch.set_num_threads(int(count))
        self.trainer.equalize()
        return start

    def _refuse_unlike_processes(self) -> None:
        """Refuse processes that have other data or code than the first."""
        ranks = self.trainer.ranks
        first = json.loads(ranks.from_first(lambda: json.dumps(self._made_of).encode()))
        unlike = [
            word for key, word in WORDS.items() if ranks.any(first[key] != self._made_of[key])
        ]
        if unlike:
            raise InputError(
                f"the processes of this run don't have the same {', '.join(unlike)}: give all the "
                "same files and packages"
            )

    def _prepare(self, *, resume: bool, force: bool, threads: int | None) -> Checkpoint | None:
        """Make the folder ready to go on from the checkpoint that is returned and restored."""
        run = self.run
        refuse_links_out(run.path)
        refuse_taken(run.path, resume=resume)
        found = checkpoint.latest(run.checkpoints, mend=self.display.say) if resume else None
        before = self._environment() if found is not None else {}
        if found is None:
            self.trainer.use.refuse()
        else:
            changed = {"threads": (before.get("threads", threads), threads)} if threads else {}
            self._refuse_another(found, changed, force=force)
            self._take_threads(before, threads)
        about = {
            **environment(
                self.trainer.device,
                self.trainer.plugins.loaded,
                world_size=self.trainer.ranks.count,
            ),
            **self._made_of,
        }
        self._refuse_unexpected(about)
        if before and (differing := unlike(before, about)):
            self.display.say(
                "this is not the kind of machine that the run was made on so far, or not known to "
                f"be ({'; '.join(differing)}): {TO_ROUNDING}"
            )
        if found is not None:
            self._restore(found)
        start = found.step if found else 0
        if start < self.trainer.train.steps:
            rehearse(self.trainer, self._checkpoint(start))
        if found is not None:
            checkpoint.mark_best(run.checkpoints, self.tally.best)
        run.write_environment(about, before, start)  # first: by it a folder is known for a run's
        run.write_recipe(self.trainer.recipe)
        run.cut_records(start - bool(self.tally.pending), self.display.say)
        if start < self.trainer.train.steps:
            delete(run.scores_path)
        return found

    def _environment(self) -> dict[str, Any]:
        """Return what the run was made on so far; {}, and a line, where that can't be read."""
        try:
            return self.run.environment
        except InputError as error:
            reason = shown(" ".join(str(error).split()), 1000)
            self.display.say(f"threads and machine of the run so far are not known: {reason}")
            return {}

    def _take_threads(self, before: Mapping[str, Any], asked: int | None) -> None:
        """Compute on as many threads as the run so far, if that can be and no other is asked for.

        Otherwise results would differ in their last bits.
        """
        then, now = before.get("threads"), torch.get_num_threads()
        if then is None or then == now:
            return
        if asked is not None:
            self.display.say(f"threads: {now} instead of {then} so far: {TO_ROUNDING}")
        elif taken_again(then):
            self.display.say(f"threads: {then} as so far, instead of {now}")
        else:
            self.display.say(f"threads: {then} so far, which can't be had here: {TO_ROUNDING}")

    def _refuse_another(
        self, found: Checkpoint, changed: Mapping[str, tuple[object, object]], *, force: bool
    ) -> None:
        """Refuse a checkpoint of another run, or of one that will be shorter.

        changed: what was and what is of other things that may have changed
        """
        saved = found.state.get("recipe")
        if not isinstance(saved, dict):
            raise CheckpointError("the checkpoint does not say of which recipe it is: train again")
        classes = {each.method: type(each.instance) for each in self.trainer.plugins.loaded}
        recipes = (as_now(saved, classes), as_now(self.trainer.recipe, classes))
        lines = differences(*recipes) + self._changes_of_identity(found)
        if made_of_in(found.state).get("data") == self._made_of["data"]:
            lines = [line for line in lines if not line.startswith("data.path: ")]  # it has moved
        processes = (found.state.get("processes", 1), self.trainer.ranks.count)
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
        steps = self.trainer.train.steps
        if found.step > steps:
            raise InputError(
                f"the checkpoint is at step {found.step}, beyond train.steps = {steps}: "
                "raise train.steps, or choose another --out"
            )

    def _changes_of_identity(self, found: Checkpoint) -> list[str]:
        """Return a line for what of data and code is not the checkpoint's; tell what can't be."""
        then = made_of_in(found.state)
        if unknown := uncompared(then, self._made_of):
            self.display.say(
                f"resuming: {unknown} can't be compared with the checkpoint's, and may have changed"
            )
        return changes(then, self._made_of, but=SCORING)

    def _refuse_unexpected(self, about: Mapping[str, Any]) -> None:
        """Refuse to make a run of a board of other data or code than the board has it filed by."""
        lines = changes(self.run.expected, about)
        if lines:
            raise InputError(
                f"{self.run.path} is for a run of a board made of other data or code: "
                f"{'; '.join(lines)}. {BOARD_AGAIN}"
            )

    def _restore(self, found: Checkpoint) -> None:
        by_position = found.state.get("format") == checkpoint.BY_POSITION
        try:
            told = self.trainer.load_state(
                found.tensors, found.state["plugins"], by_position=by_position
            )
            self.tally = self.notes.tally = Tally.of(found.state)
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
        plugins = self.trainer.plugins
        self.tally.keep_penalties(plugins.terms("penalty") + plugins.terms("generator_penalty"))

    def _title(self, start: int) -> str:
        trainer = self.trainer
        names = ", ".join(each.name for each in trainer.plugins.loaded)
        where = f"{trainer.data.name} on {trainer.device}"
        if trainer.ranks.count > 1:
            where += f" with {trainer.ranks.count} processes"
        begin = f"from step {start}; " if start else ""
        line = f"{self.run.path}: {names}; {where}; {begin}seed {trainer.train.seed}"
        return f"{line}\ndata: {trainer.data}"
