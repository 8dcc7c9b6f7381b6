"""A session: the making of a run, from the opening of its folder to the end, or to a stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gancore.provenance.identity import made_of
from gancore.report import Display, plot_curves, save_grid, spared
from gancore.scoring.extractors import extractor
from gancore.scoring.protocol import Scores, answers
from gancore.scoring.sampling import CALIBRATING, SAMPLING, generate
from gancore.training import checkpoint
from gancore.training.idle import warn_never_due
from gancore.training.notes import Notes
from gancore.training.opening import Opening, checkpoint_of
from gancore.training.record import Record
from gancore.training.run_folder import Run
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
        self._scores: Scores | None = None
        self._made_of = made_of(trainer.data, trainer.plugins.loaded, trainer.components)

    def go(self, *, resume: bool, force: bool, threads: int | None = None) -> None:
        """Make the run, or the rest of it. Raises as `Trainer.run`."""
        trainer, first = self.trainer, self.trainer.ranks.is_first
        opening = Opening(trainer, self.run, self.display, self._made_of)
        start, self.tally = opening.open(resume=resume, force=force, threads=threads)
        self.notes.tally = self.tally
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
                    records = (record.values for record in self.run.read_records())
                    plot_curves(records, self.run.curves_path, trainer.recipe)
            if stopped:
                self.display.say(f"{stopped}: saved in {self.run.path}; go on with --resume")
            elif trainer.score.metrics and not self._is_scored(start):
                found = self._scores if self._scores is not None else self._last_scores()
                if found:
                    steps = trainer.train.steps
                    scored = self.notes.scored(found, steps)
                    self.run.write_scores(scored, self.run.read_scores())
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
        steps, asked = self.trainer.train.steps, self.trainer.score
        here = self.trainer.ranks.is_first and start == steps
        scores = self.run.read_scores() if here else None
        is_there = answers(scores, asked, steps) and self._has_same_features(scores)
        return self.trainer.ranks.any(is_there)

    def _has_same_features(self, scores: Scores | None) -> bool:
        """Whether the scores that are there are of the data and the extractor's weights of now."""
        score = self.trainer.score
        if scores is None:
            return True
        if scores.protocol.reference.sha256 != self.trainer.data.sha256:
            return False
        if scores.protocol.weights_sha256 is None:
            return True
        chosen = extractor(score.extractor, score.weights)
        return bool(chosen.weights_sha256() == scores.protocol.weights_sha256)

    def _last_scores(self) -> Scores | None:
        """Return the scores; None but on the first process, and there if it is stopped.

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
            return None

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
                checkpoint.packed(
                    checkpoint_of(trainer, self.tally, self._made_of, done)
                )  # what updates add to it can be saved too
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
        found = trainer.scores(self.display.count) if scored else None
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
        self, step: int, record: dict[str, Any], found: Scores | None, *, last: bool
    ) -> None:
        """Record and sample what is due."""
        trainer = self.trainer
        if found:
            record |= {f"score/{key}": value for key, value in found.scores.items()}
            self.tally.remember_best(step, found.scores)
            self.notes.scored(found, step)
        samples = None
        if last or step % trainer.sample.every == 0:
            samples = self._save_samples(step)
        if last or step == 1 or step % trainer.log.every == 0 or found:
            sentences = self.notes.sentences if last and not trainer.score.metrics else []
            self.run.append(Record.of(record, tuple(sentences)))
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

    def _save(self, step: int) -> None:
        if not self.trainer.ranks.is_first:
            return
        self.run.sync_records()
        checkpoint.save(
            self.run.checkpoints,
            checkpoint_of(self.trainer, self.tally, self._made_of, step),
            keep=self.trainer.checkpoint.keep,
            best=self.tally.best,
        )

    def _title(self, start: int) -> str:
        trainer = self.trainer
        names = ", ".join(each.name for each in trainer.plugins.loaded)
        where = f"{trainer.data.name} on {trainer.device}"
        if trainer.ranks.count > 1:
            where += f" with {trainer.ranks.count} processes"
        begin = f"from step {start}; " if start else ""
        line = f"{self.run.path}: {names}; {where}; {begin}seed {trainer.train.seed}"
        return f"{line}\ndata: {trainer.data}"
