"""What several commands print."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def show_scores(found: Mapping[str, Any]) -> None:
    """Print scores by the names that their protocol allows, and the protocol."""
    from rich.console import Console

    from gancore.protocol import shown_protocol, shown_scores

    console = Console(file=sys.stdout, highlight=False)
    for name, value in shown_scores(found).items():
        console.print(f"[bold]{name}[/]  [cyan]{value}[/]")
    console.print(shown_protocol(found["protocol"]), style="dim", soft_wrap=True)
