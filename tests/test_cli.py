"""The command line as its users have it: exit codes, what is printed and written.

Each command is started once in a process of its own; else it is called in this one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from helpers import DIGITS, ROOT, TOY, Gan, Pictures, parsed, started
from PIL import Image
from torch_fidelity import calculate_metrics

from gancore.cli.tables import show_scores
from gancore.data.digits import digits
from gancore.report import save_images
from gancore.scoring import extractor
from gancore.scoring.protocol import Protocol, RealSamples, Scores

RECIPE = tomli_w.dumps(
    parsed(DIGITS, **{"train.steps": 6, "log.every": 2, "score.metrics": ["fid", "isc"]}).table()
)


after_a_run = pytest.mark.xdist_group("finished run")  # in one process: it is made once


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def done(recipe: Path) -> tuple[Path, str]:
    """A finished run in its default folder, and what it printed."""
    code, out, err = started("run", recipe, "--seed", 3, cwd=recipe.parent)
    assert code == 0, err
    return recipe.parent / "runs" / "tiny-seed3", out


@after_a_run
def test_run_prints_plain_lines_that_end_in_scores(done: tuple[Path, str]) -> None:
    folder, out = done
    assert "\x1b" not in out
    assert "\r" not in out
    steps = re.findall(
        r"^step (\d+)/6 .*D\(real\)−D\(fake\) \S+ penalty/gp .*critic_grad_norm", out, re.M
    )
    assert steps == ["1", "2", "4", "6"]
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    assert f"FID (digits features)  {scores['fid']:.4g}" in out
    assert f"Inception Score (digits features)  {scores['isc']:.4g} ±" in out
    assert "in runs/tiny-seed3" in out


@after_a_run
def test_run_folder(done: tuple[Path, str]) -> None:
    folder, _ = done
    for name in ("recipe.toml", "environment.json", "metrics.jsonl", "curves.png", "scores.json"):
        assert (folder / name).is_file()
    with Image.open(folder / "samples" / "step-000006.png") as grid:
        assert grid.size == (8 * 66 + 2, 8 * 66 + 2)
    with Image.open(folder / "curves.png") as curves:
        assert np.asarray(curves).std() > 10


@after_a_run
@pytest.mark.usefixtures("done")
def test_run_again_is_refused_and_resume_is_content(
    recipe: Path, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe.parent)
    code, _, err = gan("run", recipe, "--seed", 3)
    assert code == 2
    assert "--resume" in err
    code, out, err = gan("run", recipe, "--seed", 3, "--resume")
    assert code == 0, err
    assert "FID" in out


@after_a_run
def test_score_repeats_the_scores_and_adds_others(done: tuple[Path, str], gan: Gan) -> None:
    folder, _ = done
    before = json.loads((folder / "scores.json").read_text())
    code, out, err = started("score", folder, "--metrics", "fid,kid,prc")
    assert code == 0, err
    after = json.loads((folder / "scores.json").read_text())
    assert after["protocol"] == before["protocol"]
    assert before["scores"].items() <= after["scores"].items()
    assert {"kid", "kid_std", "precision", "recall"} <= after["scores"].keys()
    assert "KID (digits features)" in out
    code, _, err = gan("score", folder, "--metrics", "fid,is")
    assert code == 2
    assert "score.metrics: no metric 'is' is installed. Did you mean 'isc'?" in err


@after_a_run
def test_sample_in_three_forms(done: tuple[Path, str], gan: Gan, tmp_path: Path) -> None:
    folder, _ = done
    for how, out in ((started, "samples.npz"), (gan, "grid.png"), (gan, "pictures")):
        code, _, err = how("sample", folder, "-n", 20, "--out", tmp_path / out)
        assert code == 0, err
    array = np.load(tmp_path / "samples.npz")["arr_0"]
    assert array.shape == (20, 8, 8, 1)
    assert array.dtype == np.uint8
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert len(pictures) == 20
    for path, pixels in zip(pictures, array, strict=True):
        with Image.open(path) as picture:
            assert np.array_equal(np.asarray(picture), pixels[:, :, 0])
    with Image.open(tmp_path / "grid.png") as grid:
        assert np.array_equal(np.asarray(grid)[2:66:8, 2:66:8, 0], array[0, :, :, 0])


@after_a_run
def test_sample_tells_a_long_calibration_and_repeats_its_bytes(
    done: tuple[Path, str], gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gancore.training.loading import Loader

    def slow(*args: Any, progress: Any, **options: Any) -> Any:
        progress("calibrating", 7, 16)
        return load(*args, progress=progress, **options)

    load = Loader.generator
    monkeypatch.setattr(Loader, "generator", slow)
    for name in ("one.npz", "two.npz"):
        code, out, err = gan("sample", done[0], "-n", 9, "--out", tmp_path / name)
        assert (code, out) == (0, f"9 samples in {tmp_path / name}\n")
        assert "calibrating 7/16\n" in err
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


@after_a_run
def test_the_scores_of_a_run_are_those_of_its_exported_pictures(
    done: tuple[Path, str], gan: Gan, tmp_path: Path
) -> None:
    """torch-fidelity itself, on what `gan sample` writes."""
    folder, _ = done
    fake = tmp_path / "fake.v1"
    fake.mkdir()  # a folder that is there may have any name
    code, _, err = gan("sample", folder, "-n", 64, "--out", fake)
    assert code == 0, err
    save_images(digits().samples, tmp_path / "real")
    extractor("digits")
    theirs = calculate_metrics(
        input1=Pictures(fake),
        input2=Pictures(tmp_path / "real"),
        feature_extractor="gancore-digits",
        fid=True,
        isc=True,
        kid=True,
        kid_subset_size=64,
        rng_seed=3,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    code, _, err = gan("score", folder, "--metrics", "fid,isc,kid")
    assert code == 0, err
    ours = json.loads((folder / "scores.json").read_text())["scores"]
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours["isc"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)


def test_no_plugin_and_set(recipe: Path, gan: Gan, tmp_path: Path) -> None:
    code, out, err = gan(
        "run", recipe, "--no-plugin", "gp", "--set", "score.metrics=[]", "--out", tmp_path / "run"
    )
    assert code == 0, err
    assert "penalty/gp" not in out
    assert "FID" not in out
    code, _, err = gan("run", recipe, "--no-plugin", "gpp")
    assert code == 2
    assert "Did you mean 'gp'" in err


def test_dry_run_writes_nothing(
    recipe: Path, gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = gan("run", recipe, "--dry-run")
    assert code == 0, err
    assert list(tmp_path.iterdir()) == []
    for text in ("weight = 10.0", "critic: MLPCritic,", "1,797 of (1, 8, 8)", "gp (gancore-gp"):
        assert text in out
    assert re.search(r"memory: [\d,]+ MiB", out)
    assert re.search(r"time: \d+ ms a step", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.toml"], "nowhere.toml: can't be read"),
        (
            ["run", "RECIPE", "--set", "train.setps=3"],
            "train.setps: unknown key. Did you mean 'steps'",
        ),
        (
            ["run", "RECIPE", "--set", "plugin.0.weight=x"],
            "weight: expected a valid number, got 'x'",
        ),
        (
            ["run", "RECIPE", "--set", "steps=3"],
            "override 'steps': there is no such key. Did you mean 'train.steps'?\n",
        ),
        (
            ["run", "RECIPE", "--set", "every=3"],
            "'checkpoint.every' or 'log.every' or 'sample.every' or 'score.every'?\n",
        ),
        (["run", "RECIPE", "--set", "as=3"], "as: unknown key. Known: "),
        (["run", "RECIPE", "--set", "data.name=celeba"], "no dataset 'celeba' is installed"),
        (["score", "nowhere"], "nowhere is no run folder"),
        (["sample", "nowhere", "--out", "x.jpg"], "ends in .npz or .png"),
        (["rnu"], "Did you mean 'run'"),
        (["plugins", "lst"], "no command 'lst'. Did you mean 'list'?"),
        (["recipe", "chekc"], "no command 'chekc'. Did you mean 'check'?"),
        (["run"], "Missing argument 'RECIPE'"),
        pytest.param(
            ["run", "RECIPE", "--device", "cuda"],
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_a_users_mistake_is_one_clear_line_and_exit_2(
    arguments: list[object],
    message: str,
    recipe: Path,
    gan: Gan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [recipe if each == "RECIPE" else each for each in arguments]
    monkeypatch.chdir(tmp_path)
    code, out, err = gan(*given)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_exits_1_and_names_the_term(recipe: Path, gan: Gan, tmp_path: Path) -> None:
    code, _, err = gan(
        "run",
        recipe,
        "--set",
        "optimizer.lr=1e3",
        "--out",
        tmp_path / "run",
        "--set",
        "train.steps=200",
        "--set",
        "plugin.0.weight=1e30",
    )
    assert code == 1
    assert re.search(r"error: \S+ is (nan|inf|-inf) at update \d+", err)
    assert "Traceback" not in err


def test_recipe_check() -> None:
    recipes = sorted((ROOT / "recipes").glob("*.toml"))
    code, out, err = started("recipe", "check", *recipes)
    assert code == 0, err
    assert len(out.splitlines()) == len(recipes)


def test_recipe_check_tells_all_faults(recipe: Path, gan: Gan, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(DIGITS.replace('name = "gp"', 'name = "gp"\nwieght = 3'))
    worse = tmp_path / "worse.toml"
    worse.write_text("[data\n")
    code, out, err = gan("recipe", "check", bad, recipe, worse)
    assert code == 2
    assert f"{recipe}: valid" in out
    assert f"{bad}: plugin.0: wieght: unknown key. Did you mean 'weight'?" in err
    assert f"{worse}:1:6: " in err


def test_recipe_check_says_which_data_are_not_here(gan: Gan, tmp_path: Path) -> None:
    """As it says which packages are not: that is no fault of the recipe."""
    path, folder = tmp_path / "images.toml", tmp_path / "images"
    text = DIGITS.replace('"digits"\n', f'"folder"\npath = "{folder}"\n', 1)
    path.write_text(text)
    said = f"{path}: valid; data.path: there is no file or folder {folder} here\n"
    assert gan("recipe", "check", path) == (0, said, "")
    folder.mkdir()
    assert gan("recipe", "check", path) == (0, f"{path}: valid\n", "")


def test_overrides_of_a_board_as_a_table_are_told(recipe: Path, gan: Gan, tmp_path: Path) -> None:
    text = f'recipe = "{recipe}"\nbaseline = "a"\nseeds = [0]\n[[entry]]\nname = "a"\n'
    (tmp_path / "board.toml").write_text(f"{text}[entry.set]\n'train.steps' = 2\n")
    code, _, err = gan("leaderboard", tmp_path / "board.toml", "--out", tmp_path / "out")
    assert code == 2
    assert 'entry.0.set: expected a list of overrides, such as ["train.steps=200"]' in err


def test_recipe_schema_is_json_schema() -> None:
    code, out, _ = started("recipe", "schema")
    assert code == 0
    schema = json.loads(out)
    assert set(schema["required"]) == {"data", "generator", "critic", "loss", "train"}
    assert schema["$defs"]["PluginSection"]["properties"]["as"]


def test_plugins(gan: Gan) -> None:
    code, out, _ = started("plugins")
    assert code == 0
    assert re.search(r"^gp +0\.1\.0 +gancore-gp *$", out, re.M)
    rows = {row["name"]: row for row in json.loads(gan("plugins", "--json", "--verbose")[1])}
    assert {"clip", "gp", "lazy", "r1", "r2", "sn", "hinge", "wasserstein"} <= rows.keys()
    assert rows["gp"]["hooks"] == ["penalty"]
    assert rows["gp"]["options"]["weight"] == "float > 0 = 10.0"
    assert rows["clip"]["conflicts"] == ["sn"]
    verbose = gan("plugins", "--verbose")[1]
    assert "weight: float > 0 = 10.0" in verbose
    assert "\x1b" not in verbose


def test_plugins_check(gan: Gan) -> None:
    options = ["--options", "weight=2", "--options", "target=0"]
    code, out, err = started("plugins", "check", "gp", *options)
    assert code == 0, err
    assert re.search(r"^finite-differences +passed +largest error", out, re.M)
    assert re.search(r"\d+ checks, 0 failed", out)
    assert "\x1b" not in out
    code, _, err = gan("plugins", "check", "gp", "--options", "wieght=2")
    assert code == 2
    assert "--options: wieght: unknown key. Did you mean 'weight'?" in err
    code, _, err = gan("plugins", "check", "gp", "--options", "weight=")
    assert code == 2
    assert "--options weight=: expected a value; for the default leave it out" in err
    code, _, err = gan("plugins", "check", "tensorboard", "--options=folder=0x10", "--options=x=1")
    assert code == 2
    assert err.splitlines() == ["error: --options: x: unknown key. Known: folder."]  # which is text
    code, _, err = gan("plugins", "check", "pg1")
    assert code == 2
    assert "no plugin 'pg1' is installed" in err


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two distributions: one whose penalty is dead, one that can't be imported."""
    (tmp_path / "dead.py").write_text(
        "from gancore import hookimpl, plugin\n\n\n@plugin\nclass Dead:\n"
        '    """Nothing [red]at all[/red]."""\n\n    @hookimpl\n    def penalty(self, step):\n'
        "        return step.scores(step.real).mean().detach()\n"
    )
    (tmp_path / "worse.py").write_text("raise SystemExit('no [licence]')\n")
    for name in ("dead", "worse"):
        info = tmp_path / f"{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(
            f"[gancore.plugins]\n{name} = {name}:{name.title()}\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("dead", None)


