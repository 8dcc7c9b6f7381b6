"""What a run needs later on is tried before its first update; what it saves is read back right."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import LATENT, Critic, Generator, Spy, assert_same, images, weights
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from gancore import CriticStep, hookimpl, plugin
from gancore.errors import CheckpointError, InputError, PluginError, ScoreError
from gancore.scoring import Extractor
from gancore.scoring.sampling import generate
from gancore.training import Trainer, load_generator
from gancore.training.checkpoint import Checkpoint, latest, packed, save, unpacked
from gancore.training.rehearsal import rehearse
from gancore.training.state import join_extra, split_extra

STOPPED = {"steps": 4, "batch_size": 4, "max_seconds": 1e-9}
WHOLE = {"steps": 4, "batch_size": 4}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gancore.training.session.plot_curves", lambda *curves: None)


def made(generator: nn.Module, critic: nn.Module | None = None, **changes: Any) -> Trainer:
    sections: dict[str, Any] = {
        "train": WHOLE,
        "score": {"metrics": []},
        "sample": {"count": 4},
        "device": "cpu",
        **changes,
    }
    return Trainer(generator, critic or Critic(), sections.pop("data", images()), **sections)


def resumed(build: Callable[[], nn.Module], folder: Path, **train: Any) -> tuple[Trainer, Trainer]:
    """Return trainers after a whole run, and after one that was stopped and went on."""
    trainers = []
    for name, sections in (("whole", [WHOLE]), ("parts", [STOPPED, WHOLE])):
        for number, section in enumerate(sections):
            torch.manual_seed(0)
            trainer = made(build(), train={**section, **train})
            trainer.run(folder / name, resume=number > 0)
        trainers.append(trainer)
    return trainers[0], trainers[1]


def normalized(layer: nn.Module, how: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old: Any = {"weight": nn.utils.weight_norm, "spectral": nn.utils.spectral_norm}[how]
        out: nn.Module = old(layer)
        return out


class Keeping(Generator):
    """Keeps what its forward pass made, with the graph: by itself, in a list, in a dict."""

    def forward(self, z: Tensor) -> Tensor:
        self.hidden = self.layers(z)
        self.kept = [self.hidden, {"again": (2 * self.hidden,)}]
        return torch.tanh(self.hidden).view(-1, 1, 4, 4)


def old_weight_norm() -> nn.Module:
    generator = Generator()
    generator.layers[0] = normalized(generator.layers[0], "weight")
    return generator


def old_spectral_norm() -> nn.Module:
    generator = Generator()
    generator.layers[4] = normalized(generator.layers[4], "spectral")
    return generator


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("build", [Keeping, old_weight_norm, old_spectral_norm])
def test_what_torch_does_not_copy_trains_samples_resumes_and_is_loaded(
    tmp_path: Path, build: Callable[[], nn.Module], ema: float
) -> None:
    whole, parts = resumed(build, tmp_path, ema=ema)
    assert_same(weights(whole.generator), weights(parts.generator))
    loaded = load_generator(tmp_path / "parts", generator=build())
    assert torch.equal(generate(loaded, 3, seed=0), generate(whole.sampler(), 3, seed=0))


class Uncopied(Generator):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class InEval(Generator):
    """What it answers in eval mode is a function of what it should."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, z: Tensor) -> Tensor:
        out = super().forward(z)
        return out if self.training else self.answer(out)


def raising(x: Tensor) -> Tensor:
    raise KeyError("labels")


class Extra(Generator):
    """Has extra state, which decides what it makes."""

    def __init__(self, state: Any, reads: bool = True) -> None:
        super().__init__()
        self.state = state
        self.reads = reads

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        if not self.reads:
            raise LookupError("not mine")
        self.state = state


