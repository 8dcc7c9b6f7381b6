"""The leaderboard's page: its pictures are true, it harms nobody, and a browser can sort it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from boards import board, job
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from gancore.leaderboard.evaluate import evaluate
from gancore.leaderboard.files import write_files
from gancore.leaderboard.job import Job
from gancore.leaderboard.page import page
from gancore.leaderboard.plots import (
    Style,
    curves,
    estimates,
    in_figure,
    pareto,
    plot_cost,
    plot_curves,
    plot_estimates,
    plot_intervals,
    styles,
)
from gancore.leaderboard.result import EntryCost, Result
from gancore.leaderboard.statistics import detectable
from gancore.leaderboard.text import MINUS, against_title, markdown, notes

EVIL = "<script>alert(1)</script>"


class Made(NamedTuple):
    """A made-up board: its result, its runs."""

    result: Result
    jobs: list[Job]


FIDS = {
    "wgan-gp": [5.0, 5.5, 4.5],
    "r1": [4.0, 4.4, 3.65],
    "sn": [9.0, 10.0, 8.0],
    "clip": [20.0, 30.0, 14.0],
}
LABELS = {
    "wgan-gp": "WGAN-GP",
    "r1": f"R1 {EVIL}",
    "sn": "$1 of _SN$",
    "clip": "_clip",
    "gone": "G",
}
COSTS = {
    "wgan-gp": EntryCost(time_ratio=2.1, flops_ratio=1.9, memory_ratio=1.5),
    "r1": EntryCost(time_ratio=1.6, flops_ratio=1.5, memory_ratio=1.25),
    "sn": EntryCost(time_ratio=1.1, flops_ratio=1.0, memory_ratio=1.125),
    "clip": EntryCost(time_ratio=10.0, flops_ratio=1.0, memory_ratio=1.0),
}


def made(folder: Path, **changes: Any) -> Made:
    """A board of five entries, one of which failed; names, plugins and errors mean harm."""
    seeds = range(3)
    jobs = [
        job(folder, name, seed, FIDS[name][seed], plugins={EVIL: f"{EVIL}==1"}, **changes)
        for seed in seeds
        for name in FIDS
    ]
    failed = Job("gone", 0, jobs[0].recipe, folder / "runs" / "gone-0", "failed", f"{EVIL} $x$")
    jobs.append(failed)
    return Made(evaluate(board(LABELS, seeds), jobs, COSTS), jobs)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="module")
def out(small: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The board's folder."""
    folder = tmp_path_factory.mktemp("board") / "out"
    write_files(small.result, small.jobs, folder)
    return folder


@pytest.fixture(scope="module")
def html(out: Path) -> str:
    return (out / "leaderboard.html").read_text(encoding="utf-8")


# what the pictures show


def swept(points: list[tuple[float, float]], *, higher_is_better: bool) -> list[bool]:
    """The front, from left to right: a point is on it if its score beats all cheaper ones."""
    on, best = set(), math.inf
    for cost, group in itertools.groupby(sorted(points), key=lambda point: point[0]):
        scores = [-score if higher_is_better else score for _, score in group]
        if min(scores) < best:
            best = min(scores)
            on.add((cost, -best if higher_is_better else best))
    return [point in on for point in points]


few = st.integers(-3, 3).map(float)


@given(st.lists(st.tuples(few, few), max_size=12), st.booleans())
def test_the_pareto_front(points: list[tuple[float, float]], higher: bool) -> None:
    found = pareto(points, higher_is_better=higher)
    assert found == swept(points, higher_is_better=higher)
    assert any(found) == bool(points)


def test_the_pareto_front_by_hand() -> None:
    points = [(1.0, 9.0), (1.0, 8.0), (2.0, 8.0), (3.0, 2.0), (4.0, 3.0), (3.0, 2.0)]
    assert pareto(points, higher_is_better=False) == [False, True, False, True, False, True]
    assert pareto(points, higher_is_better=True) == [True, False, False, False, False, False]


