"""Faults, for real: a killed process, a full disk, two runs in one folder, too little memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_experiment import assert_same_runs

from gancore.training import Run

RECIPE = """
[data]
name = "digits"
[generator]
name = "dcgan"
width = 4
[critic]
name = "dcgan"
width = 4
[loss]
name = "wasserstein"
[[plugin]]
name = "gp"
[[plugin]]
name = "lecam"
[[plugin]]
name = "lazy"
every = 2
targets = ["gp"]
[train]
steps = 40
batch_size = 8
critic_steps = 2
ema = 0.9
[checkpoint]
every = 1
keep = 2
[sample]
every = 5
count = 4
[log]
every = 1
[score]
metrics = ["fid"]
samples = 64
extractor = "digits"
every = 20
"""

KILLS = 50 if "GANCORE_NIGHTLY" in os.environ else 5

KILLER = """
import os, random, signal, sys, time
import gancore, gancore.training, gancore.scoring  # once: what is killed are forks of this

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
    path.write_text(RECIPE)
    return path


def command(recipe: Path, out: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "gancore", "run", str(recipe), f"--out={out}", *arguments]


def gan(
    recipe: Path, out: Path, *arguments: str, limit: Callable[[], None] | None = None
) -> tuple[int, str, str]:
    done = subprocess.run(
        command(recipe, out, *arguments),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    return done.returncode, done.stdout, done.stderr


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
    assert one.scores is not None
    assert one.scores == other.scores


def test_a_full_disk_is_told_and_nothing_is_lost(recipe: Path, tmp_path: Path) -> None:
    """Files may not get larger than the least of a checkpoint's: every save fails half-way."""
    out = tmp_path / "run"
    short = ["--set=train.steps=2", "--set=score.metrics=[]"]
    longer = ["--resume", "--set=train.steps=4", "--set=score.metrics=[]"]
    assert gan(recipe, out, *short)[0] == 0
    (saved,) = [each for each in (out / "checkpoints").iterdir() if each.name == "step-000002"]
    size = (saved / "generator.safetensors").stat().st_size // 2

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    code, _, err = gan(recipe, out, *longer, limit=limit)
    assert code == 1
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert f"{out} can't be written to: File too large" in line
    assert "--resume" in line
    assert "Traceback" not in err
    assert gan(recipe, out, *longer)[0] == 0
    straight = tmp_path / "straight"
    assert gan(recipe, straight, *short)[0] == 0
    assert gan(recipe, straight, *longer)[0] == 0
    assert_same_runs(Run.open(out), Run.open(straight))


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
        "--set=checkpoint.every=500",
    ]
    process = subprocess.Popen(
        command(recipe, out, *endless), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or not Run(out).records:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process, out
    process.kill()
    process.communicate()


def test_a_folder_is_one_runs_alone_until_it_ends_however_it_does(
    running: tuple[subprocess.Popen[str], Path], recipe: Path
) -> None:
    process, out = running
    before = json.loads((out / "environment.json").read_text())
    code, _, err = gan(recipe, out, "--resume")
    assert code == 2
    assert f"{out} is in use by process {process.pid} on " in err
    assert "--out" in err
    assert process.poll() is None
    assert json.loads((out / "environment.json").read_text()) == before
    process.kill()
    process.wait()
    assert gan(recipe, out, "--resume", "--set=train.steps=2", "--set=score.metrics=[]")[0] == 0


@pytest.mark.parametrize("running", [20_000], indirect=True)
def test_the_second_signal_exits_at_once(
    running: tuple[subprocess.Popen[str], Path],
) -> None:
    """Both come within one step, of seconds, so that the first alone could not have ended it."""
    process, out = running
    seen = len(Run(out).records)
    while len(Run(out).records) == seen:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM


def test_too_little_memory_is_told_with_a_size_and_a_hint(recipe: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))

    wide = ["--set=train.batch_size=1_000_000", "--set=generator.width=256"]
    code, _, err = gan(recipe, tmp_path / "run", *wide, limit=limit)
    assert code == 1
    assert "out of memory" in err
    assert "bytes" in err
    assert "train.batch_size" in err
    assert "Traceback" not in err
