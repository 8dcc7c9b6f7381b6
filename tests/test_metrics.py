"""Metrics of other packages: found by their entry points, and as good as ours from then on."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import DIGITS, ROOT, TOY, Gan

from gancore.data import Dataset
from gancore.data.digits import digits
from gancore.errors import ContractError, MissingError, PluginError, ScoreError, UnfitError
from gancore.recipe import Recipe
from gancore.scoring import Inputs, Metric, Value, score
from gancore.scoring.metrics import metric, metric_of, named
from gancore.scoring.protocol import Scores, better, by_difference, keys
from gancore.testing.metric import check_metric
from gancore.training import check_recipe

DOCUMENTED = (ROOT / "docs" / "metrics.md").read_text("utf-8")
(CONTRAST,) = re.findall(r"^```python\n(# src/gancore_contrast/.*?)^```$", DOCUMENTED, re.M | re.S)
"""The package of the documentation."""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make distributions with one metric each, without pip."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv(
        "PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep
    )  # of a board's runs
    (tmp_path / "site").mkdir()
    known = set(sys.modules)

    def make(source: str, name: str = "contrast", number: str = "1.5") -> None:
        module, site = f"gancore_{name}", tmp_path / "site"
        (site / f"{module}.py").write_text(source)
        info = site / f"{module}-{number}.dist-info"
        info.mkdir(exist_ok=True)
        about = f"Metadata-Version: 2.1\nName: gancore-{name}\nVersion: {number}\n"
        (info / "METADATA").write_text(about)
        (info / "entry_points.txt").write_text(f"[gancore.metrics]\n{name} = {module}:METRIC\n")
        sys.modules.pop(module, None)
        importlib.invalidate_caches()

    yield make
    for name in set(sys.modules) - known:
        if name.startswith("gancore_"):
            del sys.modules[name]


def remove(tmp_path: Path) -> None:
    """Take all distributions away again, as on another machine."""
    for path in (tmp_path / "site").glob("*/*"):
        path.unlink()
    for path in (tmp_path / "site").iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    importlib.invalidate_caches()


RUN = DIGITS.replace('["fid"]', '["contrast", "fid"]')
BOARD = """
recipe = "run.toml"
baseline = "none"
seeds = [0]
[[entry]]
name = "none"
[[entry]]
name = "slow"
set = ["optimizer.lr=1e-9"]
"""


def test_a_metric_of_a_package_is_used_like_ours(
    install: Install, tmp_path: Path, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(CONTRAST)
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(RUN)
    code, out, err = gan("recipe", "check", "run.toml")
    assert (code, out) == (0, "run.toml: valid\n"), err
    code, out, err = gan("run", "run.toml", "--out", "run")
    assert code == 0, err
    scores = Scores.model_validate_json(Path("run/scores.json").read_text())
    value = scores.scores["contrast"]
    assert [*scores.scores] == ["contrast", "contrast_std", "fid"]
    assert f"contrast of images  {value:.4g} ± " in out
    assert "FID (digits features)  " in out
    (brought_by,) = scores.metrics.values()
    about = json.loads(Path("run/environment.json").read_text())
    assert about["components"]["metric contrast"] == brought_by
    assert "metric fid" not in about["components"]
    assert brought_by.startswith("gancore-contrast==1.5 (code ")

    code, out, err = gan("score", "run", "--metrics", "contrast,kid")
    assert code == 0, err
    again = Scores.model_validate_json(Path("run/scores.json").read_text())
    assert again.scores.items() >= scores.scores.items()
    assert again.metrics == scores.metrics

    assert gan("report", "run")[0] == 0
    assert "contrast of images" in Path("run/report.html").read_text()

    remove(tmp_path)  # a stranger's run, then
    assert gan("report", "run")[0] == 0
    assert ">contrast<" in Path("run/report.html").read_text()
    code, _, err = gan("score", "run", "--metrics", "contrast")
    assert (code, err.splitlines()[0]) == (
        2,
        "error: score.metrics: no metric 'contrast' is installed. Known: fid, isc, kid, modes, "
        "prc, quality, w2.",
    )
    code, out, err = gan("recipe", "check", "run.toml")
    assert code == 0, err
    assert "valid; score.metrics: no metric 'contrast' is installed." in out


def test_a_board_ranks_by_it_in_its_direction(
    install: Install, tmp_path: Path, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(CONTRAST)
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(RUN.replace(', "fid"]', "]").replace("samples = 64", "samples = 9"))
    Path("board.toml").write_text(BOARD)
    code, out, err = gan("leaderboard", "board.toml")
    assert code == 0, out + err
    folder = Path("boards/board")
    result = json.loads((folder / "leaderboard.json").read_text())
    assert (result["metric"], result["higher_is_better"]) == ("contrast", ["contrast"])
    medians = [entry["scores"]["contrast"]["median"] for entry in result["entries"]]
    assert medians == sorted(medians, reverse=True)
    assert "contrast of images ↑" in (folder / "leaderboard.md").read_text()

    remove(tmp_path)  # a stranger's result: the file says which way is better
    for name, factor in (("before", 1.0), ("worse", 0.5)):
        for entry in result["entries"]:
            values = [factor * (0.5 + 0.001 * seed) for seed in range(3)]
            entry["scores"]["contrast"] |= {"values": values, "seeds": [0, 1, 2]}
        Path(f"{name}.json").write_text(json.dumps(result))
    assert gan("compare", "before.json", "worse.json")[0] == 1
    assert gan("compare", "worse.json", "before.json")[0] == 0
    assert "contrast" in gan("compare", "before.json", "before.json")[1]


def test_it_is_refused_before_anything_costs(
    tmp_path: Path, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gancore.training.building.load_data", None)  # which is not come to
    for number, (name, told) in enumerate(
        {"fidd": "Did you mean 'fid'?", "contrast": "Known: fid, isc, kid, modes, prc"}.items()
    ):
        path = tmp_path / f"{number}.toml"
        path.write_text(RUN.replace("contrast", name))
        code, _, err = gan("run", path, "--out", tmp_path / "run")
        assert code == 2
        assert f"score.metrics: no metric '{name}' is installed. {told}" in err
        assert not (tmp_path / "run").exists()
    assert gan("recipe", "check", tmp_path / "0.toml")[0] == 2  # close to one: a slip
    missing = check_recipe(Recipe.load(tmp_path / "1.toml"))
    assert len(missing) == 1
    assert "no metric 'contrast' is installed" in missing[0]


@pytest.mark.parametrize("data", ["images", "points"])
def test_metrics_of_other_data_are_a_mistake_of_the_user_s(
    tmp_path: Path, gan: Gan, data: str
) -> None:
    recipe = DIGITS.replace('["fid"]', "[]") if data == "images" else TOY
    other, fitting = ("w2", "fid, isc, kid, prc") if data == "images" else ("kid", "modes, quality")
    (tmp_path / "toy.toml").write_text(recipe)
    assert gan("run", tmp_path / "toy.toml", "--out", tmp_path / "run")[0] == 0
    code, _, err = gan("score", tmp_path / "run", "--metrics", other)
    assert code == 2
    assert f"score.metrics: {other} can't be computed for " in err
    assert f"choose of {fitting}" in err


def test_names_are_looked_up_without_importing_what_has_another_name(install: Install) -> None:
    install("import sys\nsys.imported_contrast = True\nraise RuntimeError")
    assert better("isc", 2.0, 1.0)
    assert metric_of("brightness") is None
    assert not hasattr(sys, "imported_contrast")
    assert metric_of("contrast") is None  # it can't be imported: then it is not known
    assert vars(sys).pop("imported_contrast")
    with pytest.raises(PluginError, match="metric contrast .* can't be imported: RuntimeError"):
        metric("contrast")


DIFFERENCE = CONTRAST.replace('"proportion"', '"difference"')


def test_what_a_board_has_to_know_of_it(install: Install) -> None:
    install(DIFFERENCE)
    assert better("contrast", 2.0, 1.0)
    assert by_difference("contrast")
    assert not by_difference("kid")
    assert not by_difference("nothing")
    assert keys(["contrast", "prc"]) == ["contrast", "precision", "recall"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("METRIC = 3", "metric contrast (gancore-contrast 1.5): 3 is no gancore.scoring.Metric"),
        (
            CONTRAST.replace('{"contrast": Value', '{"sharp": Value'),
            "metric contrast (gancore-contrast 1.5) has the key 'sharp': call it 'contrast', or "
            "'contrast_sharp'",
        ),
        (
            CONTRAST.replace('{"contrast": Value', '{"contrasts": Value'),
            "has the key 'contrasts'",
        ),
        (
            CONTRAST.replace('{"contrast": Value', '{"contrast_std": Value'),
            "contrast_std is named like a number that stands `beside`",
        ),
        (CONTRAST.replace("higher", "up"), "ValueError: better: expected one of higher, lower"),
    ],
)
def test_one_that_can_t_be_used_is_refused(install: Install, source: str, told: str) -> None:
    install(source)
    with pytest.raises(PluginError) as caught:
        metric("contrast")
    assert told in str(caught.value)


def test_two_of_one_name_are_refused(install: Install) -> None:
    install(CONTRAST)
    install(CONTRAST.replace("contrast", "fid"), "fid")
    with pytest.raises(PluginError, match=r"'fid' is brought by gancore 0.* and gancore-fid 1.5"):
        metric("fid")


def scored(install: Install, body: str) -> Scores:
    install(CONTRAST.replace("    spread = ", f"    {body}\n    spread = "))
    fake = digits().samples[:20].clone()
    return score(fake, digits(), metrics=["contrast"], seed=4)


def test_its_answer_is_checked(install: Install) -> None:
    fine = scored(install, "")
    for body, told in {
        "return {}": "metric contrast answered , expected numbers for contrast, contrast_std",
        "return 3": "metric contrast answered 3, expected",
        "return {'contrast': 1.0, 'contrast_std': 0.0, 'x': 1.0}": "answered contrast, contrast_s",
        "return {'contrast': None, 'contrast_std': 0.0}": "answered {'contrast': None, 'contrast_s",
        "import sys; sys.exit(0)": "metric contrast raised SystemExit(0)",
        "import torch; torch.set_default_dtype(torch.float64)": "metric contrast left the default",
        "inputs.samples.mul_(2)": "metric contrast changes what it is computed from",
        "inputs.samples.mul_(1)": "metric contrast changes what it is computed from",
        "inputs.samples.numpy()[:] = 0": "metric contrast changes what it is computed from",
        "inputs.logits": "a metric asks for logits, which its `needs` do not name: add it",
    }.items():
        with pytest.raises(ContractError) as caught:
            scored(install, body)
        assert told in str(caught.value)
    for number in ("float('nan')", "float('-inf')", "1e101"):
        with pytest.raises(ScoreError, match="^contrast came out as inf or nan"):
            scored(install, f"return {{'contrast': {number}, 'contrast_std': 0.0}}")
    assert fine.protocol.extractor is None  # it needs none


def test_what_it_draws_is_a_function_of_the_seed(install: Install) -> None:
    drawn = "import torch; inputs.samples = inputs.samples + torch.randint(0, 9, (1, 1, 8, 8))"
    torch.manual_seed(1)
    one = scored(install, drawn)
    torch.manual_seed(2)
    assert one == scored(install, drawn)


def test_an_error_of_its_own_names_it(install: Install) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        scored(install, "1 / 0")
    assert caught.value.__notes__ == ["raised in metric contrast"]
    for part in ("fits", "refuses"):
        install(CONTRAST.replace("contrast\n)", f"contrast, {part}=lambda given: 1 / 0\n)"))
        with pytest.raises(ZeroDivisionError) as caught:
            score(digits().samples[:20], digits(), metrics=["contrast"])
        assert caught.value.__notes__ == [f"raised in `{part}` of metric contrast"]


ONE = """
from gancore.scoring import Inputs, Metric, Value