@pytest.mark.usefixtures("broken")
def test_plugins_check_fails_a_broken_one(gan: Gan) -> None:
    code, out, err = gan("plugins", "check", "dead")
    assert code == 1, err
    assert re.search(r"^gradient +failed +the value has no graph", out, re.M)


@pytest.mark.usefixtures("broken")
def test_a_broken_import_is_shown_and_others_keep_working(gan: Gan) -> None:
    code, out, _ = gan("plugins", "--verbose")
    assert code == 0
    assert re.search(r"^worse +worse==1\.5\n.*SystemExit: no \[licence\]", out, re.M)
    assert "λ·E[(‖∇D(x̂)‖₂" in out
    assert "Nothing [red]at all[/red]." in out
    assert gan("plugins")[0] == 0
    code, out, _ = gan("doctor")
    assert code == 1
    assert "plugin worse (worse 1.5) can't be imported: SystemExit" in out


WICKED = "\x1b[31m[bold red]:skull:\x9b2J\u202e"
"""Red, in two ways, and more that a terminal or a library obeys."""


@pytest.fixture
def wicked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a plugin all of whose texts are wicked; another such can't be imported."""
    source = f"""
from typing import ClassVar
from gancore import hookimpl, plugin

@plugin
class Odd:
    {"Summary " + WICKED!r}
    conflicts: ClassVar[tuple[str, ...]] = ({"conflict " + WICKED!r},)
    text: str = {"default " + WICKED!r}

    @hookimpl
    def penalty(self, step):
        raise ValueError({"reason " + WICKED!r})
"""
    (tmp_path / "odd.py").write_text(source)
    (tmp_path / "broken.py").write_text(f"raise ImportError({WICKED!r})\n")
    about = f"Name: {{}}{WICKED}\nVersion: 1{WICKED}\nSummary: {WICKED}\nAuthor: {WICKED}\n"
    for name in ("odd", "broken"):
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{about.format(name)}")
        point = f"[gancore.plugins]\n{name}{WICKED} = {name}:{name.title()}\n"
        (info / "entry_points.txt").write_text(point)
    monkeypatch.syspath_prepend(tmp_path)
    yield f"odd{WICKED}"
    sys.modules.pop("odd", None)


