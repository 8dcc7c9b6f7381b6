"""The rehearsal: what a run needs later on is tried before its first update.

It leaves networks, plugins and random numbers as they are: copies are tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gancore.errors import CheckpointError, GancoreError, InputError, PluginError
from gancore.isolation.copies import copied
from gancore.isolation.randomness import kept
from gancore.scoring import try_scoring
from gancore.scoring.sampling import generate
from gancore.text import shown
from gancore.training import checkpoint
from gancore.training.checkpoint import Checkpoint
from gancore.training.fit import refuse_other_samples

if TYPE_CHECKING:
    from gancore.training.trainer import Trainer


def rehearse(trainer: Trainer, made: Checkpoint) -> None:
    """Save `made` and read it back, in memory; sample a grid, and take features of two samples.

    Raises InputError, CheckpointError, PluginError, ScoreError for what would fail later.
    """
    with kept():
        _read_back(trainer, made)
        samples = _grid(trainer)
        try_scoring(samples[:2], trainer.data, trainer.score, trainer.device)


def _read_back(trainer: Trainer, made: Checkpoint) -> None:
    again = checkpoint.unpacked(checkpoint.packed(made))
    networks = {"generator": trainer.generator, "critic": trainer.critic, "ema": trainer.ema}
    for name, network in networks.items():
        if network is None:
            continue
        try:
            twin = copied(network, name)
        except InputError:  # no critic is copied later on, and a generator's is told by its grid
            continue
        try:
            twin.load_state_dict(again.tensors[name])
        except Exception as error:  # whatever a set_extra_state or hook raises
            raise CheckpointError(
                f"a checkpoint of the {name} can't be read back ({_reason(error)}): let what it "
                "loads (set_extra_state, _load_from_state_dict, hooks) take what it saves"
            ) from error
    states = trainer.plugins.state_dict()
    for plugin in trainer.plugins.loaded:
        keeps = hasattr(plugin.instance, "state_dict") and states[plugin.name]
        if keeps and not hasattr(plugin.instance, "load_state_dict"):
            raise PluginError(
                f"plugin {plugin} has a state_dict and no load_state_dict, so a resumed run would "
                "forget its state: give it both"
            )


def _grid(trainer: Trainer) -> Tensor:
    """Return samples of a copy in eval mode, as many as the grids have."""
    source = trainer.generator if trainer.ema is None else trainer.ema.module
    twin = copied(source, "generator").eval()

    def look(module: object, inputs: tuple[Tensor, ...], out: object) -> None:
        refuse_other_samples(out, inputs[0], trainer.data, " in eval mode")

    twin.register_forward_hook(look)
    try:
        return generate(
            twin, trainer.sample.count, seed=trainer.train.seed, broken=lambda text: None
        )
    except (GancoreError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a generator raises
        if "allocate memory" in str(error):
            raise
        raise InputError(
            f"the generator fails in eval mode, in which grids and scores are sampled "
            f"({_reason(error)}): let it sample there as it does while it trains"
        ) from error


def _reason(error: Exception) -> str:
    return shown(" ".join(f"{type(error).__name__}: {error}".split()), 300)