def line(figure: Figure, colour: str, marker: str = "None") -> list[list[tuple[float, float]]]:
    """Return the points of each line of a colour, with or without a marker."""
    return [
        [(x, y) for x, y in np.asarray(each.get_xydata()).tolist()]
        for each in figure.axes[0].lines
        if each.get_color() == colour and each.get_marker() == marker
    ]


def test_every_entry_has_a_look_of_its_own(small: Made) -> None:
    found = styles(small.result)
    assert found["wgan-gp"] == Style("#000000", "o")
    assert len(set(found.values())) == len(LABELS)
    many = {f"e{k}": f"E{k}" for k in range(10)}
    jobs = [Job(name, 0, {"train": {"steps": 1, "critic_steps": 1}}, Path("x")) for name in many]
    ten = styles(evaluate(board(many, [0]), jobs, {})).values()
    assert len({look.colour for look in ten}) == len({look.shape for look in ten}) == 10


def test_the_interval_plot_has_the_result_s_numbers(small: Made) -> None:
    figure, drawn = plot_intervals(small.result), styles(small.result)
    (axes,) = figure.axes
    order = ["r1", "wgan-gp", "sn", "clip"]  # and none for the one that failed
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        in_figure(LABELS[name]) for name in order
    ]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first is at the top
    for row, (name, dots) in enumerate(zip(order, axes.collections, strict=True)):
        entry = small.result.entries[row]
        score = entry.scores["fid"]
        assert entry.name == name
        assert score.median == sorted(FIDS[name])[1]
        look = drawn[name]
        interval = line(figure, look.colour)[0]
        assert interval == [(score.low, row), (score.high, row)]
        assert line(figure, look.colour, look.shape) == [[(score.median, row)]]
        assert np.asarray(dots.get_offsets())[:, 0].tolist() == FIDS[name]
    (dashed,) = [each for each in axes.lines if each.get_linestyle() == "--"]
    assert list(dashed.get_xdata()) == [5.0, 5.0]  # type: ignore[arg-type]
    assert axes.get_xscale() == "linear"
    assert axes.get_xlabel() == "FID (digits features) ↓"


def test_scores_of_several_sizes_have_a_logarithmic_axis(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a", 0, 1.0), job(tmp_path, "b", 0, 10.5)]
    found = evaluate(board({"a": "A", "b": "B"}, [0]), jobs, {})
    (axes,) = plot_intervals(found).axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "FID (digits features) ↓, logarithmic"


def test_curves_are_medians_over_seeds(small: Made) -> None:
    over_updates = curves(small.result, small.jobs, "update")
    assert over_updates.keys() == FIDS.keys()
    assert over_updates["r1"].median == [(500, 3 * 4.0), (1000, 2 * 4.0), (1500, 4.0)]
    assert over_updates["r1"].runs[1] == [(500, 3 * 4.4), (1000, 2 * 4.4), (1500, 4.4)]
    over_seconds = curves(small.result, small.jobs, "seconds")
    assert [x for x, _ in over_seconds["r1"].median] == [21, 41, 61]
    figure, look = plot_curves(small.result, over_updates, "update"), styles(small.result)["r1"]
    assert line(figure, look.colour, look.shape) == [over_updates["r1"].median]
    assert line(figure, look.colour) == over_updates["r1"].runs
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        in_figure(LABELS[name]) for name in ["r1", "wgan-gp", "sn", "clip"]
    ]


def test_the_cost_plot_has_the_front(small: Made) -> None:
    figure = plot_cost(small.result, "flops_ratio")
    assert line(figure, "0.45") == [[(1.0, 9.0), (1.5, 4.0)]]
    for name, look in styles(small.result).items():
        expected = [[(COSTS[name].flops_ratio, sorted(FIDS[name])[1])]] if name in FIDS else []
        assert line(figure, look.colour, look.shape) == expected