METRIC = Metric({"KEY": Value("NAME", "higher")}, "gancore_nowhere:compute", needs=["features"])
"""


def test_numbers_of_one_name_are_refused(install: Install) -> None:
    both = ONE.replace("{", '{"one": Value("the first", "lower"), ').replace("KEY", "one_local")
    install(both, "one")
    install(ONE.replace("KEY", "one_local"), "one_local")
    with pytest.raises(PluginError, match="one and one_local both have a number 'one_local'"):
        named(["one", "one_local"])
    known = metric_of("one_local")
    assert known is not None
    assert [*known.values] == ["one_local"]  # that of the longest name
    install(ONE.replace("KEY", "precision"), "precision")
    with pytest.raises(PluginError, match="has gancore's own key 'precision'"):
        metric("precision")
    install(ONE.replace("KEY", "sharp"), "Sharp")
    with pytest.raises(PluginError, match="its name begins its keys, .*: rename its entry point"):
        metric("Sharp")


def test_a_path_that_leads_nowhere_is_told_before_the_training(
    install: Install, tmp_path: Path, gan: Gan
) -> None:
    install(ONE.replace("KEY", "one"), "one")
    assert metric("one").needs == {"features"}
    (tmp_path / "run.toml").write_text(DIGITS.replace('["fid"]', '["one"]'))
    code, _, err = gan("run", tmp_path / "run.toml", "--out", tmp_path / "run")
    assert code == 2
    assert "metric one: 'gancore_nowhere:compute', which computes it, can't be imported" in err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_rehearsal_leaves_out_what_needs_more_samples(
    install: Install, tmp_path: Path, gan: Gan
) -> None:
    source = """
