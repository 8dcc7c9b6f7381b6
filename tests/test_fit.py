"""Networks that do not fit a run: sizes that differ, eval mode, frozen parts, samples of nan."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import (
    DIGITS,
    LATENT,
    Critic,
    Gan,
    Generator,
    assert_same,
    images,
    networks,
    records_of,
    scores_of,
    weights,
)
from torch import Tensor, nn

from gancore import Trainer
from gancore.data import Dataset
from gancore.errors import GancoreError, InputError, NonFiniteError, ScoreError
from gancore.report import Display
from gancore.scoring.sampling import generate
from gancore.training import Run, load_generator
from gancore.training.fit import ModeWarning
from gancore_gp import GradientPenalty
from gancore_lecam import LeCam
from gancore_r1 import R1


class Told(Display):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class AnySize(nn.Module):
    """A critic of the samples' mean, however many numbers they have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.flatten(1).mean(1)


class Answering(Generator):
    """Answers a function of what it should."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.answer(super().forward(z))
        return out


def made(generator: nn.Module, critic: nn.Module | None = None, **changes: Any) -> Trainer:
    sections: dict[str, Any] = {
        "data": images(),
        "train": {"steps": 2, "batch_size": 4},
        "score": {"metrics": []},
        "device": "cpu",
        **changes,
    }
    return Trainer(generator, critic or AnySize(), sections.pop("data"), **sections)


POINTS = Dataset("points", torch.randn(40, 2))

WRONG = {
    "size": (lambda x: x[..., :3], images(), r"shape \(4, 1, 4, 3\)"),
    "channels": (lambda x: x.repeat(1, 3, 1, 1), images(), r"shape \(4, 3, 4, 4\)"),
    "flat": (lambda x: x.flatten(1), images(), r"shape \(4, 16\)"),
    "half the batch": (lambda x: x[:2], images(), r"shape \(2, 1, 4, 4\)"),
    "points": (lambda x: x.flatten(1)[:, :3], POINTS, r"shape \(4, 3\)"),
    "images of points": (lambda x: x[..., :1, :2], POINTS, r"shape \(4, 1, 1, 2\)"),
    "tuple": (lambda x: (x, x), images(), "a tuple"),
    "none": (lambda x: None, images(), "a NoneType"),
    "integers": (lambda x: x.mul(127).to(torch.int32), images(), r"a torch\.int32"),
    "complex": (lambda x: x.to(torch.complex64), images(), r"a torch\.complex64"),
    "a dict": (lambda x: {"images": x}, images(), "a dict"),
    "elsewhere": (lambda x: x.to("meta"), images(), "a tensor on meta"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_samples_that_are_not_like_the_data_s_are_refused_before_all(
    tmp_path: Path, kind: str
) -> None:
    answer, data, what = WRONG[kind]
    trainer = made(Answering(answer), data=data)
    before = weights(trainer.critic) | weights(trainer.generator)
    state = torch.get_rng_state()
    with pytest.raises(InputError, match=f"^the generator makes {what}.* {data.name!r}"):
        trainer.run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    after = weights(trainer.critic) | weights(trainer.generator)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(InputError):
        trainer.critic_update(0)


class Networks(NamedTuple):
    generator: nn.Module
    critic: nn.Module


class Conditional(nn.Module):
    """Wants labels too."""

    latent = LATENT

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        return out


class Scoring(Critic):
    """Answers a function of what it should."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(super().forward(x))


