"""A session: the making of a run, from the opening of its folder to the end, or to a stop."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack

from torch import Tensor

from gancore.files.storage import locked, told_when_full
from gancore.files.stored import Json
from gancore.provenance.identity import made_of
from gancore.provenance.machine import on_threads
from gancore.report import Display, plot_curves, save_grid, spared
from gancore.scoring import check_scoring
from gancore.scoring.extractors import extractor
from gancore.scoring.protocol import Scores, answers
from gancore.scoring.sampling import CALIBRATING, SAMPLING, generate
from gancore.training import checkpoint
from gancore.training.idle import warn_never_due
from gancore.training.learner import Learner
from gancore.training.notes import Notes
from gancore.training.opening import Opening, checkpoint_of
from gancore.training.plan import Update, plan
from gancore.training.record import Record
from gancore.training.run_folder import Run
from gancore.training.tally import Tally

ALONE = (
    "each process draws its own numbers for dropout, noise and plain torch.rand: with these, "
    "results equal those of one process in distribution only; what step.rand draws is the same"
)

ELSEWHERE = "stopped with another of its processes"


class _StoppedError(Exception):
    """A signal came while the first process scored."""


class Session:
    """Makes a run in a folder: opens it, loops, records, samples, saves and scores.

    Of several processes the first alone reads and writes the folder, and calls the plugins' hooks
    for output (`start`, `sample`, `log`).

    recipe      the table that is saved with the run
    components  what made the networks, for their identity

    `stopped` says why the loop saves and stops after the step it is in; it is empty otherwise.
    """

    def __init__(
        self,
        learner: Learner,
        run: Run,
        display: Display,
        recipe: Mapping[str, Json],
        components: Mapping[str, str],
    ) -> None:
        self.learner, self.run, self.display = learner, run, display
        self.settings, self.ranks = learner.settings, learner.ranks
        self.tally = Tally()
        self.notes = Notes(learner.networks, learner.data, self.tally, display.say)
        self.stopped = ""
        self._scores: Scores | None = None
        self._recipe = recipe
        self._made_of = made_of(learner.data, learner.plugins.loaded, components)
        learner.tell_by(display.say)

    def go(self, *, resume: bool, force: bool, threads: int | None) -> None:
        """Make the run, or the rest of it. Raises as `Trainer.run`."""
        with on_threads(threads), told_when_full(self.run.path), ExitStack() as stack:

            def enter() -> bytes:
                check_scoring(self.learner.data, self.settings.score)
                stack.enter_context(locked(self.run.path))
                return b""

            self.ranks.from_first(enter)
            opening = Opening(self.learner, self.run, self.display, self._recipe, self._made_of)
            start, self.tally = opening.open(resume=resume, force=force, threads=threads)
            self.notes.tally = self.tally
            if self.ranks.is_first:
                step = start - bool(self.tally.pending)
                self.learner.plugins.call("start", folder=self.run.path, step=step)
            self.display.begin(self._title(start), start, self.settings.train.steps)
            if self.ranks.count > 1:
                self.display.say(ALONE)
            try:
                self._go_on(start)
            finally:
                self.learner.forget_sampler()
                self.display.end()

    def _go_on(self, start: int) -> None:
        learner, steps = self.learner, self.settings.train.steps
        stopped = self._loop(start)
        if self.ranks.is_first:
            if not stopped and start < steps:
                warn_never_due(learner.plugins, learner.were_due | self.tally.penalties.keys())
            with spared(self.run.curves_path, self.display.say):
                records = (record.values for record in self.run.read_records())
                plot_curves(records, self.run.curves_path, self._recipe)
        if stopped:
            self.display.say(f"{stopped}: saved in {self.run.path}; go on with --resume")
        elif self.settings.score.metrics and not self._is_scored(start):
            self._score()
        if best := self.tally.best:
            self.display.say(f"best: {best.score} {best.value:.4g} at step {best.step}")

    def _loop(self, start: int) -> str:
        """Make the steps; return why not all of them, or an empty string.

        A signal may come at any moment, to any process: only what all have agreed on decides.
        """
        steps, before, began = self.settings.train.steps, self.tally.seconds, time.perf_counter()
        # what it was stopped in comes first
        stop = bool(self.tally.pending) and self._finish(start, self.tally.pending or {})
        for step in range(start, steps):
            if stop:
                return self.stopped or ELSEWHERE
            self.learner.set_rates(step)
            values: dict[str, float] = {}
            for update in plan(self.settings, step):
                values |= self._update(update, step)
            seconds = time.perf_counter() - began
            self.tally.seconds = before + seconds
            if step == start and self.ranks.is_first:  # what updates add to it can be saved too
                checkpoint.packed(self._checkpoint(step + 1))
            if seconds > (self.settings.train.max_seconds or math.inf) and step + 1 < steps:
                self.stopped = f"train.max_seconds is over after step {step + 1}"
            stop = self._after(step + 1, values)
        return ""

    def _update(self, update: Update, step: int) -> dict[str, float]:
        """Make an update, look at what it made, and return its terms."""
        made = self.learner.update(update)
        self.notes.gradients(update.side, update.number, made.reached)
        if made.fake is not None:
            self.notes.samples(made.fake, step)
        values = self.notes.without_broken(made.values, step + 1)
        self.tally.remember_penalties(values)
        return values

    def _after(self, step: int, values: Mapping[str, float]) -> bool:
        """Do what is due after a step; return whether to stop, as all have agreed.

        A checkpoint comes before what takes long: that can be made again from there.
        """
        settings, last = self.settings, step == self.settings.train.steps
        self.notes.norm(step, values["generator_grad_norm"])
        record = self._record(step, values)
        self.display.advance(step, record)
        if last:
            self.notes.finish()
        if (
            last
            or self._is_scored_at(step)
            or step % settings.checkpoint.every == step % settings.sample.every == 0
        ):
            self.tally.pending = record
            self._save(step)
        return self._finish(step, record)

    def _finish(self, step: int, record: Mapping[str, float]) -> bool:
        """Score, record, sample, and save what is due; return whether to stop."""
        last, scored = step == self.settings.train.steps, self._is_scored_at(step)
        if scored or (last and self.settings.score.metrics):
            # by all at once, not by the first for its grid and then by the others
            self.learner.sampler(self.display.count)
        scores = self.learner.scores(self.display.count) if scored else None
        self._scores = scores if scored and last else None
        if self.ranks.is_first:
            self._report(step, {**record}, scores, last=last)
        stop = self.ranks.any(bool(self.stopped))
        self.tally.pending = None
        if last or scored or stop or step % self.settings.checkpoint.every == 0:
            self._save(step)
        return stop

    def _report(
        self, step: int, record: dict[str, float], scores: Scores | None, *, last: bool
    ) -> None:
        """Record and sample what is due."""
        if scores:
            record |= {f"score/{key}": value for key, value in scores.scores.items()}
            self.tally.remember_best(step, scores.scores)
            self.notes.scored(scores, step)
        samples = None
        if last or step % self.settings.sample.every == 0:
            samples = self._save_samples(step)
        if last or step == 1 or step % self.settings.log.every == 0 or scores:
            sentences = self.notes.sentences if last and not self.settings.score.metrics else []
            self.run.append(Record.of(record, tuple(sentences)))
            self.learner.plugins.call("log", record=record)
            self.display.record(record)
        if samples is not None:
            self.learner.plugins.call("sample", samples=samples.contiguous(), step=step)

    def _record(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        terms = {key: value for key, value in values.items() if "/" not in key}
        return {
            "update": step * self.settings.train.critic_steps,
            "step": step,
            "seconds": round(self.tally.seconds, 3),
            **terms,
            "wasserstein": values["d_real"] - values["d_fake"],
            **self.tally.penalties,
        }

    def _save_samples(self, step: int) -> Tensor:
        samples = generate(
            self.learner.sampler(self.display.count),
            self.settings.sample.count,
            seed=self.settings.train.seed,
            broken=lambda text: self.notes.broken(text, step),
        )
        path = self.run.sample_path(step)
        with spared(path, self.display.say):
            save_grid(samples, path, like=self.learner.data.samples)
        self.notes.grid(samples, step)
        return samples

    def _checkpoint(self, step: int) -> checkpoint.Checkpoint:
        return checkpoint_of(self.learner, self.tally, self._recipe, self._made_of, step)

    def _save(self, step: int) -> None:
        if not self.ranks.is_first:
            return
        self.run.sync_records()
        checkpoint.save(
            self.run.checkpoints,
            self._checkpoint(step),
            keep=self.settings.checkpoint.keep,
            best=self.tally.best,
        )

    def _is_scored_at(self, step: int) -> bool:
        score = self.settings.score
        return bool(score.metrics and score.every and step % score.every == 0)

    def _is_scored(self, start: int) -> bool:
        """Whether there was nothing to train, and the scores asked for are there already."""
        steps, asked = self.settings.train.steps, self.settings.score
        here = self.ranks.is_first and start == steps
        scores = self.run.read_scores() if here else None
        is_there = answers(scores, asked, steps) and self._has_same_features(scores)
        return self.ranks.any(is_there)

    def _has_same_features(self, scores: Scores | None) -> bool:
        """Whether the scores that are there are of the data and the extractor's weights of now."""
        score = self.settings.score
        if scores is None:
            return True
        if scores.protocol.reference.sha256 != self.learner.data.sha256:
            return False
        if scores.protocol.weights_sha256 is None:
            return True
        chosen = extractor(score.extractor, score.weights)
        return bool(chosen.weights_sha256() == scores.protocol.weights_sha256)

    def _score(self) -> None:
        """Take the last scores, if they are not taken, and write them.

        All is saved by now, so a stop leaves them out; scores during the training are finished, as
        they are records too.
        """
        steps = self.settings.train.steps

        def count(what: str, done: int, total: int) -> None:
            self.display.count(what, done, total)
            # while all sample, one can't leave
            if self.stopped and (self.ranks.count == 1 or what not in (CALIBRATING, SAMPLING)):
                raise _StoppedError

        try:
            scores = self.learner.scores(count) if self._scores is None else self._scores
        except _StoppedError:
            self.display.say(
                f"{self.stopped}: trained, and saved in {self.run.path}, but not scored: "
                "go on with --resume"
            )
            return
        if scores:
            self.run.write_scores(self.notes.scored(scores, steps), self.run.read_scores())

    def _title(self, start: int) -> str:
        learner = self.learner
        names = ", ".join(plugin.name for plugin in learner.plugins.loaded)
        where = f"{learner.data.name} on {learner.device}"
        if self.ranks.count > 1:
            where += f" with {self.ranks.count} processes"
        begin = f"from step {start}; " if start else ""
        line = f"{self.run.path}: {names}; {where}; {begin}seed {self.settings.train.seed}"
        return f"{line}\ndata: {learner.data}"
