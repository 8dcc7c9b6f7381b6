"""Updates, compiled: the numbers of eager mode, one graph for each set of penalties that is due."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    DIGITS,
    ROOT,
    Gan,
    assert_same,
    needs_compiling,
    parsed,
    records_of,
    started,
    trainer,
    weights,
)
from torch import Tensor, nn

from gancore import CriticStep, hookimpl, plugin
from gancore.cost import Counts
from gancore.errors import DataError, RecipeError
from gancore.networks import DCGANCritic, DCGANGenerator, ResNetCritic
from gancore.recipe import Recipe
from gancore.training import Run, Trainer
from gancore.training import building as experiment
from gancore.training.compiled import TRACES, CompileWarning
from gancore.training.objective import Gradients
from gancore_clip import WeightClipping
from gancore_cr import ConsistencyRegularization
from gancore_dragan import DRAGAN
from gancore_gp import GradientPenalty
from gancore_lazy import Lazy
from gancore_lecam import LeCam
from gancore_r1 import R1
from gancore_r2 import R2
from gancore_sn import SpectralNorm


class Graphs:
    """A stand-in for Inductor: runs each graph as it is, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """Trace for real, and leave out Inductor, which takes half a minute a graph."""
    if not TRACES:
        pytest.skip("train.compile needs torch 2.13")
    counted, compile = Graphs(), torch.compile

    def without_inductor(function: Any, *, fullgraph: bool, options: dict[str, Any]) -> Any:
        assert fullgraph
        assert options["fallback_random"]
        return compile(function, fullgraph=fullgraph, backend=counted)

    monkeypatch.setattr(torch, "compile", without_inductor)
    torch._dynamo.reset()
    yield counted
    torch._dynamo.reset()


def pair(plugins: Any, **train: Any) -> tuple[Trainer, Trainer]:
    """Return the same trainer twice: compiled and eager."""
    made = []
    for compiled in (True, False):
        generator = DCGANGenerator((1, 8, 8), latent=4, width=8)
        critic = DCGANCritic((1, 8, 8), width=8, norm="layer")
        for seed, network in enumerate((generator, critic)):
            torch.manual_seed(seed)
            for parameter in network.parameters():
                nn.init.normal_(parameter, 0.1, 0.2)
        samples = torch.Generator().manual_seed(0)
        made.append(
            Trainer(
                generator,
                critic,
                torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=samples),
                plugins=plugins(),
                train={"steps": 6, "batch_size": 8, "compile": compiled, "ema": 0.5, **train},
                optimizer={"lr": 1e-2},
                score={"metrics": []},
                device="cpu",
            )
        )
    return made[0], made[1]


PLUGINS: dict[str, Callable[[], list[object]]] = {
    "none": list,
    "gp": lambda: [GradientPenalty()],
    "gp one-sided": lambda: [GradientPenalty(one_sided=True)],
    "r1 and r2": lambda: [R1(), R2()],
    "clip": lambda: [WeightClipping()],
    "sn": lambda: [SpectralNorm()],
    "dragan": lambda: [DRAGAN()],
    "lecam": lambda: [LeCam(warm_up=1)],
    "cr": lambda: [ConsistencyRegularization(fake_weight=1.0, shift=2)],
}


@pytest.mark.parametrize("plugins", PLUGINS.values(), ids=PLUGINS)
def test_a_traced_update_is_the_eager_one(plugins: Any, graphs: Graphs) -> None:
    """Records, weights, moving averages, buffers and plugin states, over three updates."""
    compiled, eager = pair(plugins)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        for update in range(3):
            for side in ("critic_update", "generator_update"):
                found, expected = (getattr(each, side)(update) for each in (compiled, eager))
                assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert graphs.count >= 2
    for name in ("generator", "critic"):
        assert_same(weights(getattr(compiled, name)), weights(getattr(eager, name)))
    states = [each.plugins.state_dict() for each in (compiled, eager)]
    assert str(states[0]) == str(states[1])


def test_half_precision_stays_that_of_the_loss_alone(graphs: Graphs) -> None:
    compiled, eager = pair(lambda: [GradientPenalty()], precision="bf16")
    _, single = pair(lambda: [GradientPenalty()])
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        found = compiled.critic_update(0) | compiled.generator_update(0)
    expected = eager.critic_update(0) | eager.generator_update(0)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert found["critic_loss"] != single.critic_update(0)["critic_loss"]


def test_each_set_of_penalties_that_is_due_has_one_graph(graphs: Graphs) -> None:
    """And a scale that changes, or a learning rate, makes no other."""

    @plugin
    class Fades:
        @hookimpl
        def penalty_scale(self, plugin: str, update: int) -> float:
            return 1 / (1 + update)

    compiled, eager = pair(lambda: [R1(), Lazy(every=2), Fades()])
    for update in range(6):
        found, expected = compiled.critic_update(update), eager.critic_update(update)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert graphs.count == 2
    compiled.generator_update(0)
    compiled.generator_update(1)
    assert graphs.count == 3


