"""The trainer: its loop against one written by hand, and what it promises of each update."""

from __future__ import annotations

import json
import math
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    Critic,
    Spy,
    assert_same,
    images,
    networks,
    records_of,
    trainer,
    uniform,
    weights,
)
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, hookimpl, plugin
from gancore.data import Dataset
from gancore.errors import ContractError, DataError, InputError, NonFiniteError, RecipeError
from gancore.isolation.randomness import DataOrder, Stream
from gancore.report import Display
from gancore.training import Run, Trainer
from gancore.training.optimizers import decay_factor
from gancore_gp import GradientPenalty
from gancore_lazy import Lazy
from gancore_r1 import R1


def test_the_loop_is_the_textbook_loop() -> None:
    """Four generator updates of WGAN-GP, written as in the seed text, on the same numbers."""
    ours = trainer(plugins=[GradientPenalty()], optimizer={"lr": 1e-2, "betas": [0.0, 0.9]})
    generator, critic = networks()
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2, betas=(0.0, 0.9))
    d_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2, betas=(0.0, 0.9))
    data = images().samples.float() / 127.5 - 1
    order = DataOrder(0, "order/critic", len(data))
    draws = {side: Stream(0, f"latents/{side}") for side in ("critic", "generator")}
    dropout = {side: Stream(0, f"global/{side}/generator") for side in ("critic", "generator")}

    for step in range(4):
        for update in range(2 * step, 2 * step + 2):
            ours.critic_update(update)

            dropout["critic"].seed_global(update)
            d_optimizer.zero_grad()
            real = data[order.take(8 * update, 8)]
            fake = generator(torch.randn(8, 5, generator=draws["critic"].at(update))).detach()
            alpha = torch.tensor(uniform(0, "interpolates", 0, update, 8)).float().view(8, 1, 1, 1)
            x = (alpha * real + (1 - alpha) * fake).requires_grad_()
            out = critic(x)
            (gradients,) = torch.autograd.grad(out, x, torch.ones_like(out), create_graph=True)
            gp = 10 * ((gradients.view(8, -1).norm(2, dim=1) - 1) ** 2).mean()
            (critic(fake).mean() - critic(real).mean() + gp).backward()
            d_optimizer.step()
        ours.generator_update(step)

        dropout["generator"].seed_global(step)
        g_optimizer.zero_grad()
        (
            -critic(generator(torch.randn(8, 5, generator=draws["generator"].at(step)))).mean()
        ).backward()
        g_optimizer.step()

    for mine, theirs in ((ours.generator, generator), (ours.critic, critic)):
        for one, other in zip(
            mine.state_dict().values(), theirs.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_each_critic_update_sees_a_fresh_batch_and_an_epoch_sees_all() -> None:
    spy = Spy()
    made = trainer(
        plugins=[spy], data=images(48), train={"steps": 3, "batch_size": 8, "critic_steps": 2}
    )
    for update in range(6):
        made.critic_update(update)
    seen = torch.cat([step.real.detach() for step in spy.critic_steps])
    pixels = seen.add(1).mul(127.5).round().to(torch.uint8)
    assert sorted(pixels.flatten(1).tolist()) == sorted(images(48).samples.flatten(1).tolist())


def test_batch_sizes_updates_and_labels(tmp_path: Path) -> None:
    spy = Spy()
    made = trainer(
        plugins=[spy],
        train={"steps": 2, "batch_size": 4, "generator_batch_size": 6, "critic_steps": 3},
    )
    made.run(tmp_path / "run")
    assert [len(step.real) for step in spy.critic_steps] == [4] * 6
    assert [step.update for step in spy.critic_steps] == list(range(6))
    assert spy.posts == list(range(6))
    assert [(len(step.fake), len(step.real)) for step in spy.generator_steps] == [(6, 6)] * 2
    assert [step.update for step in spy.generator_steps] == [0, 1]
    latents = spy.generator_steps[0].latents
    assert latents is not None
    assert latents.shape == (6, 5)


def test_updates_leave_no_gradients_anywhere_else() -> None:
    spy = Spy()
    made = trainer(plugins=[spy, GradientPenalty(), R1()])
    made.critic_update(0)
    step = spy.critic_steps[0]
    assert step.real.grad is step.fake.grad is step.interpolates.grad is None
    made.generator_update(0)
    for module in (made.generator, made.critic):
        assert all(parameter.grad is None for parameter in module.parameters())
    assert spy.generator_steps[0].latents.grad is None  # type: ignore[union-attr]


def test_records(tmp_path: Path) -> None:
    spy = Spy()
    lazy = Lazy(every=3, targets=("gradient",))
    run = trainer(
        plugins={"gradient": GradientPenalty(), "spy": spy, "lazy": lazy},
        train={"steps": 7, "batch_size": 8, "critic_steps": 2},
        log={"every": 3},
    ).run(tmp_path / "run")
    assert [record["step"] for record in records_of(run)] == [1, 3, 6, 7]
    assert records_of(run) == spy.records
    assert spy.started == [(tmp_path / "run", 0)]
    assert spy.sampled == [((4, 1, 4, 4), 7)]
    values: dict[int, float] = {}
    for record in records_of(run):
        assert list(record)[:3] == ["update", "step", "seconds"]
        assert record["update"] == 2 * record["step"]
        assert record["wasserstein"] == record["d_real"] - record["d_fake"]
        assert record["critic_loss"] == pytest.approx(-record["wasserstein"], abs=1e-6)
        assert {"generator_loss", "critic_grad_norm", "penalty/spy"} <= set(record)
        values[record["step"]] = record["penalty/gradient"]
    # due at critic updates 0, 3, 6, 9, 12; records hold the latest: of 0, 3, 9, 12
    assert len(set(values.values())) == 4


def test_moving_average() -> None:
    made = trainer(train={"steps": 4, "batch_size": 8, "ema": 0.9})
    average: list[Tensor] | None = None
    for step in range(4):
        made.generator_update(step)
        now = [parameter.detach().clone() for parameter in made.generator.parameters()]
        if average is None:
            average = now
        else:
            average = [0.9 * a + 0.1 * b for a, b in zip(average, now, strict=True)]
    assert made.learner.average is not None
    assert average is not None
    for ours, theirs in zip(made.learner.average.module.parameters(), average, strict=True):
        torch.testing.assert_close(ours.detach(), theirs)
    sampled = made.sampler()
    assert not sampled.training
    for ours, theirs in zip(sampled.parameters(), average, strict=True):
        torch.testing.assert_close(ours.detach(), theirs)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_learning_rate_decay(tmp_path: Path, decay: str, expected: list[float]) -> None:
    rates = []

    @plugin
    class Watch:
        @hookimpl
        def post_step(self) -> None:
            rates.append(
                next(group["lr"] for group in made.learner.optimizers["critic"].param_groups)
            )

    made = trainer(
        plugins=[Watch()],
        train={"steps": 4, "batch_size": 4},
        optimizer={"lr": 0.01, "decay": decay},
    )
    made.run(tmp_path / "run")
    assert rates == pytest.approx([0.01 * factor for factor in expected])
    assert decay_factor(decay, 4, 4) == pytest.approx(1 if decay == "none" else 0)


def test_optimizers() -> None:
    adam = trainer(optimizer={"lr": 0.1, "betas": [0, 0.5]}).learner.optimizers["critic"]
    assert isinstance(adam, torch.optim.Adam)
    assert adam.param_groups[0]["betas"] == (0.0, 0.5)
    rmsprop = trainer(optimizer={"name": "rmsprop", "lr": 0.1, "alpha": 0.9}).learner.optimizers[
        "generator"
    ]
    assert isinstance(rmsprop, torch.optim.RMSprop)
    assert rmsprop.param_groups[0]["alpha"] == 0.9


def answering(value: Any) -> object:
    """Return a plugin whose penalty is what `value(step)` returns."""

    @plugin
    class Answer:
        @hookimpl
        def penalty(self, step: CriticStep) -> Any:
            return value(step)

    return Answer()


def raising(step: CriticStep) -> Tensor:
    raise ZeroDivisionError("oh")


def root_of_zero(step: CriticStep) -> Tensor:
    """Finite, with a gradient that is not."""
    return (step.scores(step.real) * 0).square().sum().sqrt()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            lambda step: step.scores(step.real).sum() * math.nan,
            NonFiniteError,
            "penalty/answer is nan",
        ),
        (lambda step: step.scores(step.real).sum() / 0, NonFiniteError, "penalty/answer is -?inf"),
        (root_of_zero, NonFiniteError, "critic_grad_norm is nan"),
        (lambda step: step.scores(step.real).sum().detach(), ContractError, "constant"),
        (raising, ZeroDivisionError, "oh"),
    ],
)
def test_a_bad_penalty_stops_before_the_optimizer_step(
    value: Any, error: type[Exception], message: str
) -> None:
    made = trainer(plugins={"answer": answering(value)})
    before = weights(made.critic)
    with pytest.raises(error, match=message) as caught:
        made.critic_update(3)
    assert_same(before, weights(made.critic))
    if error is ZeroDivisionError:
        (note,) = caught.value.__notes__
        assert "hook penalty of plugin answer" in note
        assert "update 3" in note


