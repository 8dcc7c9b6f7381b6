"""Probe: its numbers against analytic answers and NumPy's, and a run that it does not change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gancore import CriticStep, Trainer
from gancore.losses import Wasserstein
from gancore.plugins import Plugins, wrap
from gancore_probe import Probe, gradient_norms, spectral_norm


def probed(step: CriticStep, probe: Probe | None = None) -> dict[str, float]:
    """Return what a probe notes, by the note's own name, as one plugin of a run."""
    plugins = Plugins([wrap(Wasserstein()), wrap(probe or Probe(), "probe")])
    assert list(plugins.answer_penalties("penalty", step)) == []
    assert all(key.startswith("note/probe/") for key in step.notes)
    return {key.removeprefix("note/probe/"): value.item() for key, value in step.notes.items()}


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3)])
def test_gradient_norms_are_the_analytic_ones(shape: tuple[int, ...]) -> None:
    """∇ ½‖x‖² is x."""
    x = torch.randn(7, *shape, dtype=torch.float64)
    norms = gradient_norms(lambda x: x.flatten(1).square().sum(1) / 2, x)
    np.testing.assert_allclose(norms, np.linalg.norm(x.flatten(1).numpy(), axis=1), rtol=1e-12)
    assert not norms.requires_grad
    assert not x.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(
            gradient_norms(lambda x: 3 * x.flatten(1)[:, 0], x).max(), 3 + 0 * norms[0]
        )


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (8, 3), (40, 40), (200, 70)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_spectral_norm_is_the_largest_singular_value(
    shape: tuple[int, int], scale: float
) -> None:
    rng = np.random.default_rng(0)
    matrix = (scale * rng.normal(size=shape)).astype(np.float32)
    largest = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[0]
    assert spectral_norm(torch.from_numpy(matrix)).item() == pytest.approx(largest, rel=1e-3)


def test_the_spectral_norm_where_singular_values_are_equal_or_nearly_or_zero() -> None:
    q, _ = torch.linalg.qr(torch.randn(300, 300, dtype=torch.float64))
    assert spectral_norm(2 * q).item() == pytest.approx(2, rel=1e-5)
    values = torch.linspace(0.99, 1, 300, dtype=torch.float64)
    nearly = spectral_norm((q * values) @ q.T).item()
    assert nearly == pytest.approx(1, rel=1e-3)
    assert spectral_norm(torch.diag(torch.tensor([3.0, 2.999, -4.0]))).item() == pytest.approx(4)
    assert spectral_norm(torch.zeros(3, 4)).item() == 0