def test_estimates_go_with_their_runs_scores(small: Made) -> None:
    found = estimates(small.result, small.jobs)
    assert found["r1"] == [(4.0 / 3, 4.0), (-4.4 / 3, 4.4), (3.65 / 3, 3.65)]
    dots = plot_estimates(small.result, found).axes[0].collections
    assert len(dots) == len(found) == 4
    drawn = [np.asarray(each.get_offsets()).tolist() for each in dots]
    assert [list(point) for point in found["r1"]] in drawn


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("$x$", r"\$x\$"),
        ("_hidden", " _hidden"),
        ("two\nlines", "two lines"),
        ("a" * 40, "a" * 27 + "…"),
    ],
)
def test_labels_of_figures(label: str, expected: str) -> None:
    assert in_figure(label) == expected


# the page


def sections(html: str) -> dict[str, str]:
    """Return what is below each heading."""
    parts = [part.partition("</h2>") for part in html.split("<h2>")[1:]]
    return {title: rest for title, _, rest in parts}


def test_the_page_has_every_picture_and_tells_what_it_lacks(html: str) -> None:
    found = sections(html)
    assert list(found) == ["Scores", "Over training", "Cost", "Samples", "Entries", "Environment"]
    assert [part.count("<img") for part in found.values()] == [2, 2, 2, 4, 0, 0]
    assert '<p class="missing">G has no sample grid.</p>' in found["Samples"]
    assert found["Samples"].count("seed 0, step 300") == 8  # captions and alternative texts
    assert "G, seed 0, failed: &lt;script&gt;alert(1)&lt;/script&gt; $x$" in html
    assert html.count("<script>") == 1
    assert not any(word in html for word in ("http:", "https:", "url(", "@import", "//cdn"))