class With(Generator):
    def __init__(self, name: str, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer(name, tensor)


@plugin
class Keeper:
    """Its state is what its user says, from the first penalty on if that is `late`."""

    late: bool = False
    state: Any = field(init=False, default=None)
    seen: int = field(init=False, default=0)

    @hookimpl
    def penalty(self, step: CriticStep) -> None:
        self.seen += 1

    def state_dict(self) -> dict[Any, Any]:
        return {} if self.late and not self.seen else self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("a plugin is left as it was")


def keeper(state: Any, *, late: bool = False) -> Keeper:
    out = Keeper(late=late)
    out.state = state
    return out


class InBytes(Critic):
    def get_extra_state(self) -> bytes:
        return b"1"

    def set_extra_state(self, state: bytes) -> None:
        pass


SPARSE = torch.eye(3).to_sparse()
FAULTS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "lock": (lambda: {"generator": Uncopied()}, "the generator can't be copied.*_thread.lock"),
    "eval size": (
        lambda: {"generator": InEval(lambda x: x[..., :3])},
        r"shape \(\d+, 1, 4, 3\) of noise \(\d+, 5\) in eval mode",
    ),
    "eval type": (lambda: {"generator": InEval(lambda x: (x, x))}, "a tuple of noise .* in eval"),
    "eval error": (
        lambda: {"generator": InEval(raising)},
        "fails in eval mode.*KeyError: 'labels'",
    ),
    "extra object": (
        lambda: {"generator": Extra({"a": [1, {2}]})},
        r"the state of generator: _extra_state\['a'\]\[1\] is a set, which no checkpoint",
    ),
    "extra tuple": (lambda: {"generator": Extra((1, 2))}, "_extra_state is a tuple"),
    "extra bytes": (lambda: {"critic": InBytes()}, "state of critic: _extra_state is a bytes"),
    "extra key": (lambda: {"generator": Extra({1: 2})}, "_extra_state is a dict"),
    "extra sparse": (lambda: {"generator": Extra([SPARSE])}, r"_extra_state\[0\] can't be saved"),
    "unread": (lambda: {"generator": Extra(1, reads=False)}, "can't be read back.*not mine"),
    "sparse": (lambda: {"generator": With("eye", SPARSE)}, "eye can't be saved.*sparse"),
    "complex": (
        lambda: {"generator": With("wave", torch.zeros(2, dtype=torch.complex128))},
        "wave can't be saved.*complex128",
    ),
    "metadata": (
        lambda: {"generator": With("__metadata__", torch.zeros(2))},
        "__metadata__ can't be saved",
    ),
    "own key": (lambda: {"generator": With("_extra_state", torch.ones(2))}, "can't be read back"),
    "plugin list": (
        lambda: {"plugins": [keeper({"a": [1]})]},
        "plugin 'keeper': state 'a' is a li",
    ),
    "plugin key": (lambda: {"plugins": [keeper({1: 2})]}, "plugin 'keeper': state key 1"),
    "plugin sparse": (lambda: {"plugins": [keeper({"a": SPARSE})]}, "keeper/a can't be saved"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_would_fail_later_is_told_before_the_first_update(tmp_path: Path, fault: str) -> None:
    build, match = FAULTS[fault]
    changes = {"generator": Generator(), "critic": Critic(), **build()}
    spy = Spy()
    changes["plugins"] = [*changes.get("plugins", []), spy]
    trainer = made(changes.pop("generator"), changes.pop("critic"), **changes)
    before = [torch.get_rng_state(), *trainer.generator.parameters(), *trainer.critic.buffers()]
    before = [each.clone() for each in before]
    with pytest.raises(InputError, match=match) as caught:
        trainer.run(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert spy.critic_steps == spy.started == []
    after = [torch.get_rng_state(), *trainer.generator.parameters(), *trainer.critic.buffers()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert list((tmp_path / "run").iterdir()) == []  # so that the next try may have it


class Odd(FeatureExtractorBase):  # type: ignore[misc]
    """An extractor whose features are not what it says."""

    feature_dim = 64
    sample_shape = (1, 4, 4)
    DEFAULT_WEIGHTS = Path(__file__)
    answer: ClassVar[Any] = staticmethod(lambda x: torch.ones(len(x), 3))

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("64",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"fid": "64", "kid": "64"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        return (type(self).answer(input),)


@pytest.mark.parametrize(
    ("metrics", "answer", "match"),
    [
        (["kid"], lambda x: torch.ones(len(x), 3), r"features \(4, 3\) of 4 images"),
        (["kid"], lambda x: x[:, 0].float(), r"features \(4, 4, 4\)"),
        (["kid"], lambda x: torch.full((len(x), 64), torch.nan), "inf or nan of 4 of 4 trial"),
        (["kid"], raising, "no features of images for kid .KeyError"),
        (["isc"], lambda x: torch.ones(len(x), 64), "no features of images for isc .KeyError"),
    ],
)
def test_an_extractor_that_fails_is_told_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metrics: list[str], answer: Any, match: str
) -> None:
    chosen = Extractor("odd", "gancore-odd", 64, (1, None, None), Path(__file__))
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "gancore-odd", Odd)
    for name in ("extractor", "find_extractor"):
        monkeypatch.setattr(f"gancore.scoring.generator.{name}", lambda *names: chosen)
    monkeypatch.setattr(Odd, "answer", staticmethod(answer))
    spy = Spy()
    score = {"metrics": metrics, "samples": 20, "extractor": "odd"}
    trainer = made(Generator(), score=score, plugins=[spy])
    with pytest.raises(ScoreError, match=match) as caught:
        trainer.run(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert spy.critic_steps == []


def test_a_generator_that_can_t_be_averaged_is_told_by_the_trainer() -> None:
    with pytest.raises(InputError, match="the generator can't be copied"):
        made(Uncopied(), train={**WHOLE, "ema": 0.9})


def test_a_plugin_s_state_that_goes_wrong_in_the_first_update_is_told_after_it(
    tmp_path: Path,
) -> None:
    spy = Spy()
    with pytest.raises(CheckpointError, match="state 'a' is a list"):
        made(Generator(), plugins=[keeper({"a": []}, late=True), spy]).run(tmp_path / "run")
    assert len(spy.generator_steps) == 1


def test_a_state_that_nobody_reads_back_is_refused(tmp_path: Path) -> None:
    class Forgets:
        @hookimpl
        def penalty(self, step: CriticStep) -> None:
            return None

        def state_dict(self) -> dict[str, Any]:
            return {"seen": 1}

    with pytest.raises(PluginError, match="plugin forgets .* no load_state_dict"):
        made(Generator(), plugins=[Forgets()]).run(tmp_path / "run")


class Counting(Generator):
    """Its extra state, of tensors and JSON, moves in training, and decides what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[str, Any] = {"seen": 0, "shift": [torch.zeros(()), "x", None, True, 0.5]}

    def forward(self, z: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.state["seen"] += 1
            self.state["shift"][0] = self.state["shift"][0] + 0.125
        return super().forward(z) * 0.5 + self.state["shift"][0] * 0.1 * self.state["seen"]

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_extra_state_resumes_and_is_sampled_with(tmp_path: Path, ema: float) -> None:
    whole, parts = resumed(Counting, tmp_path, ema=ema)
    for trainer in (whole, parts):
        state = trainer.generator.state  # type: ignore[union-attr]
        assert state["seen"] == 4
        assert state["shift"][0] == 0.5
        assert state["shift"][1:] == ["x", None, True, 0.5]
    loaded: Any = load_generator(tmp_path / "parts", generator=Counting())
    assert loaded.state["seen"] == 4
    assert torch.equal(generate(loaded, 3, seed=0), generate(whole.sampler(), 3, seed=0))
    files = (tmp_path / "parts").rglob("step-*/*")
    assert {path.suffix for path in files if path.is_file()} == {".safetensors", ".json"}


def test_trees_of_tensors_are_joined_as_they_were(tmp_path: Path) -> None:
    tensor = torch.tensor([1 + 2j]).conj()
    table = {
        "weight": torch.ones(2),
        "a._extra_state": {"x/y": [tensor, {"[": torch.ones(1)}], "none": [], "nan": 1.5},
        "b._extra_state": torch.zeros(3),
        "c._extra_state": None,
    }
    checkpoint = Checkpoint(1, {"critic": table}, {"seconds": 0.0})
    found = latest(save(tmp_path, checkpoint, keep=1).parent)
    assert found is not None
    for again in (found, unpacked(packed(checkpoint)), unpacked(packed(found))):
        back = again.tensors["critic"]
        assert back.keys() == table.keys()
        tree: Any = back["a._extra_state"]
        assert torch.equal(tree["x/y"][0], torch.tensor([1 - 2j]))
        assert torch.equal(tree["x/y"][1].pop("["), torch.ones(1))
        assert tree == {"x/y": [tree["x/y"][0], {}], "none": [], "nan": 1.5}
        assert back["c._extra_state"] is None
        assert torch.equal(back["b._extra_state"], torch.zeros(3))


@pytest.mark.parametrize(
    "extra", [1, [1], {"generator": 1}, {"generator": {"weight": 1}}, {"generator": {"k": []}}]
)
def test_odd_extra_state_of_a_stranger_is_told(tmp_path: Path, extra: Any) -> None:
    tensors = {"weight": torch.ones(2), "k[5]": torch.ones(1)}
    path = save(tmp_path, Checkpoint(1, {"generator": tensors}, {}), keep=1)
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(json.dumps({**json.loads(text), "extra": extra}))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["state.json"] = hashlib.sha256((path / "state.json").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="no checkpoint can be used"):
        latest(tmp_path)


def test_a_loop_in_extra_state_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match="is a list"):
        split_extra({"_extra_state": loop})
    assert join_extra(*split_extra({"_extra_state": [[[1]]]})) == {"_extra_state": [[[1]]]}


class Named(nn.Module):
    """A generator whose parts have the names that averages and compilers use."""

    latent = LATENT

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(LATENT, 8), nn.BatchNorm1d(8))
        self._orig_mod = nn.ModuleDict({"module": nn.Linear(8, 8)})
        self.average = nn.Linear(8, 16)
        self.register_buffer("n_averaged", torch.tensor(2.0))

    def forward(self, z: Tensor) -> Tensor:
        hidden = self._orig_mod["module"](self.module(z))
        return torch.tanh(self.average(hidden) / self.n_averaged).view(-1, 1, 4, 4)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_names_of_averages_are_no_names_of_parts(tmp_path: Path, ema: float) -> None:
    whole, parts = resumed(Named, tmp_path, ema=ema)
    assert_same(weights(whole.generator), weights(parts.generator))
    sampler = whole.sampler()
    loaded = load_generator(tmp_path / "parts", generator=Named())
    assert_same(weights(loaded), weights(sampler))


def test_a_generator_in_a_wrapper_is_read_back(tmp_path: Path) -> None:
    def build() -> nn.Module:
        wrapped = nn.DataParallel(Generator())
        wrapped.latent = LATENT  # type: ignore[assignment]
        return wrapped

    trainer = made(build())
    trainer.run(tmp_path / "run")
    loaded = load_generator(tmp_path / "run", generator=build())
    assert_same(weights(loaded), weights(trainer.sampler()))


class Locked(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_a_critic_that_can_t_be_copied_trains(tmp_path: Path) -> None:
    """Nothing copies it: it is read back only where it can be."""
    run = made(Generator(), Locked(), train=WHOLE).run(tmp_path / "run")
    assert run.read().step == WHOLE["steps"]


class Drawing(Critic):
    def get_extra_state(self) -> Tensor:
        return torch.rand(1)

    def set_extra_state(self, state: Tensor) -> None:
        torch.rand(1)


def test_what_is_tried_draws_from_nothing_of_the_process() -> None:
    trainer = made(Generator(), Drawing())
    tensors, _ = trainer.state()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    rehearse(trainer.learner, Checkpoint(0, tensors, {}))
    assert torch.equal(torch.rand(2), expected)
