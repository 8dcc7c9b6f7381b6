"""LeCam regularization against a NumPy version of its own, update by update."""

import numpy as np
import pytest
import torch
from penalties import Card
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from gancore import CriticStep
from gancore.errors import PluginError
from gancore.losses import Hinge
from gancore.plugins import Loaded, Plugins, load, wrap
from gancore_lecam import Anchors, LeCam, lecam_penalty


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Return real and fake samples whose level drifts, so that averages lag behind."""
    return [
        (normal(6, 3, seed=2 * i) + i, normal(6, 3, seed=2 * i + 1) - i * i / 4)
        for i in range(count)
    ]


def score(x: Tensor) -> Tensor:
    return torch.tanh(x / 4).sum(1)


def by_hand(
    pairs: list[tuple[Tensor, Tensor]], weight: float, decay: float, relu: bool
) -> list[float]:
    """The penalty of each update, from closed sums over all batches so far."""
    real = [np.tanh(x.numpy() / 4).sum(1) for x, _ in pairs]
    fake = [np.tanh(x.numpy() / 4).sum(1) for _, x in pairs]
    values = []
    for n in range(1, len(pairs) + 1):
        shares = np.array([decay ** (n - 1 - i) for i in range(n)])
        shares /= shares.sum()
        alpha_r = sum(share * r.mean() for share, r in zip(shares, real[:n], strict=True))
        alpha_f = sum(share * f.mean() for share, f in zip(shares, fake[:n], strict=True))
        above, below = real[n - 1] - alpha_f, alpha_r - fake[n - 1]
        if relu:
            above, below = np.maximum(above, 0), np.maximum(below, 0)
        values.append(weight * (np.mean(above**2) + np.mean(below**2)))
    return values


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_several_updates(relu: bool, decay: float) -> None:
    lecam = LeCam(weight=0.7, decay=decay, relu=relu)
    pairs = batches(8)[::-1] if relu else batches(8)
    found = [
        lecam.penalty(CriticStep(score, *pair, update=update)).item()
        for update, pair in enumerate(pairs)
    ]
    assert found == pytest.approx(by_hand(pairs, 0.7, decay, relu), rel=1e-12)


def test_relu_leaves_out_the_wrong_side() -> None:
    """Real scores −1 and 5, fake ones 3 and 1; anchors 2 and 2: only 5 and 1 count."""
    real, fake = torch.tensor([-1.0, 5.0]), torch.tensor([3.0, 1.0])
    assert lecam_penalty(real, fake, 2.0, 2.0, weight=1.0).item() == (9 + 9) / 2 + (1 + 1) / 2
    assert lecam_penalty(real, fake, 2.0, 2.0, weight=1.0, relu=True).item() == 9 / 2 + 1 / 2


def test_anchors_are_crossed() -> None:
    real, fake = torch.full((4,), 7.0), torch.full((3,), -2.0)
    assert lecam_penalty(real, fake, -2.0, 7.0, weight=5.0).item() == 0
    assert lecam_penalty(real, fake, 7.0, -2.0, weight=5.0).item() == 5 * (81 + 81)


@pytest.mark.parametrize("relu", [False, True])
def test_gradient_is_of_differences_at_fixed_averages(relu: bool) -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    lecam = LeCam(weight=2.0, decay=0.6, relu=relu)
    for seed in range(0, 8, 2):  # no drift: scores on either side of the averages
        step = CriticStep(critic, normal(9, 3, seed=seed), normal(9, 3, seed=seed + 1))
        value = lecam.penalty(step)
    alpha_r, alpha_f = lecam.anchors.real.item(), lecam.anchors.fake.item()
    parameters = list(critic.parameters())
    gradients = torch.autograd.grad(value, parameters)
    assert gradients[0].abs().max() > 1e-3

    @torch.no_grad()
    def at_fixed() -> float:
        above = critic(step.real).numpy() - alpha_f
        below = alpha_r - critic(step.fake).numpy()
        if relu:
            above, below = np.maximum(above, 0), np.maximum(below, 0)
        return 2 * float(np.mean(above**2) + np.mean(below**2))

    assert value.item() == pytest.approx(at_fixed(), rel=1e-12)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        entries = parameter.detach().view(-1)
        for i, slope in enumerate(gradient.view(-1).tolist()):
            middle = entries[i].item()
            values = []
            for entries[i] in (middle + 1e-6, middle - 1e-6):
                values.append(at_fixed())
            entries[i] = middle
            assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-7)


def test_warm_up_only_builds_the_averages() -> None:
    patient, eager = LeCam(warm_up=3), LeCam()
    for update, pair in enumerate(batches(6)):
        found, expected = (
            each.penalty(CriticStep(score, *pair, update=update)) for each in (patient, eager)
        )
        assert (found is None) == (update < 3)
        assert found is None or torch.equal(found, expected)


def test_no_bias_at_the_start() -> None:
    anchors = Anchors(decay=0.9999)
    anchors.update(torch.tensor([2.0, 4.0]), torch.tensor([-7.0]))
    assert (anchors.real.item(), anchors.fake.item(), anchors.count.item()) == (3, -7, 1)
    anchors.update(torch.tensor([5.0]), torch.tensor([-7.0]))
    assert anchors.real.item() == pytest.approx(4.00005, abs=1e-6)


def test_long_runs_keep_averaging() -> None:
    anchors = Anchors(decay=0.9)
    for mean in [5.0] * 400 + [1.0] * 10:
        anchors.update(torch.tensor([mean]), torch.tensor([-mean]))
    assert anchors.count.item() == pytest.approx(10)
    assert anchors.real.item() == pytest.approx(1 + 4 * 0.9**10, rel=1e-5)


def test_state_goes_on_bit_for_bit_through_a_file() -> None:
    torch.manual_seed(0)
    one, pairs, critic = LeCam(), batches(9), nn.Linear(3, 1).double()

    def answer(lecam: LeCam, update: int) -> Tensor:
        return lecam.penalty(CriticStep(critic, *pairs[update], update=update))

    for update in range(4):
        answer(one, update)
    state = from_bytes(to_bytes(one.state_dict()))
    kept = {key: value.clone() for key, value in one.state_dict().items()}
    other = LeCam()
    other.load_state_dict(state)
    for update in range(4, 9):
        assert torch.equal(answer(one, update), answer(other, update))
    assert state.keys() == {"real", "fake", "count"}
    for key, value in state.items():
        assert not value.requires_grad
        assert torch.equal(value, kept[key])  # later updates leave it alone
    forgetful = LeCam()
    assert not torch.equal(answer(one, 8), answer(forgetful, 8))


def test_state_before_the_first_update_can_be_saved() -> None:
    lecam = LeCam()
    lecam.load_state_dict(from_bytes(to_bytes(lecam.state_dict())))
    assert lecam.penalty(CriticStep(score, *batches(1)[0])).item() == pytest.approx(
        by_hand(batches(1), 0.3, 0.99, relu=False)[0]
    )


def test_state_follows_the_samples_and_nothing_waits_for_it() -> None:
    """A meta tensor has no value: whatever reads one, as a GPU would be waited for, raises."""
    lecam = LeCam()
    critic, x = nn.Linear(3, 1, device="meta"), torch.empty(4, 3, device="meta")
    for update in range(2):
        value = lecam.penalty(CriticStep(critic, x, x, update=update))
        value.backward()
    assert (value.device.type, value.shape) == ("meta", ())
    assert {each.device.type for each in lecam.state_dict().values()} == {"meta"}


def test_it_shares_the_loss_forward_passes_and_leaves_samples_alone() -> None:
    critic, (real, fake) = nn.Linear(3, 1).double(), batches(3)[2]
    plugins, step, seen = (
        Plugins([wrap(Hinge()), wrap(LeCam())]),
        CriticStep(critic, real, fake),
        [],
    )
    critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ((loaded, scale, value),) = plugins.answer_penalties("penalty", step)
    loss = plugins.answer_loss("critic_loss", step)
    assert (loaded.name, scale) == ("lecam", 1)
    assert len(seen) == 2
    torch.autograd.grad(loss + value, list(critic.parameters()))
    assert step.real.grad is None


def test_two_of_them_have_averages_of_their_own() -> None:
    one, two = LeCam(), LeCam(decay=0.5)
    plugins = Plugins([wrap(Hinge()), Loaded("one", one), Loaded("two", two)])
    for update, pair in enumerate(batches(3)):
        list(plugins.answer_penalties("penalty", CriticStep(score, *pair, update=update)))
    assert one.anchors.real.item() != two.anchors.real.item()
    assert plugins.state_dict()["two"]["real"] is two.anchors.real


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        *[(name, wrong) for name in ("weight", "decay") for wrong in (-1.0, "3", True, [1.0])],
        ("weight", 0),
        ("decay", 1.0),
        ("warm_up", -1),
        ("warm_up", 0.5),
        ("relu", 1),
    ],
)
def test_wrong_options(option: str, wrong: object) -> None:
    with pytest.raises(PluginError, match=f"lecam: {option}: expected"):
        load("lecam", {option: wrong})


def test_state_is_no_option() -> None:
    with pytest.raises(PluginError, match="anchors: unknown key"):
        load("lecam", {"anchors": 1.0})


class TestCard(Card):
    name = "lecam"
    plugin = LeCam
