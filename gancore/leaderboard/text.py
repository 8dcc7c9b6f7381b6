"""The result of a board as text: the table that a pull request shows."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gancore.leaderboard.statistics import FEWEST, method, span
from gancore.scoring.protocol import FeatureSpace, Protocol, score_name, shown_protocol

MINUS = "−"


def markdown(found: Mapping[str, Any]) -> str:
    """Return a leaderboard as Markdown: the table, then what it was taken from and can't say."""
    metric = found["metric"]
    others = other_metrics(found)
    header = ["", "entry", *(title(found, key) for key in (metric, *others))]
    header[3:3] = [against_title(found), "verdict"]
    header += ["time", "FLOPs", "memory", "runs"]
    lines = [_row(header), _row(["---"] * len(header))]
    for rank, entry in enumerate(found["entries"], 1):
        scores = entry["scores"]
        cells = [str(rank) if metric in scores else "", entry["label"]]
        cells.append(interval(scores.get(metric)))
        cells += [against(scores.get(metric)), verdict(scores.get(metric))]
        cells += [interval(scores.get(key)) for key in others]
        cells += [
            times(entry["cost"].get(key)) for key in ("time_ratio", "flops_ratio", "memory_ratio")
        ]
        cells.append(runs(entry))
        lines.append(_row(cells))
    return "\n".join([*lines, "", *(f"{_line(line)}  " for line in notes(found)), ""])


def notes(found: Mapping[str, Any]) -> list[str]:
    """Return the lines below a table: protocol, budget, certainty, costs, failures, runs' notes."""
    lines = []
    if found["protocol"]:
        seeds = ", ".join(map(str, found["seeds"]))
        protocol = Protocol.model_validate({**found["protocol"], "seed": 0})
        lines.append(shown_protocol(protocol, seeds) + ".")
    if budget := found["budget"]:
        unit = {"critic_updates": "critic updates", "passes": "passes of the critic"}[
            budget["unit"]
        ]
        lines.append(f"Budget: {budget['count']:,} {unit} an entry.")
    lines += certainty(found)
    if any(entry["cost"] for entry in found["entries"]):
        lines.append(
            "Time, FLOPs and memory: of a critic update, as ratios to the same network without "
            "a regularizer."
        )
    for entry in found["entries"]:
        lines += [
            f"{entry['label']}, seed {each['seed']}, failed: {each['error']}"
            for each in entry["failed"]
        ]
        lines += [
            f"{entry['label']}, seed {each['seed']}: {each['note']}"
            for each in entry.get("notes", [])
        ]
        if entry["collapsed"]:
            lines.append(f"{entry['label']} collapsed with seeds {_list(entry['collapsed'])}.")
        if entry["missing"]:
            lines.append(f"{entry['label']} has not finished seeds {_list(entry['missing'])}.")
    return lines


def certainty(found: Mapping[str, Any]) -> list[str]:
    """Return what the numbers are, what they decide, and how small a difference they could see."""
    scored = [entry for entry in found["entries"] if found["metric"] in entry["scores"]]
    scores = {entry["name"]: entry["scores"][found["metric"]] for entry in scored}
    lines = []
    if has_intervals(found):
        seeds = span(len(each["values"]) for each in scores.values())
        lines.append(f"Median and 95 % bootstrap interval of {seeds} seeds.")
    if len(found["entries"]) < 2:
        return [*lines, "There is no entry but the baseline, and so nothing to decide."]
    compared = [each for name, each in scores.items() if name != found["baseline"]]
    how = method(compared)
    if how is None:
        most = max((each["seeds_compared"] for each in compared), default=0)
        seeds, decide = ("seed", "decides") if most == 1 else ("seeds", "decide")
        few = f"{most} {seeds} in common with the baseline {decide} nothing: that takes {FEWEST}."
        return [*lines, few]
    text = f"Verdicts: {how}."
    few_seeds = [each["label"] for each in scored if scores[each["name"]]["verdict"] == "undecided"]
    if few_seeds:
        text += f" Fewer than {FEWEST} seeds in common with it: {', '.join(few_seeds)}."
    able = [each for each in compared if each["seeds_compared"] >= FEWEST and each["detectable"]]
    seen = [
        f"{each['detectable']:.2g}"
        if each["scale"] == "difference"
        else f"{100 * (each['detectable'] - 1):.0f} %"
        for each in sorted(able, key=lambda each: each["detectable"])
    ]
    if seen:
        reach = f"{seen[0]} (the steadiest entry) to {seen[-1]} (the least steady)"
        reach = reach if len(seen) > 1 else f"{seen[0]} and more"
        text += f" With four chances in five it sees differences of {reach}."
    return [*lines, text]


def has_intervals(found: Mapping[str, Any]) -> bool:
    """Return whether some entry has more than one run with the score that ranks."""
    ranked = [entry["scores"].get(found["metric"]) for entry in found["entries"]]
    return any(len(scores["values"]) > 1 for scores in ranked if scores)


def title(found: Mapping[str, Any], key: str) -> str:
    """Return a score's name with the way that is better."""
    arrow = "↑" if key in found["higher_is_better"] else "↓"
    return f"{score_name(key, FeatureSpace.model_validate(found['protocol']))} {arrow}"


def other_metrics(found: Mapping[str, Any]) -> list[str]:
    """Return the scores but the one that ranks."""
    keys = dict.fromkeys(key for entry in found["entries"] for key in entry["scores"])
    return [key for key in keys if key != found["metric"]]


def interval(scores: Mapping[str, Any] | None) -> str:
    """Return median and interval."""
    if scores is None:
        return MINUS
    if len(scores["values"]) < 2:
        return f"{scores['median']:.3g}"
    return f"{scores['median']:.3g} ({scores['low']:.3g} to {scores['high']:.3g})"


def against(scores: Mapping[str, Any] | None) -> str:
    """Return the ratio to the baseline, or the difference, with its interval."""
    if scores is None or scores["verdict"] == "baseline" or not scores["seeds_compared"]:
        return MINUS
    sign = "" if scores["scale"] == "ratio" else "+"
    text = f"{scores['ratio']:{sign}.2f}"
    if scores["seeds_compared"] < 2:
        return text
    return f"{text} ({scores['ratio_low']:{sign}.2f} to {scores['ratio_high']:{sign}.2f})"


def against_title(found: Mapping[str, Any]) -> str:
    """Return what heads the ratios to the baseline, or the differences from it."""
    (label,) = [each["label"] for each in found["entries"] if each["name"] == found["baseline"]]
    scales = {
        each["scores"][found["metric"]].get("scale")
        for each in found["entries"]
        if found["metric"] in each["scores"]
    }
    return f"{MINUS if 'difference' in scales else '÷'} {label}"


def verdict(scores: Mapping[str, Any] | None) -> str:
    """Return the verdict, or that there is no score."""
    return "no score" if scores is None else str(scores["verdict"])


def times(ratio: float | None) -> str:
    """Return a cost."""
    return MINUS if ratio is None else f"{ratio:.2f}×"


def runs(entry: Mapping[str, Any]) -> str:
    """Return how many runs ended well, and how many did not."""
    wrong = [f"{len(entry[key])} {key}" for key in ("failed", "collapsed", "missing") if entry[key]]
    return ", ".join([str(len(entry["seconds"])), *wrong])


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _line(text: str) -> str:
    """Return a paragraph of Markdown, whatever its text begins with: no list, heading or code."""
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", _escaped(text).strip())


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(plain, quote=False))
