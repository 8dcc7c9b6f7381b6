"""Many processes: together they compute what one does alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import LATENT, Generator, images, networks, records_of, trainer
from processes import together
from torch import Tensor, nn

from gancore import Trainer, entrypoints, hookimpl, plugin
from gancore.data import Dataset
from gancore.distributed.ranks import Ranks
from gancore.errors import InputError, RunError
from gancore.plugins import load
from gancore.scoring.protocol import Scores
from gancore.scoring.sampling import calibrated, generate
from gancore.training import Run
from gancore.training.optimizers import apply_gradients

pytestmark = pytest.mark.xdist_group("processes")

UPDATES = 4


class Plain(nn.Module):
    """A generator without batch normalization; or one that draws, dropout and noise."""

    latent = LATENT

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(LATENT, 16), nn.Linear(16, 16)
        self.dropout = nn.Dropout(noise)
        self.noise = noise

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.dropout(F.leaky_relu(self.first(z))) + self.noise * torch.randn(len(z), 1)
        return torch.tanh(self.last(hidden)).view(-1, 1, 4, 4)


class Scorer(nn.Module):
    """A critic with a parameter that nothing uses; with dropout, perhaps."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.LeakyReLU(0.2), nn.Dropout(dropout), nn.Flatten()
        )
        self.last = nn.Linear(96, 1)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.layers(x))
        return out


PLUGINS: dict[str, tuple[str, list[tuple[str, dict[str, Any]]]]] = {
    "none": ("wasserstein", []),
    "hinge": ("hinge", []),
    "nonsaturating": ("nonsaturating", []),
    "rpgan": ("rpgan", []),
    "gp": ("wasserstein", [("gp", {})]),
    "r1": ("nonsaturating", [("r1", {"gamma": 2.0})]),
    "r2": ("hinge", [("r2", {"gamma": 2.0})]),
    "r1 + r2": ("rpgan", [("r1", {}), ("r2", {})]),
    "dragan": ("nonsaturating", [("dragan", {})]),
    "dragan, gaussian": ("nonsaturating", [("dragan", {"noise": "gaussian"})]),
    "cr": ("hinge", [("cr", {"shift": 2, "fake_weight": 3.0})]),
    "lecam": ("hinge", [("lecam", {})]),
    "lecam, relu after a warm-up": ("hinge", [("lecam", {"relu": True, "warm_up": 2})]),
    "clip": ("wasserstein", [("clip", {"limit": 0.05})]),
    "sn": ("hinge", [("sn", {})]),
    "sn + gp": ("wasserstein", [("sn", {}), ("gp", {"one_sided": True, "target": 0.0})]),
    "lazy gp": ("wasserstein", [("gp", {}), ("lazy", {"every": 2})]),
    "lazy r1 beside gp": (
        "nonsaturating",
        [("gp", {}), ("r1", {}), ("lazy", {"every": 3, "targets": ["r1"]})],
    ),
}


def plain_trainer(case: str) -> Trainer:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "spectral normalization leaves unused alone")
        return _plain_trainer(case)


def _plain_trainer(case: str) -> Trainer:
    loss, chosen = PLUGINS[case]
    torch.manual_seed(1)
    return Trainer(
        Plain(),
        Scorer(),
        images(),
        loss=loss,
        plugins=[load(name, options) for name, options in chosen],  # type: ignore[arg-type]
        train={"steps": 2, "batch_size": 12, "generator_batch_size": 24, "critic_steps": 2},
        optimizer={"lr": 1e-7},  # so that updates can be compared one by one
        score={"metrics": []},
        flip=True,
        device="cpu",
    )


def updates(case: str) -> list[tuple[dict[str, float], list[Tensor | None]]]:
    """Return terms and gradients of some critic updates, then of some of the generator's."""
    made = plain_trainer(case)
    found: list[tuple[dict[str, float], list[Tensor | None]]] = []
    with pytest.MonkeyPatch.context() as patch:
        gradients: list[list[Tensor | None]] = []

        def keep(optimizer: Any, parameters: Any, given: Any) -> None:
            gradients.append([None if each is None else each.clone() for each in given])
            apply_gradients(optimizer, parameters, given)

        patch.setattr("gancore.training.learner.apply_gradients", keep)
        for number in range(UPDATES):
            values = made.critic_update(number)
            found.append((values, gradients.pop()))
        for number in range(2):
            values = made.generator_update(number)
            found.append((values, gradients.pop()))
    return found


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """The updates of all cases on two and on three processes, as each of them has them."""
    folder = tmp_path_factory.mktemp("ranks")
    work = lambda: {case: updates(case) for case in PLUGINS}  # noqa: E731
    return {count: together(work, folder, count) for count in (2, 3)}