from gancore.scoring import Metric, Value

METRIC = Metric(
    {"far": Value("far", "lower")}, lambda inputs: {"far": 1.0}, of="points",
    refuses=lambda counts: None if counts.samples >= 10 else "take more",
)
"""
    install(source, "far")
    (tmp_path / "toy.toml").write_text(TOY.replace("metrics = []", 'metrics = ["far"]'))
    code, _, err = gan("run", tmp_path / "toy.toml", "--out", tmp_path / "run")
    assert code == 0, err


def test_the_list_says_what_is_measured(install: Install, gan: Gan) -> None:
    install(CONTRAST)
    listed = " ".join(gan("plugins", "--verbose")[1].split())
    assert "metric contrast: contrast of images, higher is better" in listed
    install("METRIC = 3")
    assert "3 is no gancore.scoring.Metric" in gan("plugins", "--verbose")[1]


def test_it_gets_what_it_needs_of_features(install: Install) -> None:
    source = """
from gancore.scoring import Inputs, Metric, Value

NEEDS = {"features", "logits", "reference_features", "reference_statistics"}


def sizes(inputs: Inputs) -> dict[str, float]:
    real = inputs.reference_features
    mean, covariance = inputs.reference_statistics
    assert abs(real.double().mean(0).numpy() - mean).max() < 1e-5
    assert abs(real.double().T.cov().numpy() - covariance).max() < 1e-4
    sizes = [len(inputs.features), inputs.logits.shape[1], *real.shape, inputs.seed]
    return {"sizes": float(sizes == [20, 10, len(inputs.reference), 64, 4])}


