"""The rehearsal: what a run needs later on is tried before its first update.

It leaves networks, plugins and random numbers as they are: copies are tried.
"""

from __future__ import annotations

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
from gancore.training.learner import Learner


def rehearse(learner: Learner, made: Checkpoint) -> None:
    """Save `made` and read it back, in memory; sample a grid, and take features of two samples.

    Raises InputError, CheckpointError, PluginError, ScoreError for what would fail later.
    """
    with kept():
        _read_back(learner, made)
        samples = _grid(learner)
        try_scoring(samples[:2], learner.data, learner.settings.score, learner.device)


def _read_back(learner: Learner, made: Checkpoint) -> None:
    again = checkpoint.unpacked(checkpoint.packed(made))
    networks = {"generator": learner.generator, "critic": learner.critic, "ema": learner.average}
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
    states = learner.plugins.state_dict()
    for plugin in learner.plugins.loaded:
        keeps = hasattr(plugin.instance, "state_dict") and states[plugin.name]
        if keeps and not hasattr(plugin.instance, "load_state_dict"):
            raise PluginError(
                f"plugin {plugin} has a state_dict and no load_state_dict, so a resumed run would "
                "forget its state: give it both"
            )


def _grid(learner: Learner) -> Tensor:
    """Return samples of a copy in eval mode, as many as the grids have."""
    twin = copied(learner.sampled, "generator").eval()

    def look(module: object, inputs: tuple[Tensor, ...], out: object) -> None:
        refuse_other_samples(out, inputs[0], learner.data, " in eval mode")

    twin.register_forward_hook(look)
    try:
        return generate(
            twin,
            learner.settings.sample.count,
            seed=learner.settings.train.seed,
            broken=lambda text: None,
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
