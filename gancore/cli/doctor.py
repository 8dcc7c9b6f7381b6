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
    """Show versions, devices, plugins and feature extractors; exit 1 if something is broken."""
    import torch

    from gancore import entrypoints
    from gancore.cli.plugins import details
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
    for found in entrypoints.find("plugin"):
        error = details(found).get("error")
        broken += error is not None
        tell(shown(f"plugin {found}: {error or 'ok'}", 4096))
    tell(f"extractor inception-v3-compat: {_inception()}")
    for found in entrypoints.find("extractor"):
        tell(shown(f"extractor {found}: installed", 4096))
    sys.exit(1 if broken else 0)


def _inception() -> str:
    """Say whether the canonical weights are here, without fetching them."""
    from gancore.scoring.extractors import inception_path

    path: Path = inception_path()
    return f"weights at {path}" if path.is_file() else "weights are fetched at the first use"
