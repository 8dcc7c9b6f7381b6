"""Eigenvalues of games against those that are derived by hand, and alternating updates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gancore.plugins import Loaded, load
from gancore_truth.games import DIRAC, GAMES, SCALES, STEP, UPDATES, Game, eigenvalues, radius

pytestmark = pytest.mark.slow  # with the plugins of other packages


def r1(gamma: float) -> list[Loaded]:
    return [load("r1", {"gamma": gamma})]


def roots(damping: float, coupling: float) -> list[complex]:
    """Return the eigenvalues of [[0, coupling], [−coupling, −damping]]."""
    return list(map(complex, np.roots([1, damping, coupling**2])))


def assert_equal(ours: list[complex], expected: list[complex]) -> None:
    """Compare two sets of eigenvalues by the polynomials whose roots they are.

    Two that coincide are themselves known to the root of the rounding only.
    """
    np.testing.assert_allclose(np.poly(ours), np.poly(expected), rtol=0, atol=1e-6)


COUPLING = {"wasserstein": 1.0, "nonsaturating": 0.5, "hinge": 1.0, "rpgan": 0.5}
"""The slope of the loss at scores of 0: what the generator's parameter does to the critic's."""


@pytest.mark.parametrize("loss", COUPLING)
@pytest.mark.parametrize("gamma", [0.1, 1.0, 3.0])
def test_the_dirac_game_with_r1(loss: str, gamma: float) -> None:
    assert_equal(eigenvalues(DIRAC, loss, r1(gamma)), roots(gamma, COUPLING[loss]))


@pytest.mark.parametrize("loss", COUPLING)
def test_the_dirac_game_without(loss: str) -> None:
    assert_equal(eigenvalues(DIRAC, loss, []), [1j * COUPLING[loss], -1j * COUPLING[loss]])


def test_the_known_ones() -> None:
    """Mescheder et al., 2018, lemma 2.3 and 4.1."""
    assert_equal(eigenvalues(DIRAC, "nonsaturating", r1(1.0)), [-0.5, -0.5])
    expected = [complex(-0.5, math.sqrt(3) / 2), complex(-0.5, -math.sqrt(3) / 2)]
    assert_equal(eigenvalues(DIRAC, "wasserstein", r1(1.0)), expected)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 3.0])
def test_the_game_of_scales(gamma: float) -> None:
    """R1 damps each ψᵢ by γ·E[(2xᵢ)²] = 4γ. The second moments of x² are 3 and 1."""
    wasserstein = 2 * roots(4 * gamma, 2)
    assert_equal(eigenvalues(SCALES, "wasserstein", r1(gamma)), wasserstein)
    # softplus'' = ¼ for real and generated samples: ½·E[φφᵀ], with eigenvalues 4 and 2
    nonsaturating = roots(2 + 4 * gamma, 1) + roots(1 + 4 * gamma, 1)
    assert_equal(eigenvalues(SCALES, "nonsaturating", r1(gamma)), nonsaturating)


def test_the_game_of_scales_without() -> None:
    assert_equal(eigenvalues(SCALES, "wasserstein", []), 2 * [2j, -2j])
    assert_equal(eigenvalues(SCALES, "nonsaturating", []), roots(2, 1) + roots(1, 1))


def test_r2_is_r1_where_they_meet() -> None:
    r2 = [load("r2", {"gamma": 1.0})]
    for game in GAMES:
        assert_equal(eigenvalues(game, "wasserstein", r2), eigenvalues(game, "wasserstein", r1(1)))


def test_a_lazy_penalty_is_averaged() -> None:
    lazy = [*r1(1.0), load("lazy", {"every": 4})]
    assert_equal(eigenvalues(DIRAC, "wasserstein", lazy), roots(1, 1))


@pytest.mark.parametrize(
    ("name", "options"),
    [("gp", {}), ("clip", {}), ("sn", {}), ("gp", {"weight": 0.1}), ("dragan", {})],
)
def test_kinks_and_weights_have_no_eigenvalues(name: str, options: dict[str, float]) -> None:
    assert eigenvalues(DIRAC, "wasserstein", [load(name, options)]) == []


def test_a_one_sided_penalty_is_flat_at_rest() -> None:
    one_sided = [load("gp", {"one_sided": True})]
    assert_equal(eigenvalues(DIRAC, "wasserstein", one_sided), [1j, -1j])


def exact(damping: float) -> float:
    """Return the radius of the Dirac game under the Wasserstein loss, by plain arithmetic."""
    theta = psi = 0.5
    distances = []
    for _ in range(UPDATES):
        psi += STEP * (-theta - damping * psi)
        theta += STEP * psi
        distances.append(math.hypot(theta, psi))
    return max(distances[UPDATES // 2 :]) / math.hypot(0.5, 0.5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_alternating_updates(gamma: float) -> None:
    plugins = r1(gamma) if gamma else []
    assert radius(DIRAC, "wasserstein", plugins) == pytest.approx(exact(gamma), rel=1e-9)


def test_clipped_weights_stay_in_the_box() -> None:
    """|ψ| ≤ c, so θ goes c a unit of time at most, and the critic turns it around at the end."""
    clipped = radius(DIRAC, "wasserstein", [load("clip", {"limit": 0.1})])
    assert clipped < exact(0.0)


def test_a_normalized_critic_never_rests() -> None:
    """A weight of ±1 whatever its parameter: θ goes on by one step size an update."""
    expected = math.hypot(0.5 + UPDATES * STEP, 1) / math.hypot(0.5, 1)
    assert radius(DIRAC, "wasserstein", [load("sn")]) == pytest.approx(expected, rel=1e-6)


def test_what_diverges_is_infinite() -> None:
    assert radius(DIRAC, "wasserstein", r1(1000.0)) == math.inf


@pytest.mark.parametrize("game", GAMES, ids=lambda game: game.name)
def test_the_games_rest_where_they_are_said_to(game: Game) -> None:
    assert radius_at_rest(game) < 1e-12


def radius_at_rest(game: Game) -> float:
    from gancore_truth.games import Played

    played = Played(game, "nonsaturating", [])
    return float(np.abs(played.field(played.at(), {0: 1.0})).max())
