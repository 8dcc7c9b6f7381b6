"""`gan try`: an identity card for a regularizer, in two minutes."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gancore.errors import InputError, RunError

Whole = click.IntRange(min=1, max=1024)


class _Dimensions(click.ParamType[tuple[int, ...]]):
    name = "N[,N…]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        parts = str(value).split(",")
        if not all(part.isdigit() and 1 <= int(part) <= 1024 for part in parts):
            self.fail(f"{value!r}: expected whole numbers from 1 to 1024, such as 2,16", param, ctx)
        return tuple(map(int, parts))


@click.command("try")
@click.argument("plugins", nargs=-1, metavar="[NAME[:OPTION=VALUE,…][+NAME…]]…")
@click.option("--against", metavar="NAME,…", help="Hold them against these; none is always there.")
@click.option(
    "--dimensions", type=_Dimensions(), default="2,16", show_default=True, help="Of the funnels."
)
@click.option("--seeds", type=click.IntRange(2, 100), default=3, show_default=True)
@click.option("--all", "everything", is_flag=True, help="More pairs, and 128 dimensions too.")
@click.option("--updates", type=Whole, default=800, show_default=True, hidden=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write card.json, card.md, card.png.")
@click.option(
    "--expect",
    type=click.Path(path_type=Path),
    metavar="CARD.json",
    help="Measure these rows alone, and fail where one is not what its earlier card says.",
)
def try_(
    plugins: tuple[str, ...],
    against: str | None,
    dimensions: tuple[int, ...],
    seeds: int,
    everything: bool,
    updates: int,
    out: Path | None,
    expect: Path | None,
) -> None:
    """Measure regularizers where the truth is known, beside none and the published ones.

    How near a critic comes to the known Wasserstein distance, and its slope to the best critic's;
    whether two games come to rest; how gradients flow through a deep critic; what an update costs.
    """
    from gancore.isolation.caller import undisturbed
    from gancore.provenance.machine import on_threads
    from gancore.report import display_for
    from gancore_truth.card import Card, Settings, measured
    from gancore_truth.gate import Earlier, differences
    from gancore_truth.output import refuse_taken, show, write
    from gancore_truth.pairs import pairs
    from gancore_truth.rows import rows
    from gancore_truth.transport import Training

    if expect and (against is not None or not plugins):
        raise InputError("--expect measures the rows that are asked for alone: name them")
    earlier = Earlier.read(expect) if expect else None
    held = None if against is None else [name for name in against.split(",") if name]
    chosen = [row for row in rows(plugins, held) if row.asked or not expect]
    if out:
        refuse_taken(out)
    known = pairs(dimensions, everything=everything)
    settings = Settings(seeds=seeds, training=Training(updates=updates))
    display = display_for(sys.stderr)
    try:
        with undisturbed(), on_threads(1):
            lines = measured(chosen, known, settings, display.count)
    finally:
        display.end()
    card = Card(tuple(lines), tuple(pair.name for pair in known), settings)
    show(card)
    if out:
        write(card, out)
    if earlier and (faults := differences(card, earlier)):
        raise RunError("not what the card says:\n" + "\n".join(f"  {fault}" for fault in faults))
