"""Notes: what a run notices of itself that no score says, each in a sentence that is told once.

All of it comes at next to no cost: from values that are on the host anyway, from sample grids when
they are written, and from the first updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import compress

import torch
from torch import Tensor, nn

from gancore.data import Dataset
from gancore.files.stored import Json
from gancore.scoring.generator import COLLAPSED, total_variance
from gancore.scoring.protocol import Scores
from gancore.text import shown
from gancore.training.plan import Side
from gancore.training.tally import Tally

FIRST = 20
"""Updates of a network after which its gradients, and the generator's range, are judged."""

STILL = 20
"""Generator updates in a row, all without a gradient, that are told."""

ZERO = 1e-10
"""A gradient's norm that is none: far below Adam's ε, under which its steps fade out."""

FEWEST = 16
"""Samples whose variance says something."""

NOTHING = 1e-8
"""Share of the real data's variance that no generator begins with: small weights leave 1e-6."""

BRIGHT = 0.25
"""What values reach, at least, of a generator that is made for [0, 1]."""

DIVERGED = 100.0
"""Times the real data's variance, of points, which unlike images have no bounds."""

SATURATED = 0.1
"""Of the data's share of values that are neither darkest nor brightest."""


class Notes:
    """Watches a run, and keeps what it notices in the tally.

    networks  by side, "generator" and "critic"
    data      the real samples
    tally     where notes are kept, by kind: they survive a resume with it
    say       tells a line, when something is noticed for the first time
    """

    def __init__(
        self,
        networks: Mapping[Side, nn.Module],
        data: Dataset,
        tally: Tally,
        say: Callable[[str], None],
    ) -> None:
        self.tally = tally
        self._data, self._say = data, say
        self._trained = {side: _trained(network) for side, network in networks.items()}
        self._idle = {side: set(names) for side, names in self._trained.items()}
        self._seen = dict.fromkeys(networks, 0)
        self._range: Tensor | None = None

    @property
    def sentences(self) -> list[str]:
        """All that holds."""
        return list(self.tally.notes.values())

    def gradients(self, side: Side, update: int, reached: Sequence[bool]) -> None:
        """Look at which of a network's trained parameters had a gradient, in its first updates."""
        if update >= FIRST:
            return
        self._idle[side] -= set(compress(self._trained[side], reached))
        self._seen[side] += 1
        if update + 1 == FIRST:
            self._judge_gradients(side)

    def samples(self, fake: Tensor, step: int) -> None:
        """Look at what a critic update generates, (B, *), while generator updates are the first."""
        if step >= FIRST:
            self._judge_range()
            return
        if not self.tally.widest and len(fake) >= FEWEST and self._variance:
            unit = 127.5 if self._data.is_images else 1.0
            self.tally.widest = total_variance(unit * fake) / self._variance
        if not self._data.is_images:
            return
        low, high = fake.aminmax()
        if self._range is not None:
            low, high = low.minimum(self._range[0]), high.maximum(self._range[1])
        self._range = torch.stack([low, high])  # on its device until it is judged

    def norm(self, step: int, value: float) -> None:
        """Take the norm of the generator's gradient before generator update `step` was made."""
        self.tally.still = self.tally.still + 1 if value < ZERO else 0
        if self.tally.still == STILL:
            self._note(
                "still",
                f"The generator had no gradient (a norm below {ZERO:g}) in {STILL} updates in a "
                f"row up to step {step}, so it learns nothing: lower the learning rate, or look "
                "at what the critic answers.",
            )

    def grid(self, samples: Tensor, step: int) -> None:
        """Look at a sample grid: uint8 (N, C, H, W), or points (N, d), as they are after `step`."""
        if len(samples) < FEWEST or not self._variance:
            return
        self.spread(total_variance(samples) / self._variance, step)
        if self._data.is_images:
            share, real = _between(samples), _between(self._data.samples)
            self._hold(
                "saturated",
                share < SATURATED * real,
                f"The generator's images are saturated at step {step}: {share:.2g} of their values "
                f"are neither black nor white, of the data's {real:.2g}: lower the learning rate, "
                "or let the generator end in tanh.",
            )

    def without_broken(self, values: Mapping[str, float], step: int) -> dict[str, float]:
        """Return an update's terms without plugins' notes that are inf or nan; no record has any.

        The first of them is told.
        """
        whole = {name: value for name, value in values.items() if math.isfinite(value)}
        for name in values.keys() - whole.keys():
            self.tally.penalties.pop(name, None)  # or its last number would stay in records
            if "not_finite" not in self.tally.notes:
                self._note(
                    "not_finite",
                    f"{shown(name, 200)} was {values[name]} at step {step}: records leave out "
                    "notes that are inf or nan.",
                )
        return whole

    def broken(self, text: str, step: int) -> None:
        """Take what is said of samples that are inf or nan."""
        self._note("broken", f"At step {step}, {text}.")

    def spread(self, spread: float, step: int) -> None:
        """Take the samples' variance, as a share of the real data's.

        A generator that has hardly trained has a small one too: what counts is what was lost.
        """
        widest = self.tally.widest = max(self.tally.widest, spread)
        self._hold(
            "collapsed",
            spread < NOTHING or (spread < COLLAPSED and spread < widest / 2),
            f"The generator has collapsed: at step {step} its samples have {spread:.2g} of the "
            "real data's variance: lower the learning rate, or regularize the critic.",
        )
        self._hold(
            "diverged",
            spread > DIVERGED and not self._data.is_images,
            f"The generator has diverged: at step {step} its samples have {spread:.2g} times the "
            "real data's variance: lower the learning rate, or regularize the critic.",
        )

    def scored(self, scores: Scores, step: int) -> Scores:
        """Take the scores of a step, and return them with it and the notes, if there are any."""
        if scores.spread is not None and self._variance:
            self.spread(scores.spread, step)
        notes = {"notes": self.sentences} if self.sentences else {}
        return scores.model_copy(update={"step": step, **notes})

    def finish(self) -> None:
        """Judge the first updates now: there are no more."""
        for side, updates in self._seen.items():
            if 0 < updates < FIRST:
                self._judge_gradients(side)
        self._judge_range()

    def _judge_gradients(self, side: Side) -> None:
        """Name what the first updates found no gradient of: autograd saw no path to it."""
        idle = [name for name in self._trained[side] if name in self._idle[side]]
        every, names = len(self._trained[side]), ", ".join(shown(name, 100) for name in idle[:3])
        if len(idle) == every:
            fault = (
                f"No parameter of the {side} had a gradient in its first updates, so nothing "
                "trains it: does the critic detach its input, or run under torch.no_grad?"
            )
        else:
            fault = (
                f"{len(idle)} of the {side}'s {every} parameters had no gradient in its first "
                f"updates, so nothing trains them: {names}{', …' if idle[3:] else ''}. Are they "
                "unused, detached, or in a checkpoint with use_reentrant=True?"
            )
        if idle:
            self._note(f"idle_{side}", fault)

    def _judge_range(self) -> None:
        """Tell a generator made for [0, 1], where gancore's images lie in [−1, 1]."""
        if self._range is None:
            return
        low, high = self._range.tolist()
        self._range = None
        if low >= 0 and high >= BRIGHT and int(self._data.samples.min()) < 128:
            self._note(
                "range",
                f"The generator's images stayed in [{low:.2g}, {high:.2g}] through its first "
                "updates, and those that it is to match are in [−1, 1]: let it end in tanh, "
                "or return 2·x − 1.",
            )

    def _note(self, kind: str, sentence: str) -> None:
        if kind not in self.tally.notes:
            self._say(f"note: {sentence}")
        self.tally.notes[kind] = sentence

    def _hold(self, kind: str, holds: bool, sentence: str) -> None:
        """Keep a note as long as it is true."""
        if holds:
            self._note(kind, sentence)
        else:
            self.tally.notes.pop(kind, None)

    @cached_property
    def _variance(self) -> float:
        return total_variance(self._data.samples)


def noticed(state: Mapping[str, Json], scores: Scores | None) -> list[str]:
    """Return the notes of a run: those of its scores, or else of its checkpoint's state."""
    if scores is not None:
        return list(scores.notes)
    return list(Tally.of(state).notes.values())


def _trained(network: nn.Module) -> list[str]:
    return [name for name, one in network.named_parameters() if one.requires_grad]


def _between(images: Tensor) -> float:
    """Return the share of values that are neither 0 nor 255, over about 10,000 images."""
    chosen = images[:: max(1, len(images) // 10_000)]
    return ((chosen > 0) & (chosen < 255)).double().mean().item()
