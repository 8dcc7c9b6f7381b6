"""What several commands print."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

NAMES = {
    "fid": "FID",
    "isc": "Inception Score",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
}


def show_scores(found: Mapping[str, Any]) -> None:
    """Print scores; those of another extractor than Inception carry its name."""
    from rich.console import Console

    scores, protocol = found["scores"], found["protocol"]
    extractor = protocol["extractor"]
    suffix = "" if extractor == "inception-v3-compat" else f" ({extractor} features)"
    console = Console(file=sys.stdout, highlight=False)
    for key, name in NAMES.items():
        if key in scores:
            spread = f" ± {scores[f'{key}_std']:.2g}" if f"{key}_std" in scores else ""
            console.print(f"[bold]{name}{suffix}[/]  [cyan]{scores[key]:.4g}[/]{spread}")
    reference = protocol["reference"]
    console.print(
        f"{protocol['samples']} samples against {reference['samples']} of {reference['name']} "
        f"({reference['split']}), extractor {extractor}, seed {protocol['seed']}, "
        f"torch-fidelity {protocol['versions']['torch-fidelity']}",
        style="dim",
        soft_wrap=True,
    )