class Astray(Critic):
    """Has a tensor that does not move with it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.zeros(1, device="meta"))


def of_latent(generator: nn.Module, latent: object) -> nn.Module:
    generator.latent = latent  # type: ignore[assignment]
    return generator


CONVOLUTION = nn.ConvTranspose2d(LATENT, 1, 4)

UNFIT: dict[str, tuple[Callable[[], Networks], str]] = {
    **{
        f"a generator of {dtype}": (
            lambda dtype=dtype: Networks(Generator().to(dtype), Critic()),
            r"^the generator can't take noise, torch\.float32 \(4, 5\) on cpu: RuntimeError: .*"
            rf"has parameters of {dtype}, and a run is float32: call generator\.float\(\)$",
        )
        for dtype in (torch.float64, torch.float16, torch.bfloat16)
    },
    **{
        f"a critic of {dtype}": (
            lambda dtype=dtype: Networks(Generator(), Critic().to(dtype)),
            r"^the critic can't take samples, torch\.float32 \(4, 1, 4, 4\) on cpu: Run.* \(helpers"
            rf"\.py, line \d+\)\. .*has parameters of {dtype}, .*: call critic\.float\(\)$",
        )
        for dtype in (torch.float64, torch.float16, torch.bfloat16)
    },
    "a wrong latent": (
        lambda: Networks(of_latent(Generator(), 7), Critic()),
        r"\(4, 7\).*attribute `latent` is 7: make it the length",
    ),
    "noise as an image": (
        lambda: Networks(of_latent(CONVOLUTION, LATENT), Critic()),
        r"It takes noise \(B, 5, 1, 1\): give nn\.Sequential\(nn\.Unflatten\(1, \(5, 1, 1\)\)",
    ),
    "a conditional generator": (
        lambda: Networks(Conditional(Generator()), Critic()),
        "the generator can't take noise.*missing 1 .*'labels'.*called with that alone",
    ),
    "a conditional critic": (
        lambda: Networks(Generator(), Conditional(Critic())),
        "the critic can't take samples.*missing 1 .*'labels'.*called with that alone",
    ),
    "a critic of other images": (
        lambda: Networks(Generator(), nn.Sequential(nn.Flatten(), nn.Linear(48, 1))),
        "can't take samples.*Build it for samples of that shape, the data's",
    ),
    "a tensor elsewhere": (
        lambda: Networks(Generator(), Astray()),
        r"can't take samples.* \(test_fit\.py, line \d+\)\. Register tensors of its own as buffers",
    ),
    "a critic of pairs": (
        lambda: Networks(Generator(), Scoring(lambda out: (out, out))),
        "the critic returned tuple",
    ),
    "a critic of patches": (
        lambda: Networks(Generator(), Scoring(lambda out: out.repeat(1, 9))),
        r"the critic returned shape \(4, 9\) for 4 samples",
    ),
    "a critic of integers": (
        lambda: Networks(Generator(), Scoring(lambda out: out.long())),
        r"the critic returned scores of torch\.int64.*floating-point",
    ),
    "a critic of complex numbers": (
        lambda: Networks(Generator(), Scoring(lambda out: out.to(torch.complex64))),
        r"the critic returned scores of torch\.complex64.*floating-point",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_networks_that_can_t_take_what_they_get_are_told_before_all(
    tmp_path: Path, kind: str
) -> None:
    networks, said = UNFIT[kind]
    trainer = made(*networks())
    before = weights(trainer.critic) | weights(trainer.generator)
    with pytest.raises(GancoreError, match=said) as caught:
        trainer.run(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    after = weights(trainer.critic) | weights(trainer.generator)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_what_is_told_as_the_remedy_works(tmp_path: Path) -> None:
    generator = nn.Sequential(nn.Unflatten(1, (LATENT, 1, 1)), nn.ConvTranspose2d(LATENT, 1, 4))
    made(of_latent(generator, np.int64(LATENT)), Critic().double().float()).run(tmp_path / "run")


@pytest.mark.parametrize("latent", [0, -1, True, "5", 5.0, None])
def test_lengths_of_noise_that_are_none(latent: object) -> None:
    with pytest.raises(InputError, match=r"^Generator.* noise vector.*(an int|1 or more)$"):
        made(of_latent(Generator(), latent))


@pytest.mark.parametrize("side", ["generator", "critic"])
def test_networks_without_values_are_refused(side: str) -> None:
    pair = {"generator": Generator(), "critic": Critic()}
    pair[side] = pair[side].to("meta")
    with pytest.raises(InputError, match=f"^the {side} is on the meta device, .*to_empty"):
        made(**pair)


@pytest.mark.parametrize(
    ("ours", "theirs", "whose"),
    [((2, 2, 4), (4, 2, 2), "the generator's"), ((4, 2, 2), (2, 2, 4), "the data's")],
)
def test_channels_that_are_last_are_named(
    ours: tuple[int, ...], theirs: tuple[int, ...], whose: str
) -> None:
    trainer = made(Answering(lambda x: x.view(-1, *ours)), data=torch.zeros(9, *theirs).byte())
    with pytest.raises(InputError, match=rf"{whose} have their channels last: x\.permute\(0, 3"):
        trainer.critic_samples(0)


class Viewing(Critic):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.repeat(1, 2, 1, 1).permute(0, 2, 3, 1).view(len(x), -1)[:, :16])


def test_a_view_that_can_t_be_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(test_fit\.py, line \d+\)\. Use reshape, not view"):
        made(Generator(), Viewing()).run(tmp_path / "run")


class Mixed(nn.Module):
    """Computes in float64, and answers that."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = Critic().double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.critic(x.double())
        return out


