"""The leaderboard's statistics: known answers, and error rates over simulated boards."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gancore.leaderboard.statistics import (
    Comparison,
    compare,
    detectable,
    holm,
    method,
    span,
    summarize,
)

BOARDS = 500
ENTRIES = 5


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def one(scores: list[float], baseline: list[float], *, higher: bool = False) -> Comparison:
    return compare({"it": (by_seed(scores), by_seed(baseline))}, higher_is_better=higher)["it"]


def simulated(seeds: int, effects: list[float], number: int) -> dict[str, Comparison]:
    """Compare entries whose log scores differ from the baseline's by `effects`, in a noise of 5 %.

    Half of the noise is the seed's own, and so shared with the baseline.
    """
    random = np.random.default_rng([number, seeds, len(effects)])
    shared = random.normal(0, 0.05, seeds)
    baseline = np.exp(shared + random.normal(0, 0.05, seeds))
    return compare(
        {
            f"entry{k}": (
                by_seed(list(np.exp(effect + shared + random.normal(0, 0.05, seeds)))),
                by_seed(list(baseline)),
            )
            for k, effect in enumerate(effects)
        },
        higher_is_better=False,
    )


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_a_table_of_ties_is_wrong_anywhere_in_five_per_cent(seeds: int) -> None:
    """Holm's promise, for the whole table, whatever the number of seeds.

    The entries share the baseline, so their errors come together: the rate may be lower.
    """
    wrong = sum(
        any(each.verdict != "tie" for each in simulated(seeds, [0.0] * ENTRIES, number).values())
        for number in range(BOARDS)
    )
    most = stats.binom.isf(0.001, BOARDS, 0.05)
    assert wrong <= most, f"{wrong} of {BOARDS}"


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_one_tie_alone_is_wrong_in_five_per_cent(seeds: int) -> None:
    wrong = sum(
        simulated(seeds, [0.0], number)["entry0"].verdict != "tie" for number in range(BOARDS)
    )
    low, high = stats.binom.ppf([0.001, 0.999], BOARDS, 0.05)
    assert low <= wrong <= high, f"{wrong} of {BOARDS}"


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_the_detectable_difference_is_seen_four_times_in_five(seeds: int) -> None:
    """The noise of a difference has the deviation 0.05·√2."""
    effect = detectable(0.05 * math.sqrt(2), seeds)
    seen = [simulated(seeds, [effect], number)["entry0"].verdict for number in range(BOARDS)]
    low, high = stats.binom.ppf([0.001, 0.999], BOARDS, 0.8)
    assert low <= seen.count("worse") <= high
    assert seen.count("better") <= 1


def test_a_known_difference_is_found_and_the_ties_beside_it_stay() -> None:
    found = [simulated(8, [-0.5, 0.0, 0.5], number) for number in range(100)]
    assert all(each["entry0"].verdict == "better" for each in found)
    assert all(each["entry2"].verdict == "worse" for each in found)
    ratios = [each["entry0"].ratio for each in found]
    assert np.mean(np.log(ratios)) == pytest.approx(-0.5, abs=0.01)
    wrong = sum(each["entry1"].verdict != "tie" for each in found)
    assert wrong <= stats.binom.isf(0.001, 100, 0.05)


def test_the_interval_of_the_ratio_covers_it() -> None:
    covered = sum(
        each.ratio_low <= math.exp(0.2) <= each.ratio_high
        for number in range(BOARDS)
        for each in simulated(5, [0.2], number).values()
    )
    low, high = stats.binom.ppf([0.001, 0.999], BOARDS, 0.95)
    assert low <= covered <= high


def test_the_test_is_scipys_paired_t_test_on_logarithms() -> None:
    scores, baseline = [1.0, 2.0, 1.5, 3.0], [1.1, 2.5, 1.4, 3.9]
    found = one(scores, baseline)
    theirs = stats.ttest_rel(np.log(scores), np.log(baseline))
    assert found.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert (found.ratio_low, found.ratio_high) == pytest.approx(
        (math.exp(interval.low), math.exp(interval.high))
    )
    assert found.ratio == pytest.approx(math.prod(scores) ** 0.25 / math.prod(baseline) ** 0.25)
    assert (found.scale, found.seeds_compared) == ("ratio", 4)


@pytest.mark.parametrize(("seeds", "verdict"), [(1, "undecided"), (2, "undecided"), (3, "better")])
def test_nothing_is_decided_below_three_seeds(seeds: int, verdict: str) -> None:
    baseline = [1.0, 1.1, 0.9][:seeds]
    scores = [value * factor for value, factor in zip(baseline, [0.10, 0.11, 0.09], strict=False)]
    found = one(scores, baseline)
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(0.1, rel=0.1)


def test_higher_may_be_better() -> None:
    scores, baseline = [8.0, 8.2, 7.9, 8.1], [5.0, 5.1, 5.2, 4.9]
    assert one(scores, baseline, higher=True).verdict == "better"
    assert one(scores, baseline, higher=False).verdict == "worse"
    assert one(baseline, scores, higher=True).verdict == "worse"


def test_the_same_numbers_tie() -> None:
    found = one([1.5, 2.5, 3.5], [1.5, 2.5, 3.5])
    assert (found.verdict, found.p, found.ratio) == ("tie", 1.0, 1.0)


def test_scores_that_may_be_0_are_compared_by_differences() -> None:
    found = one([0.0, -0.01, 0.02, 0.01], [1.0, 0.98, 1.03, 1.01])
    assert found.scale == "difference"
    assert found.ratio == pytest.approx(-1.0)
    assert found.verdict == "better"
    modes = one([8.0, 8.0, 8.0], [7.0, 6.0, 7.0], higher=True)
    assert modes.scale == "ratio"
    assert one([8.0, 8.0, 8.0], [8.0, 8.0, 8.0], higher=True).verdict == "tie"


def test_only_seeds_that_both_have_are_compared() -> None:
    pairs = {"it": ({0: 1.0, 1: 2.0, 5: 3.0}, {1: 4.0, 2: 1.0})}
    found = compare(pairs, higher_is_better=False)["it"]
    assert found.seeds_compared == 1
    assert found.ratio == pytest.approx(0.5)
    nothing = compare({"it": ({0: 1.0}, {})}, higher_is_better=False)["it"]
    assert (nothing.seeds_compared, nothing.verdict) == (0, "undecided")


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a"}
    assert holm({"a": 0.01, "b": 0.02, "c": 0.03}) == {"a", "b", "c"}
    assert holm({"a": 0.024, "b": 0.049}) == {"a", "b"}
    assert holm({"a": 0.026, "b": 0.03}) == set()
    assert holm({"a": math.nan}) == set()
    assert holm({}) == set()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_bonferroni_and_none(p: list[float]) -> None:
    named = {str(k): each for k, each in enumerate(p)}
    rejected = holm(named)
    assert {name for name, each in named.items() if each <= 0.05 / len(p)} <= rejected
    assert rejected <= {name for name, each in named.items() if each <= 0.05}


@pytest.mark.parametrize("entries", [1, 2, 9])
def test_the_detectable_ratio_is_that_of_a_noncentral_t(entries: int) -> None:
    """A t-test of 4 − 1 degrees, two-sided, at 5 % over as many entries, sees it four in five."""
    scores, baseline = [1.00, 1.02, 0.98, 1.01], [1.04, 1.09, 1.03, 1.02]
    pairs = {str(k): (by_seed(scores), by_seed(baseline)) for k in range(entries)}
    pairs["few"] = (by_seed(scores[:2]), by_seed(baseline))  # in no family, so it corrects nothing
    found = compare(pairs, higher_is_better=False)
    deviation = stats.tstd(np.log(scores) - np.log(baseline))
    ratio = found["0"].detectable
    assert ratio is not None
    shift = math.log(ratio) * math.sqrt(4) / deviation
    power = stats.nct.sf(stats.t.isf(0.05 / entries / 2, 3), 3, shift)
    assert power == pytest.approx(0.8, abs=1e-9)


@given(
    st.lists(st.floats(0.1, 10), min_size=3, max_size=8),
    st.lists(st.floats(0.1, 10), min_size=8, max_size=8),
)
def test_turned_round_everything_is_turned_round(one_s: list[float], other_s: list[float]) -> None:
    """An entry against the baseline is as sure as the baseline against the entry, the other way."""
    other_s = other_s[: len(one_s)]
    there, back = one(one_s, other_s), one(other_s, one_s)
    assert there.p == pytest.approx(back.p, rel=1e-6, abs=1e-12)
    assert there.ratio * back.ratio == pytest.approx(1)
    if there.detectable is not None and back.detectable is not None:
        assert there.ratio_low * back.ratio_high == pytest.approx(1)
        assert there.detectable == pytest.approx(back.detectable)
    turned = {"better": "worse", "worse": "better", "tie": "tie"}
    if there.p != pytest.approx(0.05, rel=1e-6):
        assert turned[there.verdict] == back.verdict


@pytest.mark.parametrize(
    ("scores", "scale"),
    [([1.0, 2.0, 3.0], "ratio"), ([0.0, 1.0, 2.0], "difference"), ([-1.0, 1.0, 2.0], "difference")],
)
def test_one_score_of_zero_makes_differences_of_the_whole_table(
    scores: list[float], scale: str
) -> None:
    positive = by_seed([1.0, 1.5, 2.5])
    pairs = {"a": (positive, positive), "b": (by_seed(scores), positive)}
    found = compare(pairs, higher_is_better=False)
    assert {each.scale for each in found.values()} == {scale}


def test_how_it_was_decided_is_said_in_words() -> None:
    """Of entries over 2, 3 and 5 seeds, and one whose seeds all differ alike."""
    baseline = [1.0, 1.1, 1.2, 0.9, 1.05]
    pairs = {
        "two": (by_seed([2.0, 2.1]), by_seed(baseline)),
        "three": (by_seed([2.0, 2.3, 2.2]), by_seed(baseline)),
        "five": (by_seed([2.0, 2.3, 2.2, 1.9, 2.0]), by_seed(baseline)),
        "alike": (by_seed([2 * value for value in baseline]), by_seed(baseline)),
    }
    found = compare(pairs, higher_is_better=False)
    assert method(found.values()) == (
        "paired t-test of logarithms over 3 to 5 seeds, by their sign where all seeds differ "
        "alike, Holm's correction for 3 entries"
    )
    assert method([found["two"]]) is None
    assert method([found["three"]]) == "paired t-test of logarithms over 3 seeds"
    assert found["alike"].verdict == "worse"
    assert span([4, 2, 3]) == "2 to 4"
    assert span([3, 3]) == "3"


def test_a_summary_is_the_median_with_an_interval_inside_the_range() -> None:
    found = summarize([3.0, 1.0, 2.0, 10.0, 4.0])
    assert found.median == 3.0
    assert 1.0 <= found.low <= 3.0 <= found.high <= 10.0
    assert summarize([1.0, 2.0, 3.0, 10.0]).median == 2.5
    single = summarize([2.5])
    assert (single.median, single.low, single.high) == (2.5, 2.5, 2.5)
    with pytest.raises(ValueError, match="no values"):
        summarize([])


@pytest.mark.filterwarnings("error")
def test_equal_values_have_no_interval_and_no_warning() -> None:
    found = summarize([8.0, 8.0, 8.0])
    assert (found.low, found.high) == (8.0, 8.0)


def test_the_interval_is_the_middle_of_all_resampled_medians() -> None:
    """Of nine values k of which are up to a bound, resamples have their median there by a binomial.

    The share of medians up to the second is 3.4 %, up to the first 0.1 %: 2.5 % is at the second.
    At ten per cent in all, 5 %, it would be at the third.
    """
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    shares = [stats.binom.sf(4, 9, k / 9) for k in range(10)]
    low = next(k for k, share in enumerate(shares) if share > 0.025)
    assert low == 2
    found = summarize([values[k] for k in (4, 0, 8, 2, 6, 1, 7, 3, 5)])
    assert (found.low, found.median, found.high) == (2.0, 5.0, 8.0)


def test_scores_that_compare_by_their_difference_do_so_where_all_are_positive() -> None:
    scores, baseline = {0: 3.0, 1: 4.5, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0}
    pairs = {"mine": (scores, baseline)}
    found = compare(pairs, higher_is_better=True, by_difference=True)["mine"]
    assert (found.scale, found.ratio) == ("difference", pytest.approx(2.5))
    assert compare(pairs, higher_is_better=True)["mine"].scale == "ratio"
