"""The probe in trainers: when it runs, when it is left out, and what allows dependence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, TOY, Gan, images, needs_compiling, networks
from torch import Tensor, nn

from gancore import Trainer
from gancore.checks import dependence as probe
from gancore.checks.dependence import BatchStatisticsWarning
from gancore.cli import dry_run
from gancore.cost import measure
from gancore.errors import ContractError, NonFiniteError
from gancore.networks import MLPCritic
from gancore.recipe import Recipe, Train, differences
from gancore_gp import GradientPenalty
from gancore_lazy import Lazy
from gancore_r1 import R1


def built(*layers: nn.Module, **changes: Any) -> Trainer:
    generator, _ = networks()
    critic = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), *layers, nn.Linear(4, 1))
    train = {"steps": 2, "batch_size": 8, **changes.pop("train", {})}
    return Trainer(generator, critic, images(), train=train, device="cpu", **changes)


def test_a_trainer_probes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first pass that is penalized; one first-order backward more, and no forward."""
    passes: list[tuple[bool, bool]] = []
    grad = torch.autograd.grad

    def spied(*arguments: Any, **options: Any) -> Any:
        passes.append((options.get("create_graph", False), options.get("retain_graph", False)))
        return grad(*arguments, **options)

    made = built(nn.Tanh(), plugins=[GradientPenalty(), R1(), Lazy(every=2)])
    forwards: list[Tensor] = []
    made.critic.register_forward_hook(lambda module, inputs, out: forwards.append(out))
    monkeypatch.setattr(torch.autograd, "grad", spied)
    counts = []
    for update in range(3):
        made.critic_update(update)
        counts.append((len(passes), passes.count((False, True)), len(forwards)))
        passes.clear()
        forwards.clear()
    assert counts == [(4, 1, 3), (1, 0, 2), (3, 0, 3)]


@pytest.mark.parametrize(
    ("key", "compiled"),
    [
        ("allow_batch_statistics", False),
        ("allow_batchnorm", False),
        pytest.param("allow_batch_statistics", True, marks=needs_compiling),
    ],
)
def test_a_trainer_refuses_unless_it_is_allowed(
    key: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update that a compiled one is checked against probes."""
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile(function, backend="eager")
    )
    torch._dynamo.reset()

    def trainer(**train: Any) -> Trainer:
        train["compile"] = compiled
        return built(nn.BatchNorm1d(4), plugins=[GradientPenalty()], train=train)

    with pytest.raises(ContractError, match=r"batch normalization.*layer, group") as caught:
        trainer().critic_update(0)
    assert "hook penalty of plugin gp" in caught.value.__notes__[0]
    made = trainer(**{key: True})
    with pytest.warns(BatchStatisticsWarning, match="depends on 7 other samples"):
        made.critic_update(0)
    made.critic_update(1)  # without a second warning, which would be an error
    torch._dynamo.reset()


@pytest.mark.parametrize("key", ["allow_batch_statistics", "allow_batchnorm"])
def test_on_the_command_line(
    key: str, gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = MLPCritic.forward
    monkeypatch.setattr(MLPCritic, "forward", lambda self, x: scored(self, x - x.mean(0)))
    path = tmp_path / "toy.toml"
    path.write_text(TOY)
    code, _, err = gan("run", path, f"--out={tmp_path / 'refused'}", "--device=cpu")
    assert code == 1
    assert "error: the critic's score of sample 8 depends on" in err
    assert "set train.allow_batch_statistics = true" in err
    assert "Traceback" not in err
    with pytest.warns(BatchStatisticsWarning, match="which is allowed"):
        code, _, err = gan(
            "run", path, f"--out={tmp_path / 'run'}", "--device=cpu", f"--set=train.{key}=true"
        )
    assert code == 0, err


def test_the_old_name_is_the_new_one(gan: Gan, tmp_path: Path) -> None:
    assert Train.of({"steps": 1, "allow_batchnorm": True}).allow_batch_statistics
    recipe = Recipe.load(
        ROOT / "recipes" / "wgan_gp_gaussians8.toml", ["train.allow_batchnorm=true"]
    )
    table = recipe.table()
    assert table["train"]["allow_batch_statistics"] is True
    assert "allow_batchnorm" not in table["train"]
    old = copy.deepcopy(table)
    old["train"]["allow_batchnorm"] = old["train"].pop("allow_batch_statistics")
    assert differences(old, table) == []
    old["train"]["allow_batchnorm"] = False
    assert differences(old, table) == ["train.allow_batch_statistics: was False, is True"]
    code, _, err = gan(
        *("run", ROOT / "recipes" / "wgan_gp_gaussians8.toml", f"--out={tmp_path}", "--device=cpu"),
        *("--set=train.allow_batchnorm=true", "--set=train.allow_batch_statistics=true"),
    )
    assert code == 2
    assert "train.allow_batchnorm: unknown key" in err
    assert "allow_batch_statistics" in err


def test_no_counted_or_timed_update_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do those of a dry run that are timed; what is neither does."""
    made: list[bool] = []
    monkeypatch.setattr(
        "gancore.step.refuse_dependence", lambda *a, **o: made.append(probe._OFF.get())
    )
    table = {
        "data": {"name": "gaussians8", "samples": 50},
        "generator": {"name": "mlp", "width": 4},
        "critic": {"name": "mlp", "width": 4},
        "loss": {"name": "wasserstein"},
        "plugin": [{"name": "gp"}],
        "train": {"steps": 1, "batch_size": 4},
    }
    measure({"gp": Recipe.parse(table)}, device="cpu", rounds=2)
    assert made == [True, False, True, True]  # counted, not counted, timed twice
    made.clear()
    dry_run._seconds_a_step(built(nn.Tanh(), plugins=[GradientPenalty()]))
    assert made == [False] + [True] * dry_run.TIMED


def test_the_trainer_names_what_is_not_finite() -> None:
    made = built(nn.BatchNorm1d(4), plugins=[R1()])
    with torch.no_grad():
        made.critic[1].weight.fill_(torch.nan)  # type: ignore[index, union-attr, operator]
    with pytest.raises(NonFiniteError, match="nan at update 0"):
        made.critic_update(0)
