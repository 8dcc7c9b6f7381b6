"""Boards that never ran: their files, and the runs that would have made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gancore.leaderboard.board import Board
from gancore.leaderboard.job import Job
from gancore.training.record import Record

SCORED = (100, 200, 300)
"""Generator updates after which a made-up run is scored."""


def job(folder: Path, entry: str, seed: int, fid: float, **changes: Any) -> Job:
    """A finished run that never ran, with the files of one.

    changes: picture (its side in pixels; 0 for none), plugins, every (scores while training?),
    loss, metrics, scores, protocol, spread, notes
    """
    plugins = {"gp": "gancore-gp==0.1.0"}
    values: dict[str, Any] = {"picture": 40, "plugins": plugins, "every": True}
    values |= {"loss": "wasserstein", "scores": {}, "protocol": {}, "spread": 0.9, "notes": []}
    values |= {"metrics": ["fid", "isc"], **changes}
    recipe = {
        "data": {"name": "digits"},
        "generator": {"name": "mlp"},
        "critic": {"name": "mlp"},
        "train": {"steps": SCORED[-1], "critic_steps": 5},
        "score": {"metrics": values["metrics"]},
        "loss": {"name": values["loss"]},
        "plugin": [{"name": "gp"}],
    }
    made = Job(entry, seed, recipe, folder / "runs" / f"{entry}-{seed}", "done", seconds=60.0)
    made.run.write_recipe(recipe)
    made.run.write_json(
        made.run.scores_path,
        {
            "scores": {"fid": fid, "isc": 10 / fid, "isc_std": 0.1, **values["scores"]},
            "protocol": {
                "samples": 10_000,
                "reference": {"name": "digits", "split": "all", "samples": 1797},
                "seed": seed,
                "extractor": "digits",
                "weights_sha256": "0123456789",
                "versions": {"torch-fidelity": "0.4.0"},
                **values["protocol"],
            },
            "spread": values["spread"],
            "notes": values["notes"],
            "step": SCORED[-1],
        },
    )
    made.run.write_json(
        made.run.environment_path,
        {
            "versions": {"torch": "2.14.0"},
            "plugins": values["plugins"],
            "python": "3.11.2",
            "core": {"python": "3.11", "code": "01234567", "modules": {"step": "89abcdef"}},
            "platform": "Linux",
            "device": "cpu",
            "device_name": "",
            "threads": 1,
            "git": None,
        },
    )
    for k, step in enumerate(SCORED):
        record = {
            "update": 5 * step,
            "step": step,
            "seconds": 20.0 * (k + 1) + seed**2,
            "wasserstein": (-1) ** seed * fid / (k + 1),
        }
        score = {"score/fid": fid * (len(SCORED) - k)} if values["every"] else {}
        made.run.append(Record.of({**record, **score}))
    if size := values["picture"]:
        path = made.run.sample_path(SCORED[-1])
        path.parent.mkdir()
        noise = np.random.default_rng(seed).bytes(3 * size**2)
        Image.frombytes("RGB", (size, size), noise).save(path)
    made.saved = made.run.read()
    return made


def board(entries: Mapping[str, str], seeds: Sequence[int], **changes: Any) -> Board:
    return Board.model_validate(
        {
            "recipe": "some.toml",
            "baseline": next(iter(entries)),
            "seeds": tuple(seeds),
            "entry": tuple({"name": name, "label": label} for name, label in entries.items()),
            **changes,
        }
    )
