"""`gan doctor`: what this installation can do."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

import click

from gancore.cli.tables import tell


@click.command()
def doctor() -> None:
    """Show versions, devices and what is installed; exit 1 if something can't be imported."""
    import torch

    from gancore import entrypoints
    from gancore.cli.plugins_list import KINDS, Details, details
    from gancore.provenance.environment import PACKAGES
    from gancore.text import shown

    tell(f"python {sys.version.split()[0]}, {os.cpu_count()} cores")
    tell(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            tell(f"cuda:{index}: {torch.cuda.get_device_name(index)}")
    else:
        tell("no CUDA device: runs use the CPU")
    broken = 0
    for kind in KINDS:
        for component in entrypoints.find(kind):
            about = details(component)
            is_ok = isinstance(about, Details)
            broken += not is_ok
            tell(shown(f"{kind} {component}: {'ok' if is_ok else about}", 4096))
    tell(f"extractor inception-v3-compat: {_inception()}")
    for extractor in entrypoints.find("extractor"):
        tell(shown(f"extractor {extractor}: installed", 4096))
    sys.exit(1 if broken else 0)


def _inception() -> str:
    """Say whether Inception's weights are in the cache; nothing is fetched."""
    from gancore.scoring.extractors import inception_path

    path: Path = inception_path()
    return f"weights at {path}" if path.is_file() else "weights are fetched at the first use"
