"""A Ray cluster that makes the runs of a board: the same ones, wherever there is room for them.

Ray is imported by what connects to it alone. A run whose node is lost is made again on another,
from its last checkpoint where the nodes share the board's folder.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gancore.cost import Cost
from gancore.errors import GancoreError, InputError, RunError
from gancore.files.writing import delete, make_folder, write_text
from gancore.leaderboard.costs import measure_here
from gancore.leaderboard.job import POLL, Job, Watch, interruptible, left_to_do
from gancore.leaderboard.remote import Order, Outcome, make_run, unpack
from gancore.recipe import Recipe
from gancore.text import shown
from gancore.training.building import resolve

RETRIES = 5
"""How often a run is made again when its node is lost."""

CONNECT = 30.0
"""Seconds within which a cluster has to answer."""

STOP = 120.0
"""Seconds in which the runs that go on have to save when the board is stopped."""

PROBE = """
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
except BaseException as error:
    sys.exit(" ".join(str(error).split()))
"""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster: an `Executor`.

    parallel  runs that it is given at a time, at most; it makes as many as it has room for
    gpus      of each run
    """

    ray: Any
    parallel: int | None
    threads: int
    gpus: float
    device: str
    tell: Callable[[str], None]

    @property
    def where(self) -> str:
        """What costs depend on beside the recipes."""
        return f"{self.device} on Ray"

    def measure(self, recipes: Mapping[str, Recipe]) -> dict[str, Cost]:
        """Measure costs on a node; see `Executor`. Raises RunError."""
        tables = {name: resolve(recipe) for name, recipe in recipes.items()}
        self._tell_of_no_room()
        task = self._remote(_measure)
        try:
            found: dict[str, Cost] = self.ray.get(task.remote(tables, self.threads, self.device))
        except self.ray.exceptions.RayError as error:
            raise RunError(
                f"a node of the cluster can't measure costs: {shown(self._reason(error), 1000)}. "
                "--no-cost leaves them out"
            ) from error
        return found

    def sweep(self, jobs: Sequence[Job], watch: Watch) -> None:
        """Make the runs; see `Executor`."""
        waiting = left_to_do(jobs)
        if waiting:
            self._tell_of_no_room()
            shared = _token(waiting[0].path.parent)
            with interruptible() as stopped, shared as token:
                self._make(jobs, waiting, token, stopped, watch)
            if stopped:
                raise KeyboardInterrupt
        watch(jobs)

    def _make(
        self,
        jobs: Sequence[Job],
        waiting: list[Job],
        token: tuple[str, str],
        stopped: list[int],
        watch: Watch,
    ) -> None:
        task, begun = self._remote(_make_run), self._begun()
        sent: dict[Any, Job] = {}
        nodes: dict[Job, str] = {}
        try:
            while (waiting or sent) and not stopped:
                while waiting and (self.parallel is None or len(sent) < self.parallel):
                    job = waiting.pop(0)
                    job.prepare()
                    sent[task.remote(self._order(job, token), begun)] = job
                ready, _ = self.ray.wait(list(sent), num_returns=len(sent), timeout=POLL)
                self._look(sent, begun, nodes)
                for each in ready:
                    job = sent.pop(each)
                    self._finish(job, each, nodes.get(job))
                watch(jobs)
        finally:
            for each in sent:
                self.ray.cancel(each)  # a KeyboardInterrupt in the task: the run saves
            deadline = time.monotonic() + STOP
            while sent and len(stopped) < 2 and time.monotonic() < deadline:
                _, left = self.ray.wait(list(sent), num_returns=len(sent), timeout=POLL)
                if not left:
                    break
            for job in sent.values():
                job.state = "waiting"
            watch(jobs)

    def _order(self, job: Job, token: tuple[str, str]) -> Order:
        path = job.path.absolute()
        return Order(job.recipe, path, token, job.about, self.threads, self.device)

    def _remote(self, function: Callable[..., Any]) -> Any:
        """Return the function as a task that has a run's resources, for itself alone."""
        return self.ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=RETRIES)(
            function
        )

    def _begun(self) -> Any:
        """Start the book of the tasks that have begun, on this machine, which is not to be lost."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = self.ray.get_runtime_context().get_node_id()
        there = NodeAffinitySchedulingStrategy(here, soft=True)
        book = self.ray.remote(num_cpus=0, max_restarts=-1)(Begun)
        return book.options(scheduling_strategy=there).remote()

    def _look(self, sent: Mapping[Any, Job], begun: Any, nodes: dict[Job, str]) -> None:
        """Set the states of runs that are not done: waiting, until a node that lives has one."""
        try:
            now = self.ray.get(begun.nodes.remote(), timeout=5)
        except self.ray.exceptions.RayError:
            return  # at the next look, then
        alive = {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}
        for job in sent.values():
            node = now.get(str(job.path.absolute()))
            if job.state == "running" and (node not in alive or node != nodes[job]):
                self._tell_lost(job)
                job.state = "waiting"
            elif job.state == "waiting" and node in alive:
                job.state, job.started, nodes[job] = "running", time.monotonic(), node

    def _tell_lost(self, job: Job) -> None:
        self.tell(f"{job.entry} seed {job.seed}: its node is lost, it is made again")

    def _finish(self, job: Job, task: Any, node: str | None) -> None:
        try:
            made_by, outcome = self.ray.get(task)
            if job.state == "running" and made_by != node:
                self._tell_lost(job)  # done before a look could tell
            if outcome.files is not None:
                unpack(outcome.files, job.path)
        except (self.ray.exceptions.RayError, GancoreError) as error:
            job.fail(self._reason(error))
            return
        if outcome.error:
            job.fail(outcome.error)
            return
        os.listdir(job.path)  # over NFS, what was not there may be kept in mind until then
        job.finish(outcome.code, outcome.seconds)

    def _reason(self, error: Exception) -> str:
        """Return one of Ray's many lines: the last of a task's error, else the first."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        is_of_task = isinstance(error, self.ray.exceptions.RayTaskError)
        return (lines or [type(error).__name__])[-1 if is_of_task else 0]

    def _tell_of_no_room(self) -> None:
        needed = {"CPU": self.threads, "GPU": self.gpus}
        if not any(
            node["Alive"] and all(node["Resources"].get(key, 0) >= needed[key] for key in needed)
            for node in self.ray.nodes()
        ):
            self.tell(
                f"no node of the cluster has the {self.threads} CPUs and {self.gpus:g} GPUs of a "
                "run: waiting for one that does"
            )