def test_runs_of_one_process_do_not_disturb_each_other(graphs: Graphs) -> None:
    """Batches of other sizes would be taken for a size that varies, which can't be compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        for number, size in enumerate((8, 6, 4)):
            compiled, eager = pair(lambda: [DRAGAN()], batch_size=size)
            for update in range(2):
                found, expected = compiled.critic_update(update), eager.critic_update(update)
                assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)
            assert graphs.count == number + 1


@plugin
class WarmUp:
    """An R1 that grows over 100 updates, by a number that it asks the step for."""

    shift: int = 1

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        rows = torch.zeros(self.shift, 2, dtype=step.real.dtype).sum()  # of an option's size
        gradient = step.input_gradient(step.real).flatten(1)
        step.note("squared", gradient.square().sum(1).mean())
        return min(1, step.update / 100) * gradient.square().sum(1).mean() + rows


def test_a_penalty_that_warms_up_is_compiled_for_all_its_updates(graphs: Graphs) -> None:
    """Twenty updates, two graphs: one for update 0, one for any; in runs of other sizes too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        for number, size in enumerate((8, 6, 4)):
            compiled, eager = pair(
                lambda number=number: [WarmUp(shift=3 + number)], batch_size=size
            )
            for update in range(20):
                values, expected = compiled.critic_update(update), eager.critic_update(update)
                assert values == pytest.approx(expected, rel=1e-4, abs=1e-6)
                assert values["penalty/warm_up"] == pytest.approx(
                    update / 100 * values["note/warm_up/squared"], rel=1e-4, abs=1e-7
                )
            assert graphs.count <= 2 * (number + 1)


def changed(place: str, gradients: Gradients) -> Gradients:
    """Return what a graph that computes something else would, in one place."""
    names, values = gradients.names, gradients.values.clone()
    if place in names:
        values[names.index(place)] *= 1.01
        return gradients._replace(values=values)
    if place == "a name":
        return gradients._replace(names=(*names[:-1], "other"))
    first, *others = gradients.gradients
    assert first is not None
    return gradients._replace(gradients=(None if place == "none" else 1.01 * first, *others))