def test_generator_penalty_counts() -> None:
    """A penalty of c·Σθ on the generator adds exactly c to every gradient."""

    @plugin
    class Push:
        @hookimpl
        def generator_penalty(self, step: GeneratorStep) -> Tensor:
            assert isinstance(step.generator, nn.Module)
            return 2.5 * torch.stack([p.sum() for p in step.generator.parameters()]).sum()

    gradients = []
    for plugins in ([], [Push()]):
        made = trainer(plugins=plugins)
        kept: list[Tensor] = []
        made.learner.optimizers["generator"].register_step_pre_hook(
            lambda optimizer, args, kwargs, kept=kept: kept.extend(
                p.grad.clone() for group in optimizer.param_groups for p in group["params"]
            )
        )
        values = made.generator_update(0)
        gradients.append(kept)
    assert "generator_penalty/push" in values
    for plain, pushed in zip(*gradients, strict=True):
        torch.testing.assert_close(pushed, plain + 2.5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_bf16_is_for_the_loss_and_not_for_penalties(device: str) -> None:
    seen: dict[str, list[torch.dtype]] = {"penalty": [], "other": []}

    @plugin
    class Probe:
        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            seen["other"].clear()
            value = step.input_gradient(step.interpolates).square().sum()
            seen["penalty"] += seen["other"]
            seen["other"].clear()
            return value

    train = {"steps": 1, "batch_size": 8, "precision": "bf16"}
    made = trainer(plugins=[Probe()], train=train, device=device)
    for module in made.critic.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, i, out: seen["other"].append(out.dtype))
    made.critic_update(0)
    assert set(seen["penalty"]) == {torch.float32}
    assert set(seen["other"]) == {torch.bfloat16}