METRIC = Metric({"sizes": Value("sizes", "higher")}, sizes, needs=NEEDS)
"""
    install(source, "sizes")
    found = score(
        digits().samples[:20], digits(), metrics=["sizes"], extractor_name="digits", seed=4
    )
    assert found.scores == {"sizes": 1.0}
    assert found.protocol.extractor == "digits"


def test_too_few_samples_by_its_own_word(install: Install) -> None:
    refusing = CONTRAST.replace(
        "contrast\n)", "contrast,\n    refuses=lambda counts: f'{counts}: take more')"
    )
    install(refusing)
    with pytest.raises(UnfitError, match="^20 generated and 1797 real: take more"):
        score(digits().samples[:20], digits(), metrics=["contrast"])


def test_the_documented_package_keeps_the_contract(install: Install) -> None:
    install(CONTRAST)
    check_metric(metric("contrast"))


def test_a_metric_of_both_kinds_goes_with_either() -> None:
    def away(inputs: Inputs) -> dict[str, float]:
        return {"away": 0.0}

    both = Metric({"away": Value("away", "lower")}, away, of="both")
    points = Dataset("points", torch.zeros(9, 2))
    assert both.takes(digits())
    assert both.takes(points)
    assert [metric("w2").takes(data) for data in (digits(), points)] == [False, True]
    assert [metric("kid").takes(data) for data in (digits(), points)] == [True, False]
    with pytest.raises(MissingError):
        metric("away")