@pytest.mark.parametrize(
    "place",
    ["critic_loss", "note/warm_up/squared", "a name", "a gradient", "none"],
)
def test_a_graph_that_computes_something_else_is_not_used(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong by a hundredth in a term, a note or a gradient; lacking one; naming one otherwise."""

    def compile_wrongly(function: Callable[..., Gradients], **_: Any) -> Any:
        return lambda *arguments: changed(place, function(*arguments))

    monkeypatch.setattr(torch, "compile", compile_wrongly)
    monkeypatch.setattr("gancore.training.compiled.TRACES", True)
    compiled, eager = pair(lambda: [WarmUp()])
    with pytest.warns(CompileWarning, match="away from the right ones; going on without"):
        values = compiled.critic_update(100)
    assert values == eager.critic_update(100)
    assert_same(weights(compiled.critic), weights(eager.critic))


def test_a_graph_that_computes_the_same_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `changed` changes nothing: what is warned of above is the change."""
    calls: list[int] = []

    def compile_rightly(function: Callable[..., Gradients], **_: Any) -> Any:
        return lambda *arguments: calls.append(1) or function(*arguments)

    monkeypatch.setattr(torch, "compile", compile_rightly)
    monkeypatch.setattr("gancore.training.compiled.TRACES", True)
    compiled, eager = pair(lambda: [WarmUp()])
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        for update in range(2):
            assert compiled.critic_update(update) == eager.critic_update(update)
    assert len(calls) == 3  # one to check it


def test_the_penaltys_gradient_is_there(graphs: Graphs) -> None:
    """Before mid-2026 some operations silently compiled to a dead penalty."""
    found = []
    for plugins in ([], [GradientPenalty(weight=100.0)]):
        compiled, _ = pair(lambda plugins=plugins: plugins)
        real, fake = compiled.critic_samples(0)
        found.append(compiled.update_critic(0, real, fake))
    without, by = found
    assert "penalty/gp" in by
    assert by["critic_grad_norm"] > 2 * without["critic_grad_norm"]


class Dead(torch.autograd.Function):
    """x, whose gradient a tracer takes for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


@plugin
class Wrong:
    """A gradient penalty through an autograd.Function, which tracing loses (torch 2.14)."""

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        x = step.interpolates
        (gradient,) = torch.autograd.grad(
            Dead.apply(step.scores(x)).sum(),
            x,
            create_graph=True,
        )
        penalty: Tensor = gradient.square().sum()
        return penalty


@plugin
class Untraceable:
    """Looks at a number on the host, as a tracer can't."""

    calls: int = 0

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        self.calls += 1
        scores = step.scores(step.real)
        return scores.square().mean() * (2.0 if scores.detach().sum().item() > 0 else 1.0)

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Untraceable, r"critic's update with untraceable can't be compiled: plugin untraceable \("),
        (Wrong, r"critic's update with wrong, compiled, has gradients .* away from the right ones"),
    ],
)
def test_what_cant_be_compiled_is_named_once_and_goes_on_eagerly(
    broken: Callable[[], object], said: str, graphs: Graphs
) -> None:
    compiled, eager = pair(lambda: [broken()])
    expected = [eager.critic_update(update) for update in range(3)]
    with pytest.warns(CompileWarning, match=said):
        found = [compiled.critic_update(0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        found += [compiled.critic_update(update) for update in (1, 2)]
    assert found == expected
    assert_same(weights(compiled.critic), weights(eager.critic))
    assert str(compiled.plugins.state_dict()) == str(eager.plugins.state_dict())


def test_a_broken_contract_is_told_as_without(graphs: Graphs) -> None:
    @plugin
    class Constant:
        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            return torch.ones(())

    compiled, eager = pair(lambda: [Constant()])
    told = []
    for each in (compiled, eager):
        with pytest.raises(Exception, match="a constant") as caught:
            each.critic_update(0)
        told.append((type(caught.value), str(caught.value)))
    assert told[0] == told[1]


def test_resume_is_exact(graphs: Graphs, tmp_path: Path) -> None:
    def made(**train: Any) -> Trainer:
        sections = {"steps": 6, "batch_size": 8, "compile": True, **train}
        return trainer(plugins=[GradientPenalty(), Lazy(every=2)], train=sections)

    whole = made().run(tmp_path / "whole")
    made(max_seconds=1e-9).run(tmp_path / "parts")
    parts = made().run(tmp_path / "parts", resume=True)
    one, other = (
        [{k: v for k, v in record.items() if k != "seconds"} for record in records_of(run)]
        for run in (whole, parts)
    )
    assert one[-1] == other[-1]


def test_penalties_share_forwards_and_gradients() -> None:
    """A second R1 on the same samples costs no product more; and the loss no forward pass."""
    passes: list[int] = []
    counted = []
    for plugins in ({"a": R1(), "c": R2()}, {"a": R1(), "b": R1(gamma=3.0), "c": R2()}):
        made = trainer(plugins=plugins, train={"steps": 1, "batch_size": 4})
        made.critic.register_forward_hook(lambda module, inputs, out: passes.append(len(out)))
        real, fake = made.critic_samples(0)
        with Counts() as counts:
            made.update_critic(0, real, fake)
        counted.append(counts.flops)
    assert counted[0] == counted[1]
    assert passes == [4, 4] * 2


@needs_compiling
def test_inductor_itself_end_to_end(gan: Gan, tmp_path: Path) -> None:
    """`train.compile = true` on the command line, with a compiler: the records of eager mode."""
    records = {}
    for how, compiled in ((started, "true"), (gan, "false")):
        out = tmp_path / compiled
        code, told, err = how(
            *("run", ROOT / "recipes" / "wgan_gp_gaussians8.toml", f"--out={out}", "--device=cpu"),
            *(f"--set=train.compile={compiled}", "--set=train.steps=2"),
            *("--set=score.metrics=[]", "--set=critic.depth=2", "--set=generator.depth=1"),
        )
        assert code == 0, err
        assert "warning" not in err
        assert ("compiling the critic's update with gp" in told) == (compiled == "true")
        assert ("compiled in " in told) == (compiled == "true")
        records[compiled] = records_of(Run.open(out))[-1]
    for key, value in records["false"].items():
        if key != "seconds":
            assert records["true"][key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("traces", [False, True])
def test_train_compile_is_refused_where_torch_is_too_old_for_it(
    traces: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before the data are loaded, or anything is made; without it the same torch will do."""

    def no_data(recipe: Recipe) -> None:
        raise DataError("the data are loaded")

    monkeypatch.setattr("gancore.training.compiled.TRACES", traces)
    monkeypatch.setattr(experiment, "load_data", no_data)
    said = (
        rf"^train\.compile needs torch 2\.13 or later, and this is {re.escape(torch.__version__)}: "
    )
    for compiled in (True, False):
        refused = compiled and not traces
        kind, message = (RecipeError, said) if refused else (DataError, "the data are loaded")
        with pytest.raises(kind, match=message):
            experiment.run(parsed(DIGITS, **{"train.compile": compiled}), tmp_path, device="cpu")
        if refused:
            with pytest.raises(RecipeError, match=said):
                trainer(train={"steps": 1, "compile": True})
        else:
            trainer(train={"steps": 1, "compile": compiled})


def test_the_resnet_critic_in_one_graph(graphs: Graphs) -> None:
    """Average pooling, too, keeps its second derivative."""
    made = []
    for compiled in (True, False):
        torch.manual_seed(0)
        critic = ResNetCritic((1, 32, 32), width=8)
        generator = nn.Sequential(nn.Linear(2, 1024), nn.Unflatten(1, (1, 32, 32)))
        generator.latent = 2  # type: ignore[assignment]
        made.append(
            Trainer(
                generator,
                critic,
                torch.randint(0, 256, (9, 1, 32, 32), dtype=torch.uint8),
                plugins=[GradientPenalty(weight=100.0)],
                train={"steps": 1, "batch_size": 2, "compile": compiled},
                score={"metrics": []},
                device="cpu",
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        found, expected = (each.critic_update(0) for each in made)
    assert found == pytest.approx(expected, rel=1e-5)
    assert graphs.count == 1