def test_bf16_scores_real_and_fake_once() -> None:
    """R1's float32 scores of real samples serve the loss; records are of the loss's scores."""
    made = trainer(plugins=[R1()], train={"steps": 1, "batch_size": 8, "precision": "bf16"})
    seen: list[torch.dtype] = []
    made.critic.layers[1].register_forward_hook(lambda m, i, out: seen.append(out.dtype))  # type: ignore[index, union-attr]
    values = made.critic_update(0)
    assert seen == [torch.float32, torch.bfloat16]
    assert values["critic_loss"] == pytest.approx(values["d_fake"] - values["d_real"], rel=1e-6)


def test_time_limit_stops_saves_and_goes_on(tmp_path: Path) -> None:
    limited = {"steps": 6, "batch_size": 8, "critic_steps": 2, "max_seconds": 1e-9}
    run = trainer(train=limited).run(tmp_path / "run")
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000001"]
    assert run.curves_path.is_file()
    done = trainer().run(tmp_path / "run", resume=True)
    whole = trainer().run(tmp_path / "whole")
    without_seconds = [{**record, "seconds": 0} for record in records_of(done)]
    assert without_seconds == [{**record, "seconds": 0} for record in records_of(whole)]


def test_a_trainer_that_was_stopped_goes_on(tmp_path: Path) -> None:
    spy = Spy()
    made = trainer(plugins=[spy])

    class Impatient(Display):
        def advance(self, step: int, values: object) -> None:
            if step == 2:
                made.stop("enough")

    assert records_of(made.run(tmp_path / "run", display=Impatient()))[-1]["step"] == 1
    assert len(spy.posts) == 4
    assert records_of(made.run(tmp_path / "run", resume=True))[-1]["step"] == 6
    assert spy.posts == list(range(12))


