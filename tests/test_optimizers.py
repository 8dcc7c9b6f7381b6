"""The optimizers' state: it belongs to names, whatever has changed of the networks meanwhile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Generator, assert_same, images
from safetensors.torch import load_file
from torch import Tensor, nn

from gancore.errors import CheckpointError
from gancore.recipe import Optimizer
from gancore.report import Display
from gancore.training import Run, Trainer, checkpoint
from gancore.training.checkpoint import Checkpoint
from gancore.training.optimizers import apply_gradients, make_optimizer, optimizer_state
from gancore.training.optimizers import restore_optimizer as restore

ORDER = ("first", "second", "third")


class Critic(nn.Module):
    """Three layers of one shape, made in any order and called in one."""

    def __init__(self, order: tuple[str, ...] = ORDER, frozen: tuple[str, ...] = ()) -> None:
        super().__init__()
        layers = {name: nn.Linear(16, 16) for name in ORDER}
        for name in order:
            self.add_module(name, layers[name])
        self.last = nn.Linear(16, 1)
        for name in frozen:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for name in ORDER:
            x = torch.tanh(self.get_submodule(name)(x))
        return self.last(x)  # type: ignore[no-any-return]


class Told(Display):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def made(steps: int, *, critic: nn.Module | None = None, **optimizer: Any) -> Trainer:
    torch.manual_seed(0)
    return Trainer(
        Generator(),
        critic or Critic(),
        images(),
        train={"steps": steps, "batch_size": 8},
        optimizer={"lr": 1e-2, **optimizer},
        score={"metrics": []},
        sample={"count": 4},
        device="cpu",
    )


def built(**options: Any) -> Critic:
    torch.manual_seed(1)
    return Critic(**options)


def continued(folder: Path, critic: nn.Module, **options: Any) -> tuple[Trainer, list[str]]:
    """Go on with the run in a folder, one update more; return what was told."""
    trainer, told = made(4, critic=critic, **options), Told()
    trainer.run(folder, resume=True, force=True, display=told)
    return trainer, told.lines


def moments(trainer: Trainer) -> dict[str, Tensor]:
    """Return the critic's first moments, by the names of its parameters."""
    state = trainer.learner.optimizers["critic"].state
    return {
        name: state[parameter]["exp_avg"].clone()
        for name, parameter in trainer.critic.named_parameters()
        if "exp_avg" in state.get(parameter, {})
    }


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_layers_that_change_places_keep_their_moments(tmp_path: Path, name: str) -> None:
    whole = made(4, critic=built(), name=name)
    whole.run(tmp_path / "whole")
    made(3, critic=built(), name=name).run(tmp_path / "run")
    swapped, told = continued(
        tmp_path / "run", built(order=("third", "first", "second")), name=name
    )
    assert [name for name, _ in swapped.critic.named_children()] != [*ORDER, "last"]
    assert_same(dict(whole.critic.named_parameters()), dict(swapped.critic.named_parameters()))
    assert told == []


def test_a_layer_unfrozen_on_resume_begins_anew_and_shifts_no_other(tmp_path: Path) -> None:
    made(3, critic=built(frozen=("first",))).run(tmp_path / "run")
    found = checkpoint.latest(Run(tmp_path / "run").checkpoints)
    assert found is not None
    resumed, fresh = made(3, critic=built()), Told()
    resumed.run(tmp_path / "run", resume=True, display=fresh)
    saved = found.tensors["optimizers"]
    assert moments(resumed).keys() == {
        name for name, _ in resumed.critic.named_parameters() if not name.startswith("first")
    }
    for name, moment in moments(resumed).items():
        assert torch.equal(moment, saved[f"critic/{name}/exp_avg"])
    assert fresh.lines == [
        "the critic's first.weight (and 1 more) has no optimizer state in the checkpoint, so that "
        "begins anew"
    ]
    more, _ = continued(tmp_path / "run", built())
    assert moments(more).keys() == {name for name, _ in more.critic.named_parameters()}
    steps = {
        name: int(more.learner.optimizers["critic"].state[each]["step"])
        for name, each in more.critic.named_parameters()
    }
    assert {steps["first.weight"], steps["first.bias"]} == {1}
    assert {steps["second.weight"], steps["last.bias"]} == {4}


def test_a_layer_frozen_on_resume_shifts_no_other(tmp_path: Path) -> None:
    whole = made(4, critic=built())
    whole.run(tmp_path / "whole")
    made(3, critic=built()).run(tmp_path / "run")
    frozen, told = continued(tmp_path / "run", built(frozen=("first",)))
    after, expected = dict(frozen.critic.named_parameters()), dict(whole.critic.named_parameters())
    for name in ("second.weight", "third.bias", "last.weight"):
        assert torch.equal(after[name], expected[name])
    saved = load_file(tmp_path / "whole/checkpoints/step-000004/critic.safetensors")
    assert not torch.equal(after["first.weight"], saved["first.weight"])
    assert told == [
        "the critic's first.bias (and 1 more) is frozen now, so the checkpoint's optimizer state "
        "of it is left out"
    ]