def test_what_is_noted_of_gradients() -> None:
    """Medians and 90th percentiles as NumPy has them; between has its own points."""
    real, fake = torch.randn(11, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    step = CriticStep(lambda x: x.square().sum(1) / 2, real, fake)
    notes = probed(step)
    points = {"real": real, "fake": fake, "between": step.interpolates.detach()}
    assert len(notes) == 6
    for name, x in points.items():
        norms = np.linalg.norm(x.numpy(), axis=1)
        assert notes[f"gradient_{name}_median"] == pytest.approx(np.median(norms))
        assert notes[f"gradient_{name}_p90"] == pytest.approx(np.quantile(norms, 0.9))
    one = CriticStep(lambda x: 2 * x[:, 0], real[:1], fake[:1])
    assert set(probed(one).values()) == {2.0}


class Layers(nn.Module):
    """Layers of all sorts, some with names that no note can have."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv = nn.Conv2d(2, 3, 3)
        self.up = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.LayerNorm((5, 3, 3)))
        setattr(self, "long" * 20, parametrizations.spectral_norm(nn.Linear(45, 4)))
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        long: nn.Module = getattr(self, "long" * 20)
        scores: Tensor = self.last(long(self.up(self.Conv(x)).flatten(1)).tanh())
        return scores


def test_what_is_noted_of_layers() -> None:
    """A convolution's matrix has a row for each output channel (Miyato et al., 2018)."""
    critic, x = Layers(), torch.randn(3, 2, 4, 4)
    state = {name: value.clone() for name, value in critic.state_dict().items()}
    notes = probed(CriticStep(critic, x, x))
    weights = {
        "spectral_conv": critic.Conv.weight.flatten(1),
        "spectral_up_0": critic.up[0].weight.transpose(0, 1).flatten(1),
        "spectral_last": critic.last.weight,
    }
    norms = {name: value for name, value in notes.items() if name.startswith("spectral")}
    for name, weight in weights.items():
        assert norms.pop(name) == pytest.approx(
            np.linalg.svd(weight.detach().numpy(), compute_uv=False)[0], rel=1e-4
        )
    assert norms == {"spectral_2": pytest.approx(1, abs=0.05)}  # normalized by its power iteration
    for name, value in critic.state_dict().items():
        assert torch.equal(value, state[name]), name
    gradients = probed(CriticStep(critic, x, x), Probe(layers=False))
    assert set(gradients) == {name for name in notes if name.startswith("gradient")}
    whole = probed(CriticStep(nn.Linear(2, 1), torch.zeros(2, 2), torch.zeros(2, 2)))
    assert "spectral_0" in whole


class Own(nn.Module):
    """Keeps statistics of three kinds, and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.spectral_norm(nn.Linear(2, 8))
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(8, 1)
        self.register_buffer("passes", torch.zeros(()))
        self.passes: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        scores: Tensor = self.last(self.drop(self.norm(self.first(x)).relu()))
        return scores


class Generator(nn.Module):
    latent = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.layer(z)
        return out


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))


@pytest.mark.parametrize("critic", [plain, Own])
def test_a_run_is_the_same_bit_for_bit(critic: Callable[[], nn.Module]) -> None:
    weights = []
    for plugins in ([], [Probe(every=2)]):
        torch.manual_seed(0)
        generator, network = Generator(), critic()
        points = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
        trainer = Trainer(
            generator,
            network,
            points,
            plugins=plugins,
            train={"steps": 3, "batch_size": 8},
            score={"metrics": []},
            device="cpu",
        )
        for update in range(5):
            trainer.critic_update(update)
            trainer.generator_update(update)
        weights.append({**generator.state_dict(), **network.state_dict()})
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_it_looks_every_n_updates_under_any_name() -> None:
    plugins = Plugins([wrap(Wasserstein()), wrap(Probe(every=3), "a"), wrap(Probe(every=2), "b")])
    due = [sorted(plugins.due("penalty", update)) for update in range(7)]
    assert due == [["a", "b"], [], ["b"], ["a"], ["b"], [], ["a", "b"]]


def test_a_compiled_update_may_probe() -> None:
    critic, x, probe = plain().eval(), torch.randn(5, 2), Probe()

    def update(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        step = CriticStep(critic, real, fake)
        assert probe.penalty(step) is None
        return {name: note for name, note in step.notes.items() if "between" not in name}

    probe.setup(critic)
    trace = pytest.importorskip("torch._dynamo").config
    if not hasattr(trace, "trace_autograd_ops"):
        pytest.skip("this torch can't compile an update")
    with trace.patch(trace_autograd_ops=True):
        compiled = torch.compile(update, backend="aot_eager", fullgraph=True)(x, x + 1)
    torch.testing.assert_close(compiled, update(x, x + 1))


TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED])
def test_the_matrix_of_each_kind_of_layer_has_a_row_for_each_output(kind: type[nn.Module]) -> None:
    layer = kind(3, 5) if kind is nn.Linear else kind(3, 5, 2)
    size = () if kind is nn.Linear else (4,) * (layer.weight.dim() - 2)
    critic = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(1))
    x = torch.randn(2, 3, *size)
    critic(x)
    weight = layer.weight.detach().numpy()
    rows = np.moveaxis(weight, 1, 0) if kind in TRANSPOSED else weight
    largest = np.linalg.svd(rows.reshape(5, -1), compute_uv=False)[0]
    assert probed(CriticStep(critic, x, x))["spectral_0"] == pytest.approx(largest, rel=1e-4)