def test_plain_tensors_are_data() -> None:
    made = trainer(data=images().samples)
    assert made.data.shape == (1, 4, 4)
    with pytest.raises(DataError, match="expected uint8"):
        trainer(data=torch.zeros(3, 1, 4, 4))


def test_what_does_not_fit_is_refused() -> None:
    for wrong in ("steps", 3, {"steps": torch.tensor(3)}):
        with pytest.raises(RecipeError, match=r"^train: expected a table of plain values: "):
            trainer(train=wrong)
    with pytest.raises(RecipeError, match=r"train: stepz: unknown key. Did you mean 'steps'"):
        trainer(train={"stepz": 3})
    with pytest.raises(InputError, match="attribute `latent`"):
        Trainer(nn.Linear(2, 2), Critic(), images(), train={"steps": 1}, device="cpu")
    with pytest.raises(InputError, match="flip"):
        trainer(flip=True, data=Dataset("points", torch.zeros(9, 2)))
    with pytest.raises(ContractError, match="critic has no parameters"):
        generator, _ = networks()
        Trainer(generator, nn.Flatten(), images(), train={"steps": 1}, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent() -> None:
    with pytest.raises(InputError, match="--device cpu"):
        trainer(device="cuda")


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        trainer().run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_run_folder(tmp_path: Path) -> None:
    run = trainer(plugins=[GradientPenalty()], sample={"every": 4, "count": 4}).run(
        tmp_path / "run"
    )
    names = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert names == {
        "recipe.toml",
        "environment.json",
        "metrics.jsonl",
        "curves.png",
        "samples/step-000004.png",
        "samples/step-000006.png",
        "checkpoints/step-000006/generator.safetensors",
        "checkpoints/step-000006/critic.safetensors",
        "checkpoints/step-000006/calibrated.safetensors",
        "checkpoints/step-000006/optimizers.safetensors",
        "checkpoints/step-000006/plugins.safetensors",
        "checkpoints/step-000006/state.json",
        "checkpoints/step-000006/manifest.json",
    }
    environment = json.loads(run.environment_path.read_text())
    assert re.fullmatch(r"gancore-gp==0\.1\.0 \(code [0-9a-f]{8}\)", environment["plugins"]["gp"])
    assert environment["plugins"]["wasserstein"] == f"gancore=={version('gancore')}"
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert Run.open(run.path).read_table()["plugin"] == [
        {"name": "gp", "weight": 10.0, "target": 1.0, "one_sided": False}
    ]


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    made = trainer(plugins=[GradientPenalty(), R1(), Lazy(every=2)], device="cuda")
    run = made.run(tmp_path / "run")
    assert records_of(run)[-1]["step"] == 6