def test_a_critic_that_answers_another_precision_trains(tmp_path: Path) -> None:
    plugins = [R1(), GradientPenalty(), LeCam()]
    run = made(Generator(), Mixed(), plugins=plugins).run(tmp_path / "run")
    assert records_of(run)[-1]["step"] == 2


def test_the_trial_of_a_critic_leaves_no_trace(tmp_path: Path) -> None:
    """Statistics and random numbers are those of two updates made by hand."""

    class Normed(Critic):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.dropout = nn.BatchNorm2d(1), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.dropout(self.norm(x)))

    found = []
    for by_hand in (True, False):
        torch.manual_seed(0)
        trainer = made(Generator(), Normed())
        if by_hand:
            for number in range(2):
                trainer.learner.set_rates(number)
                trainer.critic_update(number)
                trainer.generator_update(number)
        else:
            trainer.run(tmp_path / "run")
        found.append(weights(trainer.critic))
    assert_same(*found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_samples_may_have_another_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    made(Answering(lambda x: x.to(dtype))).run(tmp_path / "run")


def test_the_look_at_the_samples_leaves_buffers_as_they_were(tmp_path: Path) -> None:
    class Stopped(Display):
        def begin(self, title: str, step: int, steps: int) -> None:
            raise KeyboardInterrupt

    trainer = made(Generator())
    before = weights(trainer.generator)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(tmp_path / "run", display=Stopped())
    assert all(torch.equal(each, before[key]) for key, each in weights(trainer.generator).items())


@pytest.mark.parametrize("side", ["generator", "critic"])
def test_a_network_in_eval_mode_trains_in_training_mode(side: str) -> None:
    generator, critic = networks()
    {"generator": generator, "critic": critic}[side].eval()
    with pytest.warns(ModeWarning, match=f"^the {side} came in eval mode[^\n]*$") as told:
        trainer = made(generator, critic)
    assert Path(told[0].filename).name in ("test_fit.py", "trainer.py")
    modules = [*trainer.generator.modules(), *trainer.critic.modules()]
    assert all(module.training for module in modules)


def test_fine_tuning_moves_running_means_and_drops_out(tmp_path: Path) -> None:
    made(Generator()).run(tmp_path / "run")
    loaded = load_generator(tmp_path / "run", generator=Generator())
    assert not loaded.training
    with pytest.warns(ModeWarning):
        trainer = made(loaded)
    norm: Any = loaded.layers[1]  # type: ignore[index]
    before = norm.running_mean.clone()
    trainer.critic_samples(0)
    assert not torch.equal(norm.running_mean, before)


class Pretrained(Generator):
    """Its first half is frozen: normalization and dropout with it."""

    def __init__(self) -> None:
        super().__init__()
        norm: Any = self.layers[1]
        norm.running_mean.fill_(0.5)
        norm.running_var.fill_(2.0)
        self.layers[1].eval()
        self.layers[3].eval()


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("mode", ["as built", "train", "eval"])
def test_a_frozen_part_is_the_same_in_training_samples_scores_and_later(
    tmp_path: Path, ema: float, mode: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is to be told
        trainer = made(Pretrained(), Critic(), train={"steps": 2, "batch_size": 4, "ema": ema})
    trainer.run(tmp_path / "run")
    layers: Any = trainer.generator.layers
    assert not layers[1].training
    sampler: Any = trainer.sampler()
    assert torch.equal(sampler.layers[1].running_mean, torch.full((16,), 0.5))
    network = Pretrained()
    if mode != "as built":
        network.train(mode == "train")
    modes = [module.training for module in network.modules()]
    loaded = load_generator(tmp_path / "run", generator=network)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(each, weights(sampler)[key]) for key, each in weights(loaded).items())
    assert torch.equal(generate(loaded, 5, seed=0), generate(sampler, 5, seed=0))


def test_frozen_names_of_a_stranger_s_checkpoint_are_checked(tmp_path: Path) -> None:
    from gancore.training import checkpoint

    run = made(Generator()).run(tmp_path / "run")
    found = checkpoint.latest(run.checkpoints)
    assert found is not None
    for odd in ("layers.1", [1], {"a": 1}):
        changed = checkpoint.Checkpoint(9, found.tensors, {**found.state, "frozen": odd})
        checkpoint.save(run.checkpoints, changed, keep=2)
        with pytest.raises(InputError, match="frozen: expected names of modules"):
            load_generator(run, generator=Generator())
    old = {key: value for key, value in found.state.items() if key != "frozen"}
    tensors = {name: each for name, each in found.tensors.items() if name != "calibrated"}
    checkpoint.save(run.checkpoints, checkpoint.Checkpoint(9, tensors, old), keep=2)
    norm: Any = load_generator(run, generator=Pretrained()).layers[1]  # type: ignore[index]
    saved = found.tensors["generator"]["layers.1.running_mean"]
    assert torch.equal(norm.running_mean, saved)


class Nan(Generator):
    """Fine while it trains; of what is sampled, a part is nan."""

    def forward(self, z: Tensor) -> Tensor:
        out = super().forward(z)
        return out if self.training else out.where(z[:, 0, None, None, None] < 1, torch.nan)


def test_nan_samples_are_told_by_the_grid_and_refused_by_the_scores(tmp_path: Path) -> None:
    display = Told()
    score = {"metrics": ["w2"], "samples": 100}
    flat = nn.Sequential(Nan(), nn.Flatten())
    flat.latent = LATENT  # type: ignore[assignment]
    data = Dataset("points", torch.rand(60, 16))
    trainer = made(flat, data=data, score=score, sample={"count": 50})
    with pytest.raises(ScoreError, match=r"[1-9]\d* of 100 generated samples hold inf or nan"):
        trainer.run(tmp_path / "run", display=display)
    (line,) = [line for line in display.lines if "of 50 generated samples hold inf or nan" in line]
    assert line.startswith("note: At step 2, ")
    run = Run(tmp_path / "run")
    assert scores_of(run) is None
    assert run.sample_path(2).is_file()


def test_nan_samples_of_a_run_without_scores_are_a_note(tmp_path: Path) -> None:
    run = made(Nan(), Critic(), sample={"every": 1}).run(tmp_path / "run")
    assert "notes" not in records_of(run)[0]
    assert "generated samples hold inf or nan" in records_of(run)[-1]["notes"][0]


def test_a_generator_that_turns_nan_is_told_on_the_command_line(
    tmp_path: Path, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `gan score` and `gan sample`, for images and points."""
    from gancore.networks.mlp import MLPGenerator

    plain = MLPGenerator.forward
    recipe = tmp_path / "digits.toml"
    recipe.write_text(DIGITS)
    assert gan("run", recipe, "--out", tmp_path / "run", "--set", "score.metrics=[]")[0] == 0
    monkeypatch.setattr(MLPGenerator, "forward", lambda self, z: plain(self, z) * torch.nan)
    code, _, errors = gan("score", tmp_path / "run", "--metrics", "fid", "--samples", 100)
    assert code == 1
    assert "there is nothing to score: 100 of 100 generated samples hold inf or nan" in errors
    with pytest.warns(UserWarning, match="^9 of 9 generated samples hold inf or nan"):
        code, _, _ = gan("sample", tmp_path / "run", "-n", 9, "--out", tmp_path / "grid.npz")
    assert code == 0
    assert np.load(tmp_path / "grid.npz")["arr_0"].shape == (9, 8, 8, 1)
    generator = load_generator(tmp_path / "run")
    with pytest.raises(NonFiniteError, match="9 of 9"):
        generate(generator, 9, seed=0)


def test_the_trial_before_a_run_leaves_buffers_that_are_assigned(tmp_path: Path) -> None:
    class Averaging(Generator):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("average", torch.zeros(LATENT))

        def forward(self, z: Tensor) -> Tensor:
            if self.training:
                self.average = torch.lerp(self.average, z.detach().mean(0), 0.5)
            return super().forward(z)

    torch.manual_seed(0)
    by_hand = made(Averaging(), train={"steps": 1, "batch_size": 4})
    by_hand.critic_update(0)
    by_hand.generator_update(0)
    torch.manual_seed(0)
    run = made(Averaging(), train={"steps": 1, "batch_size": 4})
    run.run(tmp_path / "run")
    assert torch.equal(run.generator.average, by_hand.generator.average)  # type: ignore[arg-type]