def is_tame(out: str, *names: str) -> bool:
    """Whether nothing printed moves a cursor, and after each name all wicked characters show."""
    joined = "".join(out.split())
    return all(line.isprintable() for line in out.split("\n")) and all(
        rf"{name}\x1b[31m[boldred]:skull:\x9b2J\u202e" in joined for name in names
    )


def test_texts_of_other_distributions_are_text_in_a_terminal(wicked: str, gan: Gan) -> None:
    """No control character of theirs arrives there, no markup is obeyed."""
    code, out, _ = gan("plugins")
    assert code == 0
    assert is_tame(out, "odd", "1", "broken")
    code, out, _ = gan("plugins", "--verbose")
    assert code == 0
    assert is_tame(out, "odd", "==1", "Summary", "conflict", "text:str='default", "ImportError:")
    code, out, _ = gan("plugins", "--json", "--verbose")
    assert is_tame(out)
    (row,) = [row for row in json.loads(out) if row["name"] == wicked]
    assert row["summary"] == f"Summary {WICKED}"
    assert row["version"] == f"1{WICKED}"
    code, out, _ = gan("plugins", "check", wicked)
    assert code == 1
    assert is_tame(out, "odd", "(odd", "reason")


def test_paths_and_names_are_text_in_a_terminal(
    gan: Gan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"good{WICKED}").write_text(TOY)
    (tmp_path / f"bad{WICKED}").write_text("x = 1\ny = 2\n")
    code, out, err = gan("recipe", "check", *tmp_path.iterdir(), tmp_path / f"none{WICKED}")
    assert code == 2
    assert is_tame(out, "good")
    assert is_tame(err, "bad", "none")
    assert err.count(str(tmp_path)) == len(err.splitlines())
    reference = RealSamples.model_construct(
        **{"name": f"data{WICKED}", "split": f"split{WICKED}", "samples": 2}
    )
    protocol = Protocol.model_construct(reference=reference, samples=2, seed=0)
    show_scores(Scores.model_construct(scores={"w2": 1.0}, protocol=protocol))
    assert is_tame(capsys.readouterr().out, "data", "split")


def test_plugins_new(tmp_path: Path) -> None:
    code, out, err = started("plugins", "new", "my_idea", cwd=tmp_path)
    assert code == 0, err
    assert "gan plugins check my_idea" in out
    assert (tmp_path / "gancore-my-idea" / "pyproject.toml").is_file()
    code, _, err = started("plugins", "new", "my_idea", cwd=tmp_path)
    assert code == 2
    assert "is there already" in err


def test_doctor() -> None:
    code, out, err = started("doctor")
    assert code == 0, err
    assert f"torch {torch.__version__.split('+')[0]}" in out
    assert "plugin gp (gancore-gp 0.1.0): ok" in out


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["run", "--help"], ["--version"]])
def test_nothing_heavy_is_imported_by_what_does_not_compute(arguments: list[str]) -> None:
    code = (
        "import sys; from gancore.cli import gan\n"
        f"gan.main({arguments}, standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_saves_and_exits_0(
    recipe: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gancore",
            "run",
            recipe,
            "--out",
            folder,
            "--set",
            "train.steps=100000",
            "--set",
            "log.every=10",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"stopped by {number.name}" in out
    assert "--resume" in out
    (saved,) = (folder / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) > 0