@contextlib.contextmanager
def connected(
    address: str,
    *,
    parallel: int | None,
    threads: int,
    gpus: float,
    device: str,
    tell: Callable[[str], None],
) -> Iterator[Cluster]:
    """Connect to a cluster: HOST:PORT, ray://HOST:PORT or auto. Raises InputError."""
    device = cluster_device(device, gpus)
    try:
        import ray
    except ImportError as error:
        raise InputError('--ray: Ray is not installed: pip install "gancore[ray]"') from error
    _probe(address)
    # it prints pages about a lost node, at any time; the display has a file of its own
    with contextlib.redirect_stdout(io.StringIO()):
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield Cluster(ray, parallel, threads, gpus if device == "cuda" else 0.0, device, tell)
        finally:
            ray.shutdown()


def cluster_device(name: str, gpus: float) -> str:
    """Return the device of runs that have so many GPUs, whatever this machine has.

    Raises InputError for a device that they don't have.
    """
    if name == "auto":
        return "cuda" if gpus else "cpu"
    if name not in ("cpu", "cuda"):
        raise InputError(f"--device {shown(name)}: with --ray it is auto, cpu or cuda")
    if name == "cuda" and not gpus:
        raise InputError("--device cuda: Ray gives a run no GPU unless the board says gpus = 1")
    return name


def _probe(address: str) -> None:
    """See whether a cluster answers. Raises InputError.

    Another process does it: Ray tries for minutes, in which it hears no signal, and may abort.
    """
    wrong = f"--ray {shown(address)}: no Ray cluster answers"
    remedy = "Start one (ray start --head), and give HOST:PORT, ray://HOST:PORT or auto"
    place = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d{1,5})", address)
    if address != "auto" and place is None:
        raise InputError(f"--ray {shown(address)}: is no address. {remedy}")
    try:
        if place:
            socket.create_connection((place[1], int(place[2])), timeout=CONNECT / 3).close()
        command = [sys.executable, "-P", "-c", PROBE, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=CONNECT, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{wrong} within {CONNECT:.0f} seconds. {remedy}") from error
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"{wrong}: {error}. {remedy}") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError(f"{wrong}: {shown(reason, 1000).rstrip('.')}. {remedy}")


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[tuple[str, str]]:
    """Lay down a file by which a node knows this folder from another of the same name."""
    make_folder(folder, inside=folder.parent)
    name, content = f".shared-{secrets.token_hex(8)}", secrets.token_hex(16)
    write_text(folder / name, content)
    try:
        yield name, content
    finally:
        delete(folder / name)


class Begun:
    """The book of the tasks that have begun: Ray does not tell it."""

    def __init__(self) -> None:
        self._nodes: dict[str, str] = {}

    def add(self, run: str, node: str) -> None:
        """Note that a node begins with a run."""
        self._nodes[run] = node

    def nodes(self) -> dict[str, str]:
        """Return which node was the last to begin with each run."""
        return self._nodes


def _make_run(order: Order, begun: Any) -> tuple[str, Outcome]:
    import ray

    node = ray.get_runtime_context().get_node_id()
    begun.add.remote(str(order.folder), node)
    return node, make_run(order)


def _measure(tables: Mapping[str, Any], threads: int, device: str) -> dict[str, Cost]:
    recipes = {name: Recipe.parse(table) for name, table in tables.items()}
    return measure_here(recipes, threads=threads, device=device)
