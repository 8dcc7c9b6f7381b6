"""Threads and machines: a resumed run computes as it did, or says that it can't."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import TOY, Gan, environment_of, parsed, trainer
from processes import together

import gancore
from gancore import hookimpl, plugin
from gancore.errors import InputError
from gancore.provenance.environment import Stretch, unlike
from gancore.provenance.machine import kind_of_machine, on_threads
from gancore.report import Display

TRAIN = {"steps": 3, "batch_size": 8}
ROUNDING = "what follows equals an uninterrupted run to rounding only, not bit for bit"


@plugin
class Threads:
    """Notes on how many threads the updates are made."""

    seen: list[int] = field(init=False, default_factory=list)

    @hookimpl
    def post_step(self) -> None:
        self.seen.append(torch.get_num_threads())


class Told(Display):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


REAL = torch.get_num_threads, torch.set_num_threads


@pytest.fixture(autouse=True)
def numbers_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Count threads but have one, as several are slow where tests share the cores.

    Every test ends on the one that it began on, by itself.
    """
    count = [1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: count[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: count.__setitem__(0, number))
    yield
    assert count == [1]
    assert REAL[0]() == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of three updates on two threads."""
    made(tmp_path / "run", 3, threads=2)
    return tmp_path / "run"


def made(folder: Path, steps: int, **options: Any) -> tuple[list[int], list[str]]:
    """Make or go on with a run; return the threads of its updates, and what was told."""
    probe, told = Threads(), Told()
    built = trainer(train={**TRAIN, "steps": steps}, plugins=[probe])
    built.run(folder, display=told, **options)
    return probe.seen, told.lines


def rewritten(folder: Path, **changes: Any) -> None:
    path = folder / "environment.json"
    table = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))


def recorded(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "environment.json").read_text())
    return table


def test_a_resumed_run_takes_its_threads_again_and_gives_them_back(folder: Path) -> None:
    assert recorded(folder)["threads"] == 2
    seen, told = made(folder, 5, resume=True)
    assert seen == [2, 2]
    assert told == ["threads: 2 as so far, instead of 1"]
    assert recorded(folder)["threads"] == 2
    with on_threads(2):
        assert made(folder, 6, resume=True) == ([2], [])
        assert torch.get_num_threads() == 2


def test_torch_itself_computes_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", REAL[0])
    monkeypatch.setattr(torch, "set_num_threads", REAL[1])
    seen = []

    @plugin
    class Info:
        @hookimpl
        def post_step(self) -> None:
            seen.append("omp_get_max_threads() : 2" in torch.__config__.parallel_info())

    def one(steps: int, **options: Any) -> None:
        train = {**TRAIN, "steps": steps, "batch_size": 2}
        trainer(train=train, plugins=[Info()]).run(tmp_path / "run", **options)

    one(1, threads=2)
    one(2, resume=True)
    assert seen == [True, True]
    monkeypatch.undo()


def test_other_threads_go_before_where_they_are_forced(folder: Path) -> None:
    with pytest.raises(InputError, match=r"\n  threads: was 2, is 1\n.*by --force"):
        made(folder, 4, resume=True, threads=1)
    assert recorded(folder)["threads"] == 2
    assert made(folder, 4, resume=True, threads=2) == ([2], [])
    told = f"threads: 1 instead of 2 so far: {ROUNDING}"
    assert made(folder, 5, resume=True, threads=1, force=True) == ([1], [told])
    assert made(folder, 6, resume=True) == ([1], [])
    assert made(folder, 7, resume=True, threads=3, force=True)[0] == [3]


@pytest.mark.parametrize("count", [0, 10**6, 2**63 - 1])
def test_threads_that_can_t_be_had_are_told(folder: Path, count: int) -> None:
    rewritten(folder, threads=count)
    told = f"threads: {count} so far, which can't be had here: {ROUNDING}"
    assert made(folder, 4, resume=True) == ([1], [told])


def test_a_run_that_does_not_say_on_what_it_was_made_goes_on(folder: Path) -> None:
    path = folder / "environment.json"
    strange = json.dumps({**recorded(folder), "cpu": "\x1b[2J"})
    for content in ("{", '{"threads": "2"}', strange, None):
        path.unlink()
        if content is not None:
            path.write_text(content)
        seen, told = made(folder, 4, resume=True)
        assert (seen, len(told)) == ([1] if content == "{" else [], 1)
        assert told[0].startswith("threads and machine of the run so far are not known: ")
        assert "environment.json" in told[0]
        assert told[0].isprintable()
    assert made(folder, 5, resume=True) == ([1], [])


def test_what_a_run_was_made_on_is_recorded_and_compared(folder: Path) -> None:
    assert kind_of_machine().items() <= recorded(folder).items()
    with on_threads(2):
        assert made(folder, 4, resume=True)[1] == []
        capability = recorded(folder)["cpu_capability"]
        assert capability in torch.__config__.show()
        versions = recorded(folder)["versions"]
        rewritten(
            folder,
            cpu="Another",
            blas=None,
            cpu_capability=capability,
            versions={**versions, "torch": "1.0"},
        )
        (line,) = made(folder, 5, resume=True)[1]
    assert line == (
        "this is not the kind of machine that the run was made on so far, or not known to be ("
        f"torch: was '1.0', is {versions['torch']!r}; "
        f"cpu: was 'Another', is {kind_of_machine()['cpu']!r}; "
        f"blas: not recorded, is {kind_of_machine()['blas']!r}): {ROUNDING}"
    )


def test_kinds_of_machines() -> None:
    here = Stretch(
        **{"device": "cuda:0", "versions": {"torch": "2.5"}, "cpu": "A", "threads": 1},
        **{"plugins": {}, "python": "3.12", "platform": "p", "device_name": "", "git": None},
    )

    def there(**changes: Any) -> Stretch:
        return here.model_copy(update=changes)

    assert unlike(here, there(device="cuda:1", threads=2, python="3.99")) == []
    assert unlike(here, there(device="cpu")) == ["device: was 'cuda', is 'cpu'"]
    assert unlike(here, there(versions={"torch": "2.6"})) == ["torch: was '2.5', is '2.6'"]
    for key in ("device_name", "cpu", "cpu_capability", "blas", "float32"):
        assert unlike(there(**{key: "x"}), there(**{key: "y"})) == [f"{key}: was 'x', is 'y'"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nmodel name\t: A CPU: B\n\nprocessor\t: 1\nmodel name\t: C\n", "A CPU: B"),
        (
            "processor: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\nCPU revision: 1\n",
            "0x41 0xd0c",
        ),
        ("", None),
        (None, None),
    ],
)
def test_the_cpu_is_named(
    monkeypatch: pytest.MonkeyPatch, text: str | None, expected: str | None
) -> None:
    is_file, read_text = Path.is_file, Path.read_text
    info = Path("/proc/cpuinfo")
    given = {info: text}
    monkeypatch.setattr(
        Path, "is_file", lambda path: given[path] is not None if path in given else is_file(path)
    )
    monkeypatch.setattr(
        Path, "read_text", lambda path, *a, **b: given.get(path) or read_text(path, *a, **b)
    )
    if text == "":
        given[info] = "\n"
    cpu = kind_of_machine()["cpu"]
    assert cpu == expected if expected else cpu
    assert re.fullmatch(r"(mkl|open|accelerate|\w+)(, .+)*", kind_of_machine()["blas"])


@pytest.mark.parametrize("wrong", [0, -1, 1025, True, 1.5, "2"])
def test_a_number_of_threads_is_one(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(InputError, match="threads is .*, expected a whole number from 1 to 1,024"):
        made(tmp_path / "run", 1, threads=wrong)
    assert not (tmp_path / "run").exists()
    for most in (1, 1024):
        with on_threads(most):
            assert torch.get_num_threads() == most


def test_threads_come_back_whatever_happens(tmp_path: Path) -> None:
    @plugin
    class Change:
        @hookimpl
        def post_step(self, update: int) -> None:
            torch.set_num_threads(2)
            if update == 1:
                raise ZeroDivisionError

    for threads, steps in ((None, 1), (3, 1), (3, 3)):
        built = trainer(train={**TRAIN, "steps": steps}, plugins=[Change()])
        try:
            built.run(tmp_path / f"{threads}-{steps}", threads=threads)
        except ZeroDivisionError:
            assert steps == 3
        assert torch.get_num_threads() == 1


def test_gancore_run_builds_and_trains_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = gancore.run(parsed(TOY), tmp_path / "run", threads=2, device="cpu")
    assert environment_of(run)["threads"] == 2
    seen = []
    build = gancore.training.building.build_trainer

    def noting(*arguments: Any, **options: Any) -> Any:
        seen.append(torch.get_num_threads())
        return build(*arguments, **options)

    monkeypatch.setattr(gancore.training.building, "build_trainer", noting)
    with pytest.raises(InputError, match="threads: was 2, is 3"):
        gancore.run(parsed(TOY), tmp_path / "run", threads=3, device="cpu", resume=True)
    assert seen == [3]


def test_the_commands_that_compute_take_them(
    gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = tmp_path / "toy.toml", tmp_path / "run"
    recipe.write_text(TOY)
    to, cpu = ["--out", run], ["--device", "cpu"]
    assert gan("run", recipe, *to, *cpu, "--threads", 2)[0] == 0
    assert recorded(run)["threads"] == 2
    code, _, err = gan("run", recipe, *to, *cpu, "--resume", "--threads", 3)
    assert (code, "threads: was 2, is 3" in err) == (2, True)
    assert gan("run", recipe, *to, *cpu, "--resume", "--threads", 3, "--force")[0] == 0
    assert recorded(run)["threads"] == 3
    seen = []

    def noting(*arguments: Any, **options: Any) -> Any:
        seen.append(torch.get_num_threads())
        raise InputError("seen")

    for command, computes in {
        ("score", run): "gancore.training.score_run",
        ("sample", run, "--out", tmp_path / "x.npz"): "gancore.training.loading.Loader.generator",
        ("report", run): "gancore.report.writer.write_report",
        ("bench", recipe): "gancore.cost.measure",
    }.items():
        monkeypatch.setattr(computes, noting)
        assert gan(*command, *cpu, "--threads", 2)[::2] == (2, "error: seen\n")
        assert torch.get_num_threads() == 1
        assert "--threads" in gan(*command, *cpu, "--threads", 0)[2]
    assert seen == [2] * 4


def test_all_processes_take_the_threads_of_the_run(tmp_path: Path) -> None:
    made(tmp_path / "run", 1)
    rewritten(tmp_path / "run", threads=3)

    def work() -> tuple[list[int], int]:
        torch.set_num_threads(1 + dist.get_rank())
        seen, _ = made(tmp_path / "run", 3, resume=True, force=True)
        return seen, torch.get_num_threads()

    assert together(work, tmp_path) == [([3, 3], 1), ([3, 3], 2)]
    assert recorded(tmp_path / "run")["threads"] == 3