def test_what_was_not_measured_is_told(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a", seed, 3.0 + seed, picture=0, every=False) for seed in range(3)]
    found = sections(page(evaluate(board({"a": "A"}, range(3)), jobs, {}), jobs))
    assert "There are no curves of scores" in found["Over training"]
    assert "no cost was measured" in found["Cost"]
    assert "A has no sample grid." in found["Samples"]
    assert [part.count("<img") for part in found.values()] == [2, 0, 0, 0, 0, 0]


def test_an_entry_without_score_every_is_named_beside_the_others_curves(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a", 0, 3.0), job(tmp_path, "b", 0, 3.0, every=False)]
    found = sections(page(evaluate(board({"a": "A", "b": "B"}, [0]), jobs, {}), jobs))
    assert found["Over training"].count("and so left out: B.") == 2


def test_a_board_without_a_finished_run_has_a_page(tmp_path: Path) -> None:
    recipe = {"train": {"steps": 1, "critic_steps": 1}}
    jobs = [Job("a", 0, recipe, tmp_path / "a", "failed", "no")]
    html = page(evaluate(board({"a": "A"}, [0]), jobs, {}), jobs)
    assert "No run has a score yet." in html
    assert "A, seed 0, failed: no" in html
    assert "<img" not in html


def test_grids_are_of_the_seed_that_most_entries_have(tmp_path: Path) -> None:
    """Seed 0 of A failed, so B and C show seed 1 beside it, though they have both."""
    jobs = [job(tmp_path, name, seed, 3.0) for seed in range(2) for name in "abcd"]
    jobs[0].state = jobs[3].state = "failed"
    jobs[-2].run.sample_path(300).write_bytes(b"\x89PNG\r\n\x1a\n")
    jobs[-1].run.sample_path(300).write_bytes(b"no picture")
    entries = dict(zip("abcd", "ABCD", strict=True))
    samples = sections(page(evaluate(board(entries, range(2)), jobs, {}), jobs))["Samples"]
    assert samples.count("<figcaption>seed 1, step 300</figcaption>") == 2
    assert samples.count("<img") == 2
    for label in "CD":
        assert f"{label}: step-000300.png can&#39;t be read" in samples


def test_a_page_of_large_grids_stays_small(tmp_path: Path) -> None:
    """Noise is the worst there is."""
    names = {f"e{k}": f"E{k}" for k in range(10)}
    jobs = [job(tmp_path, name, 0, 3.0, picture=520) for name in names]
    assert jobs[0].run.sample_path(300).stat().st_size > 800_000
    html = page(evaluate(board(names, [0]), jobs, {}), jobs)
    assert html.count("data:image/jpeg") == 10
    assert len(html) < 4_000_000


def test_write(small: Made, out: Path, html: str) -> None:
    names = ["leaderboard.html", "leaderboard.json", "leaderboard.md"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert Result.read(out / "leaderboard.json") == small.result
    assert (out / "leaderboard.md").read_text(encoding="utf-8") == markdown(small.result)
    assert html == page(small.result, small.jobs)  # the same result gives the same page


def test_a_difference_is_not_headed_as_a_ratio(tmp_path: Path, html: str) -> None:
    assert ">÷ WGAN-GP</th>" in html
    jobs = [job(tmp_path, "a", 0, 1.0), job(tmp_path, "b", 0, -0.25)]
    found = evaluate(board({"a": "A", "b": "B"}, [0]), jobs, {})
    assert against_title(found) == f"{MINUS} A"
    assert f"| {MINUS} A |" in markdown(found)


# what it says of its statistics

ONE = [3.0, 3.5, 2.9, 3.2]


def told(folder: Path, scores: Mapping[str, Sequence[float]]) -> tuple[Any, list[str], str]:
    """How the FIDs of a board were compared, its notes but the protocol's, and its page."""
    jobs = [
        job(folder, name, seed, fid, picture=0)
        for name, fids in scores.items()
        for seed, fid in enumerate(fids)
    ]
    seeds = range(max(map(len, scores.values())))
    labels = {name: name.upper() for name in scores}
    costs = {name: EntryCost(flops_ratio=1.0) for name in scores}
    result = evaluate(board(labels, seeds), jobs, costs)
    return result.statistics.tests["fid"], notes(result)[1:-1], page(result, jobs)


def test_several_entries_over_several_seeds(tmp_path: Path) -> None:
    scores = {"a": ONE[:3], "b": [4.0, 4.1, 3.9], "c": [2.0, 3.0, 2.5]}
    how, (interval, verdicts), html = told(tmp_path, scores)
    assert how == "paired t-test of logarithms over 3 seeds, Holm's correction for 2 entries"
    assert interval == "Median and 95 % bootstrap interval of 3 seeds."
    assert verdicts.startswith(f"Verdicts: {how}. With four chances in five it sees differences of")
    assert "(the steadiest entry)" in verdicts
    assert "Each entry&#39;s median as a mark, its 95 % bootstrap interval as a bar" in html
    assert "; the dashed line is the baseline&#39;s." in html
    assert "The median over seeds as a line, each run faintly." in html
    assert "Medians with their intervals." in html
    assert "3 entries over seeds 0, 1, 2, ranked by FID (digits features) ↓, against A." in html


def test_one_seed_has_no_interval_and_no_test(tmp_path: Path) -> None:
    how, lines, html = told(tmp_path, {"a": [3.0], "b": [4.0]})
    assert how is None
    assert lines == ["1 seed in common with the baseline decides nothing: that takes 3."]
    assert not any(word in html for word in ("bootstrap", "edian", "intervals", "Holm", "t-test"))
    assert html.count("Each entry&#39;s only run") == 4  # scores, two curves, cost
    assert "2 entries over seed 0, ranked by" in html


def test_an_entry_alone_is_compared_with_nothing(tmp_path: Path) -> None:
    how, lines, html = told(tmp_path, {"a": ONE})
    assert how is None
    assert lines == [
        "Median and 95 % bootstrap interval of 4 seeds.",
        "There is no entry but the baseline, and so nothing to decide.",
    ]
    assert "A over seeds 0, 1, 2, 3: FID (digits features) ↓." in html


def test_two_entries_need_no_correction_and_differences_no_logarithms(tmp_path: Path) -> None:
    how, (_, verdicts), _ = told(tmp_path / "one", {"a": ONE, "b": [4.0, 4.1, 3.9, 4.4]})
    assert how == "paired t-test of logarithms over 4 seeds"
    assert " % and more." in verdicts
    how, (_, verdicts), _ = told(tmp_path / "two", {"a": ONE, "b": [0.5, -0.5, 0.1, 0.2]})
    assert how == "paired t-test over 4 seeds"
    assert "logarithm" not in verdicts
    assert "%" not in verdicts


def test_entries_of_fewer_seeds_are_told(tmp_path: Path) -> None:
    """B has three of four seeds; C has two, so it is in no family, and can't be seen to differ."""
    scores = {"a": ONE, "b": [4.0, 4.3, 3.7], "c": [1.0, 7.0], "d": [5.0, 4.0, 6.0, 4.5]}
    how, (interval, verdicts), _ = told(tmp_path, scores)
    assert how == "paired t-test of logarithms over 3 to 4 seeds, Holm's correction for 2 entries"
    assert interval == "Median and 95 % bootstrap interval of 2 to 4 seeds."
    assert "Fewer than 3 seeds in common with it: C." in verdicts
    seen = [float(each) for each in re.findall(r"(\d+) %", verdicts)]
    few, whole = ([math.log(x / y) for x, y in zip(scores[k], ONE, strict=False)] for k in "bd")
    expected = [
        100 * math.expm1(detectable(float(np.std(each, ddof=1)), len(each), 0.05 / 2))
        for each in (few, whole)
    ]
    assert seen == pytest.approx(sorted(expected), abs=0.51)


def test_seeds_that_all_differ_alike_need_no_test(tmp_path: Path) -> None:
    how, (_, verdicts), _ = told(tmp_path, {"a": [1.0, 2.0, 4.0], "b": [2.0, 4.0, 8.0]})
    assert how == "by their sign where all seeds differ alike"
    assert verdicts == f"Verdicts: {how}."


@pytest.mark.parametrize(
    ("losses", "title", "of"),
    [
        (["wasserstein", "wasserstein"], "the Wasserstein estimate", "of all entries."),
        (["wasserstein", "hinge"], "D(real) − D(fake)", "of A."),
        (["rpgan", "hinge"], "D(real) − D(fake)", "of none of these entries."),
    ],
)
def test_the_page_says_whose_gap_is_an_estimate(
    tmp_path: Path, losses: list[str], title: str, of: str
) -> None:
    jobs = [job(tmp_path, name, 0, 3.0, loss=loss) for name, loss in zip("ab", losses, strict=True)]
    found = evaluate(board({"a": "A", "b": "B"}, [0]), jobs, {})
    html = page(found, jobs)
    assert f"Does {title} tell the score?" in html
    assert f"the factor of the critic&#39;s Lipschitz constant, {of}" in html
    axes = plot_estimates(found, estimates(found, jobs)).axes[0]
    assert axes.get_xlabel() == "D(real) − D(fake)"


# in a browser


def dismissed(dialog: Any, seen: list[str]) -> None:
    """A page waits for the answer to a dialog."""
    seen.append(f"{dialog.type}: {dialog.message}")
    dialog.dismiss()


@pytest.fixture
def tab(browser: Any, out: Path) -> Iterator[Any]:
    """The page, opened; complains at the end of all that should not have happened."""
    complaints: list[str] = []
    asked: list[str] = []
    context = browser.new_context(viewport={"width": 360, "height": 800}, offline=True)
    opened = context.new_page()
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: dismissed(dialog, complaints))
    opened.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    opened.goto((out / "leaderboard.html").as_uri(), wait_until="load")
    yield opened
    assert complaints == []
    assert set(asked) <= {"file", "data"}
    assert asked.count("file") == 1
    context.close()


COLUMN = (
    "(k) => [...document.querySelectorAll('.sortable tbody tr')].map(r => r.cells[k].innerText)"
)


def column(tab: Any, number: int) -> list[str]:
    return [text.split("\n")[0] for text in tab.evaluate(COLUMN, number)]


SHORT = {"WGAN-GP": "wgan-gp", f"R1 {EVIL}": "r1", "$1 of _SN$": "sn", "_clip": "clip", "G": "gone"}


SORTED = {
    r"^rank": ("clip sn wgan-gp r1 gone", "r1 wgan-gp sn clip gone"),  # sorted by it already
    r"^entry": ("clip sn gone r1 wgan-gp", "wgan-gp r1 gone sn clip"),
    r"^FID": ("r1 wgan-gp sn clip gone", "clip sn wgan-gp r1 gone"),
    r"^÷ WGAN-GP": ("r1 sn clip wgan-gp gone", "clip sn r1 wgan-gp gone"),
    r"^verdict": ("r1 wgan-gp sn clip gone", "sn clip wgan-gp r1 gone"),
    r"^Inception Score": ("r1 wgan-gp sn clip gone", "clip sn wgan-gp r1 gone"),
    r"^time": ("sn r1 wgan-gp clip gone", "clip wgan-gp r1 sn gone"),
    r"^FLOPs": ("sn clip r1 wgan-gp gone", "wgan-gp r1 sn clip gone"),
    r"^runs": ("r1 wgan-gp sn clip gone", "gone r1 wgan-gp sn clip"),
}


def test_a_click_sorts_and_another_turns_it(tab: Any) -> None:
    """As numbers, the best first; what has no value comes last both ways."""

    def names() -> str:
        return " ".join(SHORT[label] for label in column(tab, 1))

    assert names() == "r1 wgan-gp sn clip gone"
    for header, (once, twice) in SORTED.items():
        button = tab.get_by_role("button", name=re.compile(header))
        for expected in (once, twice, once):
            button.click()
            assert (header, names()) == (header, expected)
            (sorted_by,) = tab.locator("th[aria-sort]").all()
            assert re.match(header, sorted_by.inner_text())


def test_the_page_reads_well_on_a_phone_and_on_paper(tab: Any) -> None:
    sizes = tab.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.width])")
    assert len(sizes) == 10
    assert all(complete and natural >= 40 and shown >= 40 for complete, natural, shown in sizes)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    inside = "document.querySelector('.board')"
    assert tab.evaluate(f"{inside}.scrollWidth > {inside}.clientWidth")
    tab.emulate_media(media="print")
    tab.set_viewport_size({"width": 718, "height": 1000})  # A4 with margins
    assert tab.evaluate("document.documentElement.scrollWidth") <= 718
    assert tab.pdf(format="A4").startswith(b"%PDF")


