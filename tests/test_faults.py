"""Faults, for real: a killed process, a full disk, two runs in one folder, too little memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from helpers import DIGITS, Gan, parsed, records_of, scores_of, started
from test_experiment import assert_same_runs

from gancore.training import Run, run

OFTEN = {
    "generator": {"name": "dcgan", "width": 4},
    "critic": {"name": "dcgan", "width": 4},
    "plugin.1.name": "lecam",
    "plugin.2.name": "lazy",
    "plugin.2.every": 2,
    "plugin.2.targets": ["gp"],
    "train": {"steps": 20, "batch_size": 8, "critic_steps": 2, "ema": 0.9},
    "checkpoint": {"every": 1, "keep": 2},
    "sample": {"every": 5, "count": 4},
    "log.every": 1,
    "score.every": 10,
}
"""A run that has all that a run can lose."""

KILLS = 50 if "GANCORE_NIGHTLY" in os.environ else 5

KILLER = """
import os, random, signal, sys, time
import gancore.data.digits, gancore.scoring, gancore.training.session

gancore.data.digits.digits()  # what is slow, once: what is killed are forks of this process
gancore.scoring.extractor("digits")
gancore.training.session.plot_curves = lambda *records: None  # or most kills land in there

recipe, whole, killed, kills = sys.argv[1:]
moments = random.Random()

def start(out):
    pid = os.fork()
    if not pid:
        gancore.run(recipe, out=out, resume=True, device="cpu")
        os._exit(0)
    return pid

began = time.monotonic()
assert os.waitpid(start(whole), 0)[1] == 0
lasts = time.monotonic() - began
landed = 0
while landed < int(kills):
    pid = start(killed)
    # short lives: most of the kills fall into training and saving, some into opening
    time.sleep(moments.uniform(0, min(lasts, 3 * lasts / int(kills))))
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        break  # it had got to its end
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    landed += 1
assert os.waitpid(start(killed), 0)[1] == 0, "a folder that can't be resumed"
print("kills", landed)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "often.toml"
    path.write_text(tomli_w.dumps(parsed(DIGITS, **OFTEN).table()))
    return path


def command(recipe: Path, out: Path, *arguments: str) -> list[str]:
    return ["run", str(recipe), f"--out={out}", "--device=cpu", *arguments]


def test_a_run_killed_at_any_moment_resumes_to_the_same_end(recipe: Path, tmp_path: Path) -> None:
    """Weights, records, pictures and scores equal the uninterrupted run's, bit for bit."""
    script = tmp_path / "killer.py"
    script.write_text(textwrap.dedent(KILLER))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, script, recipe, whole, killed, str(KILLS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) >= 2
    one, other = Run.open(whole), Run.open(killed)
    assert_same_runs(one, other)
    assert scores_of(one) is not None
    assert scores_of(one) == scores_of(other)


@pytest.fixture(scope="module")
def short(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, to be copied."""
    out = tmp_path_factory.mktemp("runs") / "short"
    run(recipe, out, ["train.steps=3", "score.metrics=[]"], device="cpu")
    return out


@pytest.mark.parametrize("name", ["critic.safetensors", "plugins.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_run_whose_checkpoint_is_damaged_goes_on_from_the_one_before(
    recipe: Path, short: Path, gan: Gan, tmp_path: Path, name: str, how: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(short, out)
    path = out / "checkpoints" / "step-000003" / name
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole[:-1] if how == "cut" else whole)
    again = ["--resume", "--set=train.steps=3", "--set=score.metrics=[]"]
    code, told, err = gan(*command(recipe, out, *again))
    assert code == 0, err
    assert f"{name} is damaged" in told
    assert "Going on from step 2" in told
    assert_same_runs(Run.open(out), Run.open(short))


def test_another_plugin_set_is_refused_with_the_difference_unless_forced(
    recipe: Path, short: Path, gan: Gan, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(short, out)
    before = (out / "recipe.toml").read_bytes()
    other = ["--resume", "--no-plugin=lecam", "--set=train.steps=4", "--set=score.metrics=[]"]
    code, _, err = gan(*command(recipe, out, *other))
    assert code == 2
    assert "plugin.1.name: was 'lecam', is 'lazy'" in err
    assert "plugin.2.name: was 'lazy', is None" in err
    assert "--force" in err
    assert (out / "recipe.toml").read_bytes() == before
    code, _, err = gan(*command(recipe, out, *other, "--force"))
    assert code == 0, err
    assert [each.name for each in Run.open(out).read_recipe().plugin] == ["gp", "lazy"]
    assert records_of(Run.open(out))[-1]["step"] == 4
    assert "penalty/lecam" in records_of(Run.open(out))[-2]
    assert "penalty/lecam" not in records_of(Run.open(out))[-1]


def test_a_full_disk_is_told_and_nothing_is_lost(recipe: Path, short: Path, tmp_path: Path) -> None:
    """Files may not get larger than the least of a checkpoint's: every save fails half-way."""
    out = tmp_path / "run"
    longer = ["train.steps=5", "score.metrics=[]"]
    for copy in (out, tmp_path / "straight"):
        shutil.copytree(short, copy)
    saved = out / "checkpoints" / "step-000003" / "generator.safetensors"
    size = saved.stat().st_size // 2

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    resumed = command(recipe, out, "--resume", *(f"--set={each}" for each in longer))
    code, _, err = started(*resumed, preexec_fn=limit)
    assert code == 1
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert f"{out} can't be written to: File too large" in line
    assert "--resume" in line
    assert "Traceback" not in err
    one, other = (
        run(recipe, folder, longer, resume=True, device="cpu")
        for folder in (out, tmp_path / "straight")
    )
    assert_same_runs(one, other)


@pytest.fixture(params=[8])
def running(
    request: pytest.FixtureRequest, recipe: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run that goes on for long, some records in; the parameter is its batch size."""
    out = tmp_path / "run"
    batch = f"--set=train.batch_size={request.param}"
    endless = [
        batch,
        "--set=train.steps=1000000",
        "--set=score.metrics=[]",
        "--set=checkpoint.every=1000000",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "gancore", *command(recipe, out, *endless)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or not records_of(Run(out)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process, out
    process.kill()
    process.communicate()


def test_a_folder_is_one_runs_alone_until_it_ends_however_it_does(
    running: tuple[subprocess.Popen[str], Path], recipe: Path, gan: Gan
) -> None:
    process, out = running
    before = json.loads((out / "environment.json").read_text())
    code, _, err = gan(*command(recipe, out, "--resume"))
    assert code == 2
    assert f"{out} is in use by process {process.pid} on " in err
    assert "--out" in err
    assert process.poll() is None
    assert json.loads((out / "environment.json").read_text()) == before
    process.kill()
    process.wait()
    again = command(recipe, out, "--resume", "--set=train.steps=2", "--set=score.metrics=[]")
    assert gan(*again)[0] == 0


@pytest.mark.parametrize("running", [20_000], indirect=True)
def test_the_second_signal_exits_at_once(
    running: tuple[subprocess.Popen[str], Path],
) -> None:
    """Both come within one step, of seconds, so that the first alone could not have ended it."""
    process, out = running
    seen = len(records_of(Run(out)))
    while len(records_of(Run(out))) == seen:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM


def test_too_little_memory_is_told_with_a_size_and_a_hint(recipe: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))

    wide = ["--set=train.batch_size=1_000_000", "--set=generator.width=256"]
    code, _, err = started(*command(recipe, tmp_path / "run", *wide), preexec_fn=limit)
    assert code == 1
    assert "out of memory" in err
    assert "bytes" in err
    assert "train.batch_size" in err
    assert "Traceback" not in err
