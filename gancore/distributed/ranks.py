"""The ranks: the processes that make a run together, and what they have to agree on.

One flat all-reduce after each backward pass averages all gradients. DistributedDataParallel can't
be used: penalties differentiate twice.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from statistics import fmean

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from gancore.distributed.launching import die_with_parent, is_launched, is_under_torchrun
from gancore.errors import GancoreError, InputError, RunError, told_of_files

TIMEOUT = timedelta(minutes=10)
"""How long one waits for another."""

PATIENCE = timedelta(days=1)
"""How long the others wait for what the first alone does, such as scores."""


class Ranks:
    """The processes of a run; one alone unless torchrun started more.

    index   which of them this is, from 0; the first is the one that writes
    count   how many there are

    A process alone gets back what it gave, and communicates nothing. All processes call the methods
    that communicate, in the same order. Those methods raise RunError when another process is gone.
    """

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index = index
        self.count = count
        # flags, samples and messages go over the host, whatever the device of the updates
        self._host = _group(TIMEOUT) if count > 1 else None
        self._patient = _group(PATIENCE) if count > 1 else None

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """Meet the other processes that torchrun, or whoever sets its variables, has started.

        A process group that exists already is used. Raises RunError when the others don't come.
        """
        if not dist.is_initialized():
            if is_under_torchrun():
                die_with_parent()
            if not is_launched():
                return cls()
            cuda = device.type == "cuda"
            if cuda:
                torch.cuda.set_device(device)
            with _told():
                store, index, count = next(rendezvous("env://", timeout=TIMEOUT))
                dist.init_process_group(
                    "nccl" if cuda else "gloo",
                    store=PrefixStore(_meeting(store, index, count), store),
                    rank=index,
                    world_size=count,
                    timeout=TIMEOUT,
                    device_id=device if cuda else None,
                )
        with _told():
            return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.index == 0

    def share(self, total: int, what: str) -> int:
        """Return how many of `total` samples are this process's. Raises InputError if uneven."""
        if total % self.count:
            fitting = total - total % self.count
            raise InputError(
                f"{what} is {total}, and that can't be split over {self.count} processes evenly: "
                f"expected a multiple, such as {fitting or self.count}"
            )
        return total // self.count

    def part(self, batch: Tensor) -> Tensor:
        """Return this process's part of a batch (B, *): (B / count, *)."""
        if self.count == 1:
            return batch
        size = len(batch) // self.count
        return batch[self.index * size : (self.index + 1) * size]

    @torch.no_grad()
    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a value over all processes, detached."""
        if self.count == 1:
            return value.detach()
        total = value.detach().clone()
        with _told():
            dist.all_reduce(total)
        return total / self.count

    @torch.no_grad()
    def means(self, values: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the mean of each value over all processes, in one flat all-reduce.

        `like` has the shape of each. A value that some processes lack counts as zeros there. The
        mean of a value that all lack is None.
        """
        if self.count == 1:
            return list(values)
        there = [value is not None for value in values]
        parts = [
            torch.zeros_like(shape) if value is None else value
            for value, shape in zip(values, like, strict=True)
        ]
        flags = like[0].new_ones(len(there)) if all(there) else like[0].new_tensor(there)
        flat = torch.cat([flags, *(part.reshape(-1).to(flags) for part in parts)])
        with _told():
            dist.all_reduce(flat)
        # most often all lack the same values: only a plugin may return None on some processes
        anywhere = [True] * len(values) if all(there) else flat[: len(there)].tolist()
        flat = flat[len(there) :] / self.count
        means = torch.split(flat, [part.numel() for part in parts])
        return [
            mean.reshape(shape.shape).to(shape) if any_there else None
            for mean, shape, any_there in zip(means, like, anywhere, strict=True)
        ]

    def mean_of(self, here: Mapping[str, float]) -> dict[str, float]:
        """Return the mean of each number, by name, over the processes that have it."""
        if self.count == 1:
            return dict(here)
        tables: list[dict[str, float]] = [{} for _ in range(self.count)]
        with _told():
            dist.all_gather_object(tables, dict(here), group=self._host)
        names = dict.fromkeys(name for table in tables for name in table)
        return {name: fmean(table[name] for table in tables if name in table) for name in names}

    @torch.no_grad()
    def equalize(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values of these tensors."""
        if self.count == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor)
        for same in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            with _told():
                dist.broadcast(flat, 0)
            values = torch.split(flat, [tensor.numel() for tensor in same])
            for tensor, value in zip(same, values, strict=True):
                tensor.copy_(value.reshape(tensor.shape))

    def any(self, here: bool) -> bool:
        """Return whether it is so for any process."""
        if self.count == 1:
            return here
        anywhere = torch.tensor([here], dtype=torch.uint8)
        with _told():
            dist.all_reduce(anywhere, dist.ReduceOp.MAX, group=self._host)
        return bool(anywhere.item())

    def from_first(self, make: Callable[[], bytes]) -> bytes:
        """Call `make` on the first process, and return its result on all of them.

        All raise the GancoreError that it raises.
        """
        if self.count == 1:
            return make()
        failure: GancoreError | None = None
        data = b""
        if self.is_first:
            try:
                with told_of_files():
                    data = make()
            except GancoreError as error:
                failure, data = error, str(error).encode()
        head = torch.tensor([len(data), failure.exit_code if failure else 0])
        with _told():
            dist.broadcast(head, 0, group=self._patient)
            body = torch.frombuffer(bytearray(data or bytes(int(head[0]) or 1)), dtype=torch.uint8)
            dist.broadcast(body, 0, group=self._patient)
        if failure:
            raise failure
        data = body.numpy().tobytes()[: int(head[0])]
        if code := int(head[1]):
            raise (InputError if code == InputError.exit_code else RunError)(data.decode())
        return data

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all processes in order, to the first one; [] to the others.

        They are on the CPU, and of one shape.
        """
        if self.count == 1:
            return [tensor]
        tensors = [torch.empty_like(tensor) for _ in range(self.count)] if self.is_first else None
        with _told():
            dist.gather(tensor.contiguous(), tensors, dst=0, group=self._host)
        return tensors or []

    def wait(self) -> None:
        """Wait for all other processes; up to a day, for what the first alone does."""
        if self.count > 1:
            with _told():
                dist.all_reduce(torch.zeros(1), group=self._patient)


def _meeting(store: Store, index: int, count: int) -> str:
    """Agree with the other processes on a name that no earlier attempt has used.

    torchrun keeps one store for all attempts of a run. It holds the addresses of processes that
    were killed, and a restarted process would call them. So each process says hello under a new
    name. The first answers there with its own new name, and hears from the others under that.
    """
    name = secrets.token_hex(8)
    if index > 0:
        store.set(f"hello/{index}", name)
        meeting: str = store.get(f"welcome/{name}").decode()
        store.set(f"here/{meeting}/{index}", "")
        return meeting
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    missing = set(range(1, count))
    while missing:
        for other in tuple(missing):
            if store.check([f"hello/{other}"]):  # it may be an earlier attempt's, yet
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", name)
            if store.check([f"here/{name}/{other}"]):
                missing.remove(other)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {sorted(missing)} did not come")
        time.sleep(0.02)
    return name


def _group(timeout: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


@contextmanager
def _told() -> Iterator[None]:
    """Turn what torch raises when another process does not answer into a RunError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = re.sub(r"^\[\S+\] ", "", line).partition(". ")[0]
        raise RunError(
            f"another process of this run has ended, or does not answer ({what}). What it said "
            "is above; what was saved is whole: go on with --resume, which torchrun "
            "--max-restarts 3 does by itself"
        ) from error
