"""The executor: a cluster is given all runs of a board, and makes as many as it has room for.

A run whose node is lost is made again on another node: from its last checkpoint where the nodes
share the board's folder, else from the start.
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
from pathlib import Path
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gancore import entrypoints
from gancore.cost import Cost
from gancore.errors import GancoreError, InputError, RunError, told_of_files
from gancore.files.reading import read_text
from gancore.files.writing import delete, make_folder, write_text
from gancore.leaderboard.executor import Executor, Terms, Watch, measure_here
from gancore.leaderboard.job import POLL, Job
from gancore.recipe import Recipe
from gancore.text import shown
from gancore.training.building import resolve
from gancore_ray.node import Order, Outcome, Source, Token, add_sources, make_run, unpack

RETRIES = 5
"""How often a run is made again when its node is lost."""

CONNECT = 30.0
"""Seconds within which a cluster has to answer."""

STOP = 120.0
"""Seconds in which the runs that go on have to save when the board is stopped."""

LARGEST = 16 << 20
"""Bytes of a plugin file, at most."""

PROBE = """
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
except BaseException as error:
    sys.exit(" ".join(str(error).split()))
"""


class Cluster(Executor):
    """A Ray cluster at `terms.place`: HOST:PORT, ray://HOST:PORT or auto.

    It is given `terms.parallel` runs at a time, or all of them. Each run reserves its threads as
    CPUs, and its GPUs.
    """

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms, device_of_runs(terms.device, terms.gpus))
        self._needs = {
            "num_cpus": terms.threads,
            "num_gpus": terms.gpus if self.device == "cuda" else 0.0,
        }

    @property
    def where(self) -> str:
        """What costs depend on, beside the recipes."""
        return f"{self.device} on Ray"

    def __enter__(self) -> Self:
        """Connect. Raises InputError where no cluster answers."""
        _probe(self.terms.place)
        # Ray prints pages about a lost node, at any time. The display has a file of its own.
        self.taken.enter_context(contextlib.redirect_stdout(io.StringIO()))
        ray.init(address=self.terms.place, log_to_driver=False, logging_level=logging.ERROR)
        self.taken.callback(ray.shutdown)
        return self

    def measure(self, recipes: Mapping[str, Recipe]) -> dict[str, Cost]:
        """Measure costs on a node. Raises RunError."""
        resolved = {name: Recipe.parse(resolve(recipe)) for name, recipe in recipes.items()}
        self._tell_of_no_room()
        task = self._task(_measure).remote(resolved, _sources(), self.terms.threads, self.device)
        try:
            costs: dict[str, Cost] = ray.get(task)
        except ray.exceptions.RayError as error:
            raise RunError(
                f"a node of the cluster can't measure costs: {shown(_reason(error), 1000)}. "
                "--no-cost leaves them out"
            ) from error
        return costs

    def make(self, jobs: Sequence[Job], watch: Watch) -> None:
        """Make the runs; see `Executor`."""
        self._tell_of_no_room()
        with _token(jobs[0].path.parent) as token:
            _Sweep(self, token).make(jobs, watch)

    def _task(self, function: Callable[..., Any]) -> Any:
        """Return the function as a task that has a run's resources to itself."""
        task: Any = ray.remote(function)
        return task.options(**self._needs, max_retries=RETRIES)

    def _tell_of_no_room(self) -> None:
        cpus, gpus = self._needs.values()
        if not any(
            node["Resources"].get("CPU", 0) >= cpus and node["Resources"].get("GPU", 0) >= gpus
            for node in _alive()
        ):
            self.terms.tell(
                f"no node of the cluster has the {cpus} CPUs and {gpus:g} GPUs of a run: waiting "
                "for one that does"
            )


