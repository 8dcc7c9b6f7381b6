"""The environment of a run: what it takes to know where a number came from."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version

import torch
from pydantic import Field

from gancore.files.stored import Stored, Text, Whole
from gancore.plugins import Loaded
from gancore.provenance.identity import MadeOf, plugin_origins
from gancore.provenance.machine import kind_of_machine
from gancore.provenance.sources import core_code
from gancore.text import shown

PACKAGES = ("gancore", "torch", "torchvision", "torch-fidelity", "numpy", "pluggy")

EARLIER = 100
"""Stretches before the current one that environment.json tells of, the latest ones."""


class Git(Stored):
    """The state of the sources."""

    commit: Text
    dirty: bool


class Stretch(MadeOf):
    """What a part of a run was made on, from an update on.

    float32  what computes in it, as set: tf32 and bf16 are short cuts, ieee and none are not
    """

    versions: dict[Text, Text]
    plugins: dict[Text, Text]
    python: Text
    platform: Text
    device: Text
    device_name: Text
    float32: dict[Text, Text] | None = None
    cpu: Text | None = None
    cpu_capability: Text | None = None
    blas: Text | None = None
    threads: Whole
    world_size: Whole | None = None
    git: Git | None
    from_step: Whole = 0


class Environment(Stretch):
    """environment.json: the current stretch, and those before it."""

    earlier: list[Stretch] = Field(default=[], max_length=EARLIER)

    def current(self) -> Stretch:
        """Return the current stretch alone."""
        about = self.model_dump(mode="json", exclude_unset=True, exclude={"earlier"})
        return Stretch.model_validate(about)


def made_with(plugins: Iterable[Loaded]) -> MadeOf:
    """Return the versions of Python and packages, where plugins come from, and the core's code."""
    return MadeOf.model_construct(
        versions={name: version(name) for name in PACKAGES},
        plugins=plugin_origins(plugins),
        python=platform.python_version(),
        core=core_code(),
    )


def environment(device: torch.device, made: MadeOf, *, world_size: int = 1) -> Stretch:
    """Return what a run is made of and on: device, machine, threads and git state.

    made: what `made_with` returns, and what more is known
    """
    on_cuda = device.type == "cuda"
    about = Stretch.model_construct(
        platform=platform.platform(),
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if on_cuda else platform.processor(),
        float32={
            "matmul": torch.backends.cuda.matmul.fp32_precision,
            "convolution": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        },
        threads=torch.get_num_threads(),
        world_size=world_size,
        git=_git(),
    )
    return about.model_copy(update={**made.known(), **kind_of_machine()})


def unlike(then: Stretch, now: Stretch) -> list[str]:
    """Return in what two environments differ that decides the last bits, but for the threads."""

    def kind(about: Stretch) -> dict[str, object]:
        return {
            "device": about.device.partition(":")[0],
            "torch": about.versions.get("torch"),
            "device_name": about.device_name,
            "cpu": about.cpu,
            "cpu_capability": about.cpu_capability,
            "blas": about.blas,
            "float32": about.float32,
        }

    pairs = zip(kind(then).items(), kind(now).values(), strict=True)
    return [
        f"{key}: {'not recorded' if old is None else f'was {shown(repr(old))}'}, is {new!r}"
        for (key, old), new in pairs
        if old != new
    ]


def _git() -> Git | None:
    """Return commit and whether there are changes, of the current folder, or None outside git."""
    try:
        commit = _output("git", "rev-parse", "HEAD")
        return Git(commit=commit, dirty=bool(_output("git", "status", "--porcelain")))
    except (OSError, subprocess.SubprocessError):
        return None


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