def restored(
    names: Mapping[str, Tensor], saved: Mapping[str, Tensor], *, by_position: bool = False
) -> dict[str, float]:
    """Restore an optimizer over parameters of these names; return their first moments."""
    module = nn.Module()
    for name, parameter in names.items():
        module.register_parameter(name, parameter)  # type: ignore[arg-type]
    optimizer = make_optimizer(Optimizer(), list(module.parameters()))
    restore("critic", optimizer, module, saved, by_position=by_position)
    return {
        name: float(optimizer.state[parameter]["exp_avg"][0])
        for name, parameter in module.named_parameters()
    }


def saved_state(**values: float) -> dict[str, Tensor]:
    """Return the state after one step of Adam on the gradients 10·value: moments are value."""
    module = nn.Module()
    for name in values:
        module.register_parameter(name, nn.Parameter(torch.ones(2)))
    parameters = list(module.parameters())
    optimizer = make_optimizer(Optimizer(betas=(0.9, 0.9)), parameters)
    apply_gradients(optimizer, parameters, [torch.full((2,), 10 * v) for v in values.values()])
    return optimizer_state("critic", optimizer, module)


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(2))


def test_names_may_hold_slashes_and_digits() -> None:
    values = {"0": 1.0, "1": 2.0, "exp_avg": 3.0, "a/b": 4.0, "a": 5.0, "b/exp_avg/": 6.0}
    saved = saved_state(**values)
    assert "critic/a/b/exp_avg" in saved
    found = restored({name: parameter() for name in reversed(values)}, saved)
    assert found == pytest.approx(values)


def test_a_shared_parameter_keeps_its_state_under_another_of_its_names() -> None:
    """Which of its names comes first is the order of the layers."""
    saved, shared = saved_state(one=1.0, lone=2.0), parameter()
    assert restored({"other": shared, "lone": parameter(), "one": shared}, saved) == pytest.approx(
        {"other": 1.0, "lone": 2.0}
    )
    both = {"one": shared, "lone": shared}
    with pytest.raises(CheckpointError, match=r"critic/lone/exp_avg: expected none, found"):
        restored(both, saved)


def test_a_parameter_that_is_gone_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"critic/two/exp_avg: expected none, found"):
        restored({"one": parameter()}, saved_state(one=1.0, two=2.0))


def test_format_1_goes_by_positions() -> None:
    saved = saved_state(one=1.0, two=2.0)
    numbers = {"one": "0", "two": "1"}
    old = {
        f"critic/{numbers[path.split('/')[1]]}/{path.split('/')[2]}": each
        for path, each in saved.items()
    }
    names = {"1": parameter(), "0": parameter()}
    assert restored(names, old, by_position=True) == pytest.approx({"1": 1.0, "0": 2.0})
    assert restored(names, old) == pytest.approx({"1": 2.0, "0": 1.0})


def as_format_1(folder: Path, trainer: Trainer) -> None:
    """Write the checkpoint of a run anew, as format 1 had it."""
    found = checkpoint.latest(folder / "checkpoints")
    assert found is not None
    position = {
        f"{kind}/{name}": f"{kind}/{number}"
        for kind in ("generator", "critic")
        for number, (name, _) in enumerate(getattr(trainer, kind).named_parameters())
    }
    renamed = {}
    for path, tensor in found.tensors["optimizers"].items():
        name, _, key = path.rpartition("/")
        renamed[f"{position[name]}/{key}"] = tensor
    old = Checkpoint(
        found.step, {**found.tensors, "optimizers": renamed}, {**found.state, "format": 1}
    )
    checkpoint.save(folder / "checkpoints", old, keep=1)


def test_a_run_of_an_older_gancore_goes_on(tmp_path: Path) -> None:
    whole, began = made(4, critic=built()), made(3, critic=built())
    whole.run(tmp_path / "whole")
    began.run(tmp_path / "run")
    state = tmp_path / "run/checkpoints/step-000003/state.json"
    assert json.loads(state.read_text())["format"] == 2
    as_format_1(tmp_path / "run", began)
    assert json.loads(state.read_text())["format"] == 1
    done, told = continued(tmp_path / "run", built())
    assert_same(whole.critic.state_dict(), done.critic.state_dict())
    assert_same(whole.generator.state_dict(), done.generator.state_dict())
    (line,) = told
    assert "goes by position" in line


@pytest.mark.parametrize("wrong", [0, 3, True, 1.0, "2", None])
def test_another_format_is_refused(tmp_path: Path, wrong: object) -> None:
    path = checkpoint.save(tmp_path, Checkpoint(1, {"x": {}}, {"format": wrong}), keep=1)
    with pytest.raises(CheckpointError, match=r"has format .*, this gancore reads 1 and 2"):
        checkpoint.load(path)