class _Sweep:
    """The runs that a cluster has been given, and the nodes that make them."""

    def __init__(self, cluster: Cluster, token: Token) -> None:
        self._cluster = cluster
        self._token = token
        self._sources = _sources()
        self._task = cluster._task(_make_run)
        self._begun = _book()
        self._sent: dict[Any, Job] = {}
        self._nodes: dict[Job, str] = {}

    def make(self, jobs: Sequence[Job], watch: Watch) -> None:
        """Give the cluster the runs, and wait for them."""
        queued = list(jobs)
        most = self._cluster.terms.parallel or len(queued)
        try:
            while (queued or self._sent) and not watch.stops:
                while queued and len(self._sent) < most:
                    self._send(queued.pop(0))
                ready = self._wait()
                self._look()
                for task in ready:
                    self._finish(task)
                watch.show()
        finally:
            for task in self._sent:
                ray.cancel(task)  # a KeyboardInterrupt in the task: the run saves
            deadline = time.monotonic() + STOP
            while watch.stops < 2 and time.monotonic() < deadline:
                if len(self._wait()) == len(self._sent):
                    break

    def _send(self, job: Job) -> None:
        try:
            with told_of_files(job.path):
                job.prepare()
        except GancoreError as error:
            job.fail(str(error))
            return
        terms = self._cluster.terms
        order = Order(
            job.recipe,
            job.path.absolute(),
            self._token,
            job.about,
            self._sources,
            terms.threads,
            self._cluster.device,
        )
        self._sent[self._task.remote(order, self._begun)] = job

    def _wait(self) -> list[Any]:
        """Return the tasks that have ended, after a moment."""
        if not self._sent:
            return []
        ended: list[Any] = ray.wait([*self._sent], num_returns=len(self._sent), timeout=POLL)[0]
        return ended

    def _look(self) -> None:
        """Set the states of runs that have not ended: queued, until a node that lives has one."""
        try:
            now = ray.get(self._begun.nodes.remote(), timeout=5)
        except ray.exceptions.RayError:
            return  # the next look may have more luck
        alive = {node["NodeID"] for node in _alive()}
        for job in self._sent.values():
            node = now.get(str(job.path.absolute()))
            if job.state == "running" and (node not in alive or node != self._nodes[job]):
                self._tell_lost(job)
                job.state = "queued"
            elif job.state == "queued" and node in alive:
                self._nodes[job] = node
                job.begin()

    def _tell_lost(self, job: Job) -> None:
        self._cluster.terms.tell(f"{job.entry} seed {job.seed}: its node is lost, it is made again")

    def _finish(self, task: Any) -> None:
        job = self._sent.pop(task)
        try:
            made_by, outcome = ray.get(task)
            if job.state == "running" and made_by != self._nodes[job]:
                self._tell_lost(job)  # it has ended before a look could see that
            if outcome.files is not None:
                unpack(outcome.files, job.path)
        except (ray.exceptions.RayError, GancoreError) as error:
            job.fail(_reason(error))
            return
        if outcome.error:
            job.fail(outcome.error)
            return
        os.listdir(job.path)  # NFS may remember that a file is not there, until then
        job.finish(outcome.code, outcome.seconds)


def device_of_runs(name: str, gpus: float) -> str:
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


def _alive() -> list[Any]:
    """Return what Ray tells of each node that lives."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _reason(error: Exception) -> str:
    """Return one of Ray's many lines: the last of a task's error, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    is_of_task = isinstance(error, ray.exceptions.RayTaskError)
    return (lines or [type(error).__name__])[-1 if is_of_task else 0]


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[Token]:
    """Write a file by which a node tells this folder from another one of the same name."""
    make_folder(folder, inside=folder.parent)
    token = Token(f".shared-{secrets.token_hex(8)}", secrets.token_hex(16))
    write_text(folder / token.name, token.content)
    try:
        yield token
    finally:
        delete(folder / token.name)


def _sources() -> tuple[Source, ...]:
    """Return the plugin files of this command, which travel with every run."""
    return tuple(Source(path.name, read_text(path, LARGEST)) for path in entrypoints.files())


class Begun:
    """The book of the tasks that have begun. Ray does not tell."""

    def __init__(self) -> None:
        self._nodes: dict[str, str] = {}

    def add(self, run: str, node: str) -> None:
        """Note that a node begins with a run."""
        self._nodes[run] = node

    def nodes(self) -> dict[str, str]:
        """Return which node was the last to begin with each run."""
        return self._nodes


def _book() -> Any:
    """Start the book on this machine. The board ends with this machine, so the book is safe."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    book: Any = ray.remote(Begun)
    return book.options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


def _make_run(order: Order, begun: Any) -> tuple[str, Outcome]:
    node = ray.get_runtime_context().get_node_id()
    begun.add.remote(str(order.folder), node)
    return node, make_run(order)


def _measure(
    recipes: Mapping[str, Recipe], sources: tuple[Source, ...], threads: int, device: str
) -> dict[str, Cost]:
    add_sources(sources)
    return measure_here(recipes, threads=threads, device=device)
