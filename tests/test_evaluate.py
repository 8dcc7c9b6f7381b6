"""From runs to a result: what is ranked, compared, counted and refused; each file is read once."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from boards import SCORED, board, job
from helpers import ROOT, Gan
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import gancore
from gancore.errors import InputError, RecipeError
from gancore.files import reading
from gancore.leaderboard.board import Board
from gancore.leaderboard.evaluate import evaluate
from gancore.leaderboard.files import write_files
from gancore.leaderboard.job import Job, left_to_do
from gancore.leaderboard.plan import plan
from gancore.leaderboard.result import EntryCost, Result
from gancore.leaderboard.text import markdown

EARLIER = ROOT / "tests/earlier/board/leaderboard.json"
COMMITTED = sorted((ROOT / "recipes/boards/results").glob("*.json"))


def jobs(
    folder: Path, key: str, scores: Mapping[str, Sequence[float]], **changes: Any
) -> list[Job]:
    """Finished runs with these values of one score, by entry and seed."""
    return [
        job(folder, name, seed, 3.0, picture=0, metrics=[key], scores={key: value}, **changes)
        for name, values in scores.items()
        for seed, value in enumerate(values)
    ]


def evaluated(folder: Path, key: str, **scores: Sequence[float]) -> Result:
    names = {name: name.upper() for name in scores}
    seeds = range(max(map(len, scores.values())))
    return evaluate(board(names, seeds), jobs(folder, key, scores), {})


HIGHER = ["isc", "prc", "modes", "quality"]
LOWER = ["fid", "kid", "w2"]


@pytest.mark.parametrize("metric", HIGHER + LOWER)
def test_the_best_entry_comes_first(tmp_path: Path, metric: str) -> None:
    """More of Inception Score, precision, modes and quality is better; less of a distance."""
    values = {"middle": [4.0, 4.1, 4.2], "most": [6.0, 6.3, 6.1], "least": [2.0, 2.1, 2.2]}
    ranking = {"prc": "precision"}.get(metric, metric)
    runs = [
        job(
            *(tmp_path, name, seed, 3.0),
            **{"picture": 0, "metrics": [metric], "scores": {"recall": 1 / score, ranking: score}},
        )
        for name, scores in values.items()
        for seed, score in enumerate(scores)
    ]
    result = evaluate(board({name: name for name in values}, range(3)), runs, {})
    order = ["most", "middle", "least"] if metric in HIGHER else ["least", "middle", "most"]
    assert [entry.name for entry in result.entries] == order
    key = result.metric
    verdicts = {entry.name: entry.scores[key].verdict for entry in result.entries}
    assert verdicts == {order[0]: "better", "middle": "baseline", order[2]: "worse"}
    arrow = "↑" if metric in HIGHER else "↓"
    assert f"{arrow} |" in markdown(result).splitlines()[0]
    assert (key in result.higher_is_better) == (metric in HIGHER)


def test_the_board_says_which_score_ranks(tmp_path: Path) -> None:
    """The best by FID is the worst by Inception Score here, which the board names."""
    runs = [
        job(tmp_path, name, seed, fid, picture=0, scores={"isc": fid})
        for name, fid in {"a": 3.0, "b": 2.0, "c": 4.0}.items()
        for seed in range(2)
    ]
    names = {name: name for name in "abc"}
    by_fid = evaluate(board(names, range(2)), runs, {})
    by_isc = evaluate(board(names, range(2), metric="isc"), runs, {})
    assert (by_fid.metric, by_isc.metric) == ("fid", "isc")
    assert [entry.name for entry in by_fid.entries] == ["b", "a", "c"]
    assert [entry.name for entry in by_isc.entries] == ["c", "a", "b"]
    assert by_fid.other_metrics() == ["isc"]


def test_an_entry_without_scores_comes_last(tmp_path: Path) -> None:
    runs = jobs(tmp_path, "fid", {"a": [3.0], "b": [2.0], "c": [1.0]})
    runs[2].state, runs[2].error = "failed", "no luck"
    runs[1].state = "running"
    result = evaluate(board({name: name for name in "cba"}, [0]), runs, {})
    assert [entry.name for entry in result.entries] == ["a", "c", "b"]
    (a, c, b) = result.entries
    assert [(run.seed, run.error) for run in c.failed] == [(0, "no luck")]
    assert (a.missing, b.missing, c.missing) == ((), (0,), ())
    assert (a.seconds, b.seconds, c.seconds) == ((60.0,), (), ())
    assert [entry.name for entry, _ in result.ranked()] == ["a"]


def test_the_comparison_is_scipys_t_test_of_logarithms(tmp_path: Path) -> None:
    """Of two entries, by seed; Holm asks the lesser p to be below 5 % / 2."""
    base = [3.0, 3.4, 2.9, 3.3]
    ours = {"none": base, "near": [3.1, 3.3, 3.0, 3.2], "far": [2.0, 2.3, 1.9, 2.1]}
    result = evaluated(tmp_path, "fid", **ours)
    scores = {entry.name: entry.scores["fid"] for entry in result.entries}
    for name in ("near", "far"):
        logs = [[math.log(value) for value in values] for values in (ours[name], base)]
        theirs = stats.ttest_rel(*logs)
        interval = theirs.confidence_interval(0.95)
        score = scores[name]
        assert score.p == pytest.approx(theirs.pvalue)
        assert math.log(score.ratio_low) == pytest.approx(interval.low)
        assert math.log(score.ratio_high) == pytest.approx(interval.high)
        mean = sum(logs[0]) / 4 - sum(logs[1]) / 4
        assert score.ratio == pytest.approx(math.exp(mean))
        assert score.seeds_compared == 4
        # what a noncentral t of 3 degrees sees with 80 %, two-sided, at 5 % over two entries
        shift = math.log(score.detectable or 0) / (
            stats.tstd([one - other for one, other in zip(*logs, strict=True)]) / 2
        )
        border = stats.t.isf(0.05 / 2 / 2, 3)
        assert stats.nct.sf(border, 3, shift) == pytest.approx(0.8, abs=1e-6)
    assert (scores["near"].verdict, scores["far"].verdict) == ("tie", "better")
    assert result.statistics.tests == {
        "fid": "paired t-test of logarithms over 4 seeds, Holm's correction for 2 entries"
    }
    assert (result.statistics.alpha, result.statistics.power) == (0.05, 0.8)


def test_only_spreads_below_a_tenth_are_collapsed(tmp_path: Path) -> None:
    """A run has collapsed whose samples' variance is below a tenth of the real samples'."""
    spreads = [0.0, 0.0999, 0.1, 0.1001, 0.19, 1.0]
    runs = [job(tmp_path, "a", seed, 3.0, spread=spread) for seed, spread in enumerate(spreads)]
    (entry,) = evaluate(board({"a": "A"}, range(6)), runs, {}).entries
    assert entry.collapsed == (0, 1)
    assert len(entry.scores["fid"].values) == 6  # they count all the same


def test_updates_costs_and_origins_are_the_runs_own(tmp_path: Path) -> None:
    runs = jobs(tmp_path, "fid", {"a": [3.0], "b": [2.0]})
    runs[0].seconds = 61.26
    costs = {"a": EntryCost(time_ratio=2.0, flops_ratio=1.5)}
    result = evaluate(board({"a": "A", "b": "B"}, [0], threads=3), runs, costs)
    entries = {entry.name: entry for entry in result.entries}
    assert entries["a"].generator_updates == SCORED[-1] == 300
    assert entries["a"].critic_updates == 5 * 300
    assert entries["a"].seconds == (61.3,)
    assert entries["a"].plugins == {"gp": "gancore-gp==0.1.0"}
    assert entries["a"].cost == costs["a"]
    assert entries["b"].table()["cost"] == {}
    assert (result.baseline, result.seeds, result.threads) == ("a", (0,), 3)
    about = result.environment.table()
    assert about["device"] == "cpu"
    assert about["versions"] == {"torch": "2.14.0"}
    assert about["core"] == {"python": "3.11", "code": "01234567"}  # its modules are many
    assert not about.keys() & {"plugins", "components", "earlier", "from_step"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reference": {"name": "digits", "split": "all", "samples": 9}}, "other real samples"),
        ({"samples": 9}, "another number of samples"),
        ({"extractor": "fashion"}, "in other features"),
        ({"weights_sha256": "f" * 64}, "features of other weights"),
    ],
)
def test_a_table_has_one_protocol(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    """Somebody has scored one of the runs anew."""
    runs = [job(tmp_path, "a", 0, 3.0), job(tmp_path, "a", 1, 3.0, protocol=change)]
    with pytest.raises(InputError, match=told) as caught:
        evaluate(board({"a": "A"}, range(2)), runs, {})
    assert str(runs[1].path) in str(caught.value)


def test_the_protocol_is_what_all_runs_share(tmp_path: Path) -> None:
    runs = [job(tmp_path, "a", 0, 3.0, protocol={"device": "cpu", "kid_subsets": 9})]
    runs += [job(tmp_path, "a", 1, 3.0, protocol={"device": "cuda", "kid_subsets": 9})]
    result = evaluate(board({"a": "A"}, range(2)), runs, {})
    assert result.protocol.table() == {
        "reference": {"name": "digits", "split": "all", "samples": 1797},
        "samples": 10_000,
        "extractor": "digits",
        "weights_sha256": "0123456789",
        "versions": {"torch-fidelity": "0.4.0"},
        "kid_subsets": 9,
    }
    note = "10,000 samples against 1,797 of digits \\(all\\), extractor digits"
    assert note.replace("\\", "") in markdown(result).replace("\\", "")
    assert "seed 0, 1" in markdown(result)


@given(
    count=st.integers(1, 10**6),
    critic_steps=st.integers(1, 9),
    price=st.floats(1, 50),
)
def test_a_budget_of_passes_is_spent_and_not_exceeded(
    count: int, critic_steps: int, price: float
) -> None:
    loaded = board({"a": "A"}, [0], budget={"unit": "passes", "count": count})
    table = {key: {"name": "mlp"} for key in ("data", "generator", "critic", "loss")}
    recipe = gancore.Recipe.parse({**table, "train": {"steps": 1, "critic_steps": critic_steps}})
    steps = loaded.within_budget({"a": recipe}, {"a": price})["a"].train.steps
    spent = steps * critic_steps * price
    assert spent <= count * (1 + 1e-9)
    assert spent + critic_steps * price > count * (1 - 1e-9)


@given(count=st.integers(1, 10**6), critic_steps=st.integers(1, 9))
def test_a_budget_of_critic_updates_is_met_to_the_last(count: int, critic_steps: int) -> None:
    loaded = board({"a": "A"}, [0], budget={"unit": "critic_updates", "count": count})
    table = {key: {"name": "mlp"} for key in ("data", "generator", "critic", "loss")}
    recipe = gancore.Recipe.parse({**table, "train": {"steps": 1, "critic_steps": critic_steps}})
    try:
        train = loaded.within_budget({"a": recipe}, {})["a"].train
    except RecipeError:
        assert count % critic_steps
    else:
        assert train.steps * train.critic_steps == count


# the plan


BASE = """
data = {{name = "gaussians8", samples = 200}}
generator = {{name = "mlp", width = 4}}
critic = {{name = "mlp", width = 4}}
loss = {{name = "wasserstein"}}
train = {{steps = 2, batch_size = 8}}
score = {{metrics = ["w2"], samples = 32}}
checkpoint = {{every = 1}}
log = {{every = 1}}
{more}
"""
BOARD = """
recipe = "base.toml"
baseline = "none"
seeds = [3, 0, 1]
entry = [{{name = "none"}}, {{name = "gp", set = ["plugin.0.name=gp", {change}]}}]
"""


def planned(folder: Path, change: str = "", device: str = "cpu", **changes: Any) -> list[Job]:
    (folder / "base.toml").write_text(BASE.format(more=""))
    (folder / "board.toml").write_text(BOARD.format(change=change))
    loaded = Board.load(folder / "board.toml").model_copy(update=changes)
    return plan(loaded, loaded.recipes(folder), folder / "out", device=device)


def test_runs_are_planned_seed_by_seed(tmp_path: Path) -> None:
    """So that a board which is stopped has all entries over the first seeds."""
    runs = planned(tmp_path)
    assert [(run.seed, run.entry) for run in runs] == [
        *[(3, "none"), (3, "gp"), (0, "none"), (0, "gp"), (1, "none"), (1, "gp")]
    ]
    assert [run.recipe["train"]["seed"] for run in runs] == [3, 3, 0, 0, 1, 1]


def test_a_run_s_folder_is_of_all_that_decides_its_scores(tmp_path: Path) -> None:
    first = {run.path for run in planned(tmp_path)}
    assert len(first) == 6
    assert {run.path for run in planned(tmp_path)} == first
    assert not {run.path for run in planned(tmp_path, device="cuda")} & first
    assert not {run.path for run in planned(tmp_path, threads=2)} & first
    others = {run.path for run in planned(tmp_path, '"plugin.0.weight=3.0"')}
    assert len(others & first) == 3  # those of the baseline


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ('"score.samples=33"', "score.samples is 33, and 32 in the entry 'none'"),
        ('"score.metrics=[\\"modes\\"]"', r"score.metrics is \['modes'\], and \['w2'\]"),
        ('"score.extractor=digits"', "score.extractor is 'digits', and 'inception"),
        ('"score.weights=/w"', "score.weights is '/w', and None"),
        ('"data.samples=201"', "data.samples is 201, and 200 in the entry 'none'"),
        ('"data.flip=true"', "data.flip is True, and False in the entry 'none'"),
    ],
)
def test_a_board_of_two_protocols_is_refused(tmp_path: Path, change: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        planned(tmp_path, change)


def test_two_entries_that_are_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(BASE.format(more=""))
    text = BOARD.format(change="").replace('"plugin.0.name=gp", ', "")
    (tmp_path / "board.toml").write_text(text)
    loaded = Board.load(tmp_path / "board.toml")
    with pytest.raises(RecipeError, match="'none' and 'gp' are one and the same"):
        plan(loaded, loaded.recipes(tmp_path), tmp_path, device="cpu")


# leaderboard.json


@pytest.mark.parametrize("path", [EARLIER, *COMMITTED], ids=lambda path: path.stem)
def test_a_result_of_an_earlier_version_is_read_and_written_as_it_was(
    path: Path, tmp_path: Path
) -> None:
    Result.read(path).write(tmp_path / "again.json")
    again = (tmp_path / "again.json").read_text(encoding="utf-8")
    assert json.loads(again) == json.loads(path.read_text(encoding="utf-8"))


values = st.floats(-1e6, 1e6) | st.integers(-5, 5).map(float)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.lists(values, min_size=4, max_size=4), min_size=1, max_size=3))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, scores: list[list[float]]
) -> None:
    """Whatever the scores, numbers that too few seeds don't have included."""
    folder = tmp_path_factory.mktemp("board")
    named = {f"e{k}": each[: 1 + k] for k, each in enumerate(scores)}
    result = evaluated(folder, "w2", **named)
    result.write(folder / "leaderboard.json")
    text = (folder / "leaderboard.json").read_text(encoding="utf-8")
    assert Result.read(folder / "leaderboard.json").table() == result.table() == json.loads(text)
    assert "NaN" not in text
    assert markdown(Result.read(folder / "leaderboard.json")) == markdown(result)