def test_names_that_mean_harm_are_text(tab: Any) -> None:
    assert column(tab, 1)[0] == f"R1 {EVIL}"
    body = tab.inner_text("body")
    assert body.count(EVIL) > 5
    assert f"{EVIL}: {EVIL}==1" in body
    assert f"G, seed 0, failed: {EVIL} $x$" in body
    assert len(tab.query_selector_all("script")) == 1


def test_a_script_that_is_not_the_page_s_own_is_refused(
    browser: Any, html: str, tmp_path: Path
) -> None:
    broken = html.replace("</main>", f"{EVIL}</main>")
    (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
    context = browser.new_context(offline=True)
    opened = context.new_page()
    seen: list[str] = []
    opened.on("console", lambda message: seen.append(message.text))
    opened.on("dialog", lambda dialog: dismissed(dialog, seen))
    opened.goto((tmp_path / "broken.html").as_uri(), wait_until="load")
    assert "alert: 1" not in seen
    assert any("Content Security Policy" in text for text in seen)
    context.close()


def test_the_page_is_ranked_without_scripts(browser: Any, out: Path) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    opened = context.new_page()
    opened.goto((out / "leaderboard.html").as_uri(), wait_until="load")
    assert opened.locator(".sortable tbody tr td:first-child").all_inner_texts() == [*"1234", ""]
    assert opened.locator("button").count() == 0
    context.close()
