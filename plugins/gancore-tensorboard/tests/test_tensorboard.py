"""The TensorBoard plugin, by what TensorBoard reads back."""

import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from penalties import Card
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gancore import Trainer
from gancore.errors import PluginError
from gancore.networks import MLPCritic, MLPGenerator
from gancore.plugins import load
from gancore_tensorboard import TensorBoard


def read(folder: str = "board/run") -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(folder)
    found.Reload()
    tags = found.Tags()["scalars"]
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in tags}


def started(step: int = 0, run: str = "run", state: dict[str, Any] | None = None) -> TensorBoard:
    board = TensorBoard(folder="board")
    if state is not None:
        board.load_state_dict(state)
    board.start(Path(run), step)
    return board


def next_second() -> None:
    """Event files are read in the order of their names, which hold the second."""
    time.sleep(1.01 - time.time() % 1)


def record(step: int, **values: Any) -> dict[str, Any]:
    return {"update": 5 * step, "step": step, "loss": step / 4, **values}


def test_numbers_of_records_are_scalars_at_their_step() -> None:
    board = started()
    given = record(
        3, **{"penalty/gp": 0.5, "seconds": 7, "why": "text", "last": True, "none": None}
    )
    before = dict(given)
    board.log(given)
    board.log(record(8, **{"score/fid": 12.25}))
    assert given == before
    assert read() == {
        "update": [(3, 15.0), (8, 40.0)],
        "loss": [(3, 0.75), (8, 2.0)],
        "penalty/gp": [(3, 0.5)],
        "seconds": [(3, 7.0)],
        "score/fid": [(8, 12.25)],
    }


def test_a_record_is_on_disk_at_once() -> None:
    board = started()
    for step in (1, 2):
        board.log(record(step))
        assert read()["loss"][-1] == (step, step / 4)


def test_the_board_is_in_the_runs_own_folder_unless_named() -> None:
    for folder, expected in (("", "run/tensorboard"), ("elsewhere", "elsewhere/run")):
        board = TensorBoard(folder=folder)
        with pytest.raises(RuntimeError, match="call start"):
            board.log(record(1))
        board.start(Path("run"), 0)
        board.log(record(1))
        assert read(expected)["loss"] == [(1, 0.25)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_grid_is_a_picture_of_its_pixels(channels: int) -> None:
    samples = torch.randint(0, 256, (4, channels, 8, 8), dtype=torch.uint8)
    board = started()
    board.sample(samples, 7)
    board.sample(torch.rand(4, 2), 8)  # points have no picture
    board.sample(torch.zeros(4, 2, 8, 8, dtype=torch.uint8), 9)  # nor have two channels
    found = EventAccumulator("board/run")
    found.Reload()
    (event,) = found.Images("samples")
    assert event.step == 7
    with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert np.array_equal(pixels[2:10, 2:10, 0], samples[0, 0].numpy())
    assert np.array_equal(pixels[2:10, 12:20, 2], samples[1, -1].numpy())


def test_numbers_that_are_not_finite() -> None:
    started().log(record(1, loss=math.nan, d_real=math.inf))
    assert math.isnan(read()["loss"][0][1])
    assert read()["d_real"] == [(1, math.inf)]


def test_one_event_file_a_run() -> None:
    board = started()
    for step in range(1, 5):
        board.log(record(step))
    assert len(list(Path("board/run").iterdir())) == 1


def test_resume_hides_what_came_after_the_checkpoint() -> None:
    board = started()
    for step in (1, 2, 3, 4):
        board.log(record(step))
    next_second()
    resumed = started(2, state=board.state_dict())
    resumed.log(record(4, loss=-1.0))
    assert read()["loss"] == [(1, 0.25), (2, 0.5), (4, -1.0)]


def test_in_a_run_that_is_resumed_beside_another(tmp_path: Path) -> None:
    folder = tmp_path / "board"
    (folder / "run").mkdir(parents=True)

    def trainer(steps: int) -> Trainer:
        torch.manual_seed(0)
        generator, critic = MLPGenerator((1, 8, 8), width=4), MLPCritic((1, 8, 8), width=4)
        return Trainer(
            generator,
            critic,
            torch.full((16, 1, 8, 8), 128, dtype=torch.uint8),
            plugins=[TensorBoard(folder=str(folder))],
            train={"steps": steps, "batch_size": 4},
            log={"every": 1},
            sample={"count": 4},
            score={"metrics": []},
            device="cpu",
        )

    trainer(2).run(tmp_path / "run")
    next_second()
    run = trainer(4).run(tmp_path / "run", resume=True)
    written = read(str(folder / "run-2"))["critic_loss"]
    assert written == [
        (record.step, pytest.approx(record.values["critic_loss"])) for record in run.read().records
    ]


def test_runs_that_share_a_folder_keep_what_each_has_written() -> None:
    """Of one name or not, after each other or at once; each goes on in its own when resumed."""
    first = started()
    for step in (1, 2, 3):
        first.log(record(step, loss=1.0))
    others = {"run-2": started(), "other": started(run="elsewhere/other"), "run-3": started()}
    for number, board in enumerate(others.values()):
        board.log(record(1, loss=10.0 + number))
    assert read()["loss"] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    next_second()
    resumed = started(1, run="moved", state=others["run-2"].state_dict())
    resumed.log(record(2, loss=20.0))
    assert read()["loss"] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert read("board/run-2")["loss"] == [(1, 10.0), (2, 20.0)]
    assert read("board/other")["loss"] == [(1, 11.0)]
    assert read("board/run-3")["loss"] == [(1, 12.0)]
    names = sorted(path.name for path in Path("board").iterdir())
    assert names == ["other", "run", "run-2", "run-3"]


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "..", ".", 3, "a/b"])
def test_a_stranger_s_checkpoint_leads_nowhere_else(name: object) -> None:
    started(0, state={"name": name}).log(record(1))
    (folder,) = Path("board").iterdir()
    assert folder.name in ("run", str(name))
    assert folder.parent.resolve() == Path("board").resolve()
    assert not Path("out").exists()
    assert read(str(folder))["loss"] == [(1, 0.25)]


@pytest.mark.parametrize("wrong", [1, True, ["x"], {}])
def test_wrong_options(wrong: object) -> None:
    with pytest.raises(PluginError, match="tensorboard: folder: expected"):
        load("tensorboard", {"folder": wrong})


class TestCard(Card):
    name = "tensorboard"
    plugin = TensorBoard