def test_every_plugin_is_among_the_cases() -> None:
    used = {name for loss, chosen in PLUGINS.values() for name in (loss, *(n for n, _ in chosen))}
    only_writes = {"probe", "tensorboard"}
    assert used == {each.name for each in entrypoints.find("plugin")} - only_writes


def flat(tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([each.flatten() for each in tensors if each is not None])


@pytest.mark.parametrize("case", PLUGINS)
@pytest.mark.parametrize("count", [2, 3])
def test_gradients_are_those_of_one_process(
    case: str, count: int, split: dict[int, list[dict[str, Any]]]
) -> None:
    for (values, expected), *others in zip(
        updates(case), *(found[case] for found in split[count]), strict=True
    ):
        for theirs, gradients in others:
            assert theirs == others[0][0]  # to the bit: on one process as on the other
            assert theirs == pytest.approx(values, rel=1e-4, abs=1e-6)
            assert [each is None for each in gradients] == [each is None for each in expected]
            assert (flat(gradients) - flat(expected)).norm() < 1e-5 * flat(expected).norm()


def test_each_process_draws_for_its_own_samples(tmp_path: Path) -> None:
    """Dropout, and a generator's noise: others on each, while terms and weights are alike."""

    def work() -> tuple[list[bool], list[bool], dict[str, float], Tensor]:
        torch.manual_seed(1)
        generator, critic = Plain(0.2), Scorer(0.2)
        masks: list[Tensor] = []
        for part in (generator.dropout, critic.layers[2]):
            part.register_forward_hook(lambda part, x, out: masks.append(out == 0))
        made = Trainer(
            generator,
            critic,
            images(),
            plugins=[load("gp")],  # type: ignore[list-item]
            train={"steps": 2, "batch_size": 12},
            score={"metrics": []},
            device="cpu",
        )
        values = made.critic_update(0)
        drawn = [mask.flatten().tolist() for mask in masks[:2]]
        return *drawn, values, nn.utils.parameters_to_vector(critic.parameters()).detach()

    one, other = together(work, tmp_path)
    assert one[0] != other[0]
    assert one[1] != other[1]
    assert one[2] == other[2]
    assert torch.equal(one[3], other[3])


def test_processes_stay_alike_to_the_bit(tmp_path: Path) -> None:
    """Ten generator and fifty critic updates from networks that began differently."""

    def work() -> dict[str, Tensor]:
        mine = networks(seed=os.getpid())
        made = Trainer(
            *mine,
            images(),
            loss="hinge",
            plugins=[load("sn"), load("lecam"), load("gp"), load("lazy", {"every": 4})],  # type: ignore[list-item]
            train={"steps": 10, "batch_size": 8, "critic_steps": 5, "ema": 0.9},
            optimizer={"lr": 1e-2},
            score={"metrics": []},
            device="cpu",
        )
        began = mine[1].layers[1].weight.detach().clone()
        made.run(tmp_path / "run")
        tensors, plugins = made.state()
        flat = {f"{name}/{key}": t for name, all_ in tensors.items() for key, t in all_.items()}
        return {**flat, "began": began, "scalars": torch.tensor(len(plugins))}

    one, other = together(work, tmp_path)
    assert not torch.equal(one.pop("began"), other.pop("began"))
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert different == []
    moved = [key for key in one if "running_mean" in key or key.endswith("exp_avg")]
    assert len([key for key in moved if one[key].abs().sum() > 0]) > 5
    assert len(records_of(Run.open(tmp_path / "run"))) == 2  # step 1 and the last: by one of them


@plugin
class Stopper:
    """Stops the run of one process while the third step is saved: that step's decision is made."""

    trainer: list[Trainer] = field(init=False, default_factory=list)
    updates: int = field(init=False, default=0)

    @hookimpl
    def post_step(self) -> None:
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        if self.updates >= 3:
            self.trainer[0].stop("stopped late")
        return {}


def test_a_signal_at_any_moment_is_for_all(tmp_path: Path) -> None:
    def work() -> int:
        stopper = Stopper()
        train = {"steps": 6, "batch_size": 8}
        made = trainer(plugins=[stopper], checkpoint={"every": 3}, train=train)
        stopper.trainer.append(made)
        made.run(tmp_path / "run")
        return stopper.updates

    assert together(work, tmp_path) == [4, 4]


def test_samples_are_those_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of 64 of two processes' blocks, and whole blocks of a generator that draws."""
    monkeypatch.setattr("gancore.scoring.sampling.LARGEST", 1024)
    generators = [calibrated(Generator(), seed=3), calibrated(Plain(noise=0.5), seed=3)]

    def work() -> list[Tensor]:
        ranks = Ranks.join(torch.device("cpu"))
        return [
            generate(generator, count, seed=3, ranks=ranks)
            for generator in generators
            for count in (1, 300, 1000)
        ]

    expected = work()
    assert [len(each) for each in expected] == [1, 300, 1000] * 2
    for count in (2, 3, 5):
        first, *others = together(work, tmp_path, count)
        for mine, theirs in zip(first, expected, strict=True):
            assert torch.equal(mine, theirs)
        assert [len(each) for other in others for each in other] == [0] * 6 * (count - 1)


def test_scores_are_those_of_one_process(tmp_path: Path) -> None:
    generator = calibrated(Generator(), seed=3)
    pixels = torch.randint(0, 256, (90, 1, 8, 8), dtype=torch.uint8)
    digits = Dataset("pixels", pixels)

    class Large(Generator):
        def forward(self, z: Tensor) -> Tensor:
            return F.interpolate(super().forward(z), size=(8, 8))

    def work() -> Scores | None:
        made = trainer(
            data=digits,
            score={"metrics": ["fid", "kid"], "samples": 80, "extractor": "digits"},
        )
        large = Large()
        large.load_state_dict(generator.state_dict())
        made.learner.generator = large
        return made.scores()

    first, second = together(work, tmp_path)
    assert first is not None
    assert first == work()
    assert second is None


def test_what_they_say_to_each_other(tmp_path: Path) -> None:
    def work() -> dict[str, Any]:
        ranks = Ranks.join(torch.device("cpu"))
        mine = torch.tensor([1.0, 2.0]) * (ranks.index + 1)
        only_mine = mine if ranks.index == 1 else None
        same = [torch.full((2, 2), float(ranks.index)), torch.tensor(ranks.index)]
        ranks.equalize(same)
        errors = []
        for make in (lambda: b"", lambda: b"x" * 1000, refuse, fail, read):
            try:
                errors.append(ranks.from_first(make))
            except (InputError, RunError) as error:
                errors.append(f"{type(error).__name__}: {error}".encode())
        return {
            "mean": ranks.mean(mine),
            "means": ranks.means([mine, None, only_mine], like=[mine] * 3),
            "same": same,
            "any": [ranks.any(False), ranks.any(ranks.index == 2), ranks.any(True)],
            "errors": errors,
            "part": ranks.part(torch.arange(6)).tolist(),
            "gathered": [each.tolist() for each in ranks.gather(mine)],
        }

    def refuse() -> bytes:
        raise InputError("not here")

    def fail() -> bytes:
        raise RunError("not there")

    def read() -> bytes:
        return Path("/nowhere/at/all").read_bytes()

    found = together(work, tmp_path, count=3)
    for index, each in enumerate(found):
        assert each["mean"].tolist() == [2, 4]
        first, missing, some = each["means"]
        assert first.tolist() == [2, 4]
        assert missing is None
        assert some.tolist() == pytest.approx([2 / 3, 4 / 3])
        assert [tensor.sum().item() for tensor in each["same"]] == [0, 0]
        assert each["any"] == [False, True, True]
        assert each["part"] == [2 * index, 2 * index + 1]
        said = [b"", b"x" * 1000, b"InputError: not here", b"RunError: not there"]
        assert each["errors"][:4] == said
        assert each["errors"][4].startswith(b"InputError: /nowhere/at/all can't be read")
    assert found[0]["gathered"] == [[1, 2], [2, 4], [3, 6]]
    assert found[1]["gathered"] == found[2]["gathered"] == []


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    ranks = Ranks()
    ranks.count = 4
    assert ranks.share(64, "train.batch_size") == 16
    with pytest.raises(InputError, match=r"train\.batch_size is 66, .*4 processes.* such as 64"):
        ranks.share(66, "train.batch_size")
    with pytest.raises(InputError, match="such as 4"):
        ranks.share(3, "train.batch_size")