@pytest.mark.parametrize("extractor", ["digits", None])
def test_scores_by_several_versions_share_a_table(tmp_path: Path, extractor: str | None) -> None:
    """It names all versions. SciPy, say, is upgraded while a board goes on."""
    runs = [
        job(
            *(tmp_path, "a", seed, 3.0),
            picture=0,
            protocol={"extractor": extractor, "versions": versions},
        )
        for seed, versions in enumerate(
            [
                {"torch-fidelity": "0.4.0", "scipy": "1.9"},
                {"torch-fidelity": "0.4.1", "scipy": "1.9"},
            ]
        )
    ]
    result = evaluate(board({"a": "A"}, range(2)), runs, {})
    write_files(result, runs, tmp_path)
    table = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
    both = "0.4.0 and 0.4.1"
    assert table["protocol"]["versions"] == {"torch-fidelity": both, "scipy": "1.9"}
    for name in ("leaderboard.md", "leaderboard.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert (f"torch-fidelity {both}" in text) == (extractor is not None)
        assert "10,000 samples against 1,797 of digits" in text


@pytest.mark.parametrize("name", ["leaderboard.json", "leaderboard.md", "leaderboard.html"])
def test_a_stranger_s_file_is_not_replaced(tmp_path: Path, gan: Gan, name: str) -> None:
    planned(tmp_path)
    out = tmp_path / "notes"
    out.mkdir()
    (out / name).write_text('{"mine": 1}')
    go = ("leaderboard", tmp_path / "board.toml", "--out", out, "--no-cost", "--device", "cpu")
    code, _, error = gan(*go)
    assert code == 2
    assert f"{out / name} may be no board's, and would be replaced: move or delete it" in error
    assert "choose another --out" in error
    assert error.count("\n") == 1
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_text() == '{"mine": 1}'


# reading


def test_each_file_of_a_finished_board_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gan: Gan
) -> None:
    """By the whole command: plan, display, result, text, page and plots.

    scores.json is read once more before, as there may be no need to read the rest.
    """
    runs = planned(tmp_path)
    for run in left_to_do(runs):
        run.prepare()
        gancore.run(run.run.recipe_path, run.path, device="cpu", resume=True)
    opened, count = reading.opened, Counter[str]()

    def counted(path: Path) -> Any:
        if "runs" in path.parts:
            count[f"{path.parent.name}/{path.name}"] += 1
        return opened(path)

    monkeypatch.setattr(reading, "opened", counted)
    go = ("leaderboard", tmp_path / "board.toml", "--out", tmp_path / "out", "--device", "cpu")
    code, said, error = gan(*go, "--no-cost")
    assert (code, error) == (0, "")
    assert said.count("done before") == 6
    once = ("metrics.jsonl", "recipe.toml", "environment.json", "expected.json")
    expected = {f"{run.path.name}/{name}": 1 for run in runs for name in once}
    expected |= {f"{run.path.name}/scores.json": 2 for run in runs}
    assert {name: times for name, times in count.items() if "samples/" not in name} == expected
