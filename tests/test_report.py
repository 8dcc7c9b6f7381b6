"""Grids, curves and displays: what was written is read back."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from gancore.errors import DataError
from gancore.report import (
    Display,
    LinesDisplay,
    LiveDisplay,
    display_for,
    plot_curves,
    save_grid,
    save_images,
)
from gancore.report.curves import bounding, curve_figures

Pixels = NDArray[np.uint8]


def images(count: int, channels: int, size: int = 8) -> Tensor:
    shape = (count, channels, size, size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect the figures that are saved, and save them."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **options: Any) -> None:
        saved.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(4, 2, 2), (5, 3, 2), (10, 4, 3), (2, 2, 1)]
)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_grid_shows_each_image(
    tmp_path: Path, count: int, columns: int, rows: int, channels: int
) -> None:
    samples = images(count, channels)
    save_grid(samples, tmp_path / "new" / "folder" / "grid.png")
    grid = read(tmp_path / "new" / "folder" / "grid.png")
    assert grid.shape == (66 * rows + 2, 66 * columns + 2, 3)  # 8 pixels enlarged to 64, 2 between
    left = grid.copy()
    for number, image in enumerate(samples.numpy()):
        top, start = 2 + 66 * (number // columns), 2 + 66 * (number % columns)
        shown = image if channels == 3 else image[:1].repeat(3, 0)
        enlarged = shown.transpose(1, 2, 0).repeat(8, 0).repeat(8, 1)
        assert np.array_equal(grid[top : top + 64, start : start + 64], enlarged)
        left[top : top + 64, start : start + 64] = 255
    assert (left == 255).all()  # white between and beside


def test_large_images_keep_their_size(tmp_path: Path) -> None:
    samples = images(1, 3, size=70)
    save_grid(samples, tmp_path / "one.png")
    grid = read(tmp_path / "one.png")
    margin = (grid.shape[0] - 70) // 2
    inner = grid[margin : margin + 70, margin : margin + 70]
    assert np.array_equal(inner, samples[0].numpy().transpose(1, 2, 0))


@pytest.mark.parametrize("far", [0.1, 100.0])
def test_the_axes_of_points_are_those_of_the_real_ones(
    tmp_path: Path, figures: list[Figure], far: float
) -> None:
    save_grid(far * torch.rand(30, 2), tmp_path / "p.png", like=torch.tensor([[1.0, -2.0]]))
    assert figures[0].axes[0].get_xlim() == figures[0].axes[0].get_ylim() == (-3.0, 3.0)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_points_become_a_scatter(tmp_path: Path, figures: list[Figure], dimensions: int) -> None:
    points = torch.randn(30, dimensions)
    save_grid(points, tmp_path / "points.png")
    (axes,) = figures[0].axes
    shown = np.asarray(axes.collections[0].get_offsets())
    assert np.allclose(shown, points[:, [0, min(1, dimensions - 1)]])
    picture = read(tmp_path / "points.png")
    assert picture.shape == (500, 500, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 2


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_save_images(tmp_path: Path, channels: int, mode: str) -> None:
    samples = images(3, channels)
    save_images(samples, tmp_path / "out")
    names = [path.name for path in sorted((tmp_path / "out").iterdir())]
    assert names == ["000000.png", "000001.png", "000002.png"]
    for name, image in zip(names, samples.numpy(), strict=True):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.mode == mode
            assert np.array_equal(np.asarray(picture), image.transpose(1, 2, 0).squeeze())


@pytest.mark.parametrize("samples", [torch.zeros(3, 2), images(3, 2)])
def test_save_images_wants_pictures(tmp_path: Path, samples: Tensor) -> None:
    with pytest.raises(DataError, match=r"are no pictures: write them as \.npz"):
        save_images(samples, tmp_path)


RECORDS: list[dict[str, Any]] = [
    {"step": 1, "seconds": 0.1, "wasserstein": 0.5, "critic_loss": -0.5, "penalty/gp": 9.0},
    {"step": 5, "seconds": 0.2, "wasserstein": 2.5, "critic_loss": -2.5, "score/fid": 70.0},
    {"step": 9, "seconds": 0.3, "wasserstein": 1.5, "critic_loss": -1.5, "penalty/gp": 0.3},
]


WGAN_GP = {"loss": {"name": "wasserstein"}, "plugin": [{"name": "gp", "as": "mine"}]}
"""The table of a run's recipe, as far as curves look at it."""


@pytest.mark.parametrize(
    ("loss", "plugins", "bounds"),
    [
        ("wasserstein", ["gp"], ["gp"]),
        ("wasserstein", ["tensorboard", "sn"], ["sn"]),  # which trains nothing
        ("wasserstein", ["clip", "lazy"], ["clip"]),
        ("wasserstein", ["of_somebody"], ["of_somebody"]),  # who can tell?
        ("wasserstein", ["tensorboard"], []),
        ("wasserstein", ["probe"], []),
        ("wasserstein", [], []),
        ("hinge", ["sn"], []),
        ("nonsaturating", ["gp"], []),
        ("rpgan", ["r1", "r2"], []),
        ("of_somebody", ["gp"], []),
    ],
)
def test_only_a_bounded_critic_under_the_wasserstein_loss_estimates_a_distance(
    loss: str, plugins: list[str], bounds: list[str]
) -> None:
    recipe = {"loss": {"name": loss}, "plugin": [{"name": name} for name in plugins]}
    assert bounding(recipe) == bounds
    titles = list(curve_figures(RECORDS, is_bounded=bool(bounds)))
    assert titles[0] == ("Wasserstein estimate" if bounds else "D(real) − D(fake)")


def test_curves_draw_every_value_over_steps(tmp_path: Path, figures: list[Figure]) -> None:
    plot_curves(RECORDS, tmp_path / "curves.png", WGAN_GP)
    lines = {
        str(line.get_label()): np.column_stack(line.get_data()).tolist()
        for axes in figures[0].axes
        for line in axes.lines
    }
    assert lines == {
        "D(real) − D(fake)": [[1, 0.5], [5, 2.5], [9, 1.5]],
        "critic_loss": [[1, -0.5], [5, -2.5], [9, -1.5]],
        "penalty/gp": [[1, 9.0], [9, 0.3]],
        "score/fid": [[5, 70.0]],
    }
    titled = [axes.get_title(loc="left") for axes in figures[0].axes if axes.lines]
    assert titled == ["Wasserstein estimate", "losses", "penalties", "scores"]
    picture = read(tmp_path / "curves.png")
    assert picture.shape == (600, 1100, 3)  # two rows of two
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_each_panel_has_a_figure_of_its_own() -> None:
    records = [{**record, "penalty/$\\frac$": 2.0} for record in RECORDS]
    figures = curve_figures(records, is_bounded=True)
    assert list(figures) == ["Wasserstein estimate", "losses", "penalties", "scores"]
    drawn = {str(line.get_label()): line for line in figures["penalties"].axes[0].lines}
    assert np.column_stack(drawn["penalty/gp"].get_data()).tolist() == [[1, 9.0], [9, 0.3]]
    (axes,) = figures["penalties"].axes
    assert axes.get_xlabel() == "generator updates"
    figures["penalties"].savefig(io.BytesIO())  # though a $ begins a formula elsewhere
    assert curve_figures([{"step": 1, "seconds": 0.1}], is_bounded=True) == {}


def test_what_a_plugin_notes_has_a_panel_of_its_own(tmp_path: Path, figures: list[Figure]) -> None:
    """A number that only some records have is drawn where they have it; names may hold slashes."""
    records = [
        {"step": 1, "seconds": 0.1, "note/probe/median": 1.0, "note/a/$b/x": 3.0},
        {"step": 2, "seconds": 0.2, "critic_loss": 7.0},
        {"step": 3, "seconds": 0.3, "note/probe/median": 2.0, "note/probe/p90": 5.0},
    ]
    made = curve_figures(records, is_bounded=False)
    assert list(made) == ["losses", "notes of probe", "notes of a/$b"]
    drawn = {
        str(line.get_label()): np.column_stack(line.get_data()).tolist()
        for line in made["notes of probe"].axes[0].lines
    }
    assert drawn == {"note/probe/median": [[1, 1.0], [3, 2.0]], "note/probe/p90": [[3, 5.0]]}
    plot_curves(records, tmp_path / "curves.png", WGAN_GP)
    titled = [axes.get_title(loc="left") for axes in figures[0].axes if axes.lines]
    assert titled == ["losses", "notes of probe", r"notes of a/\$b"]


@pytest.mark.parametrize("records", [[], [{"step": 1, "seconds": 0.1}]])
def test_no_values_no_curves(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    plot_curves(records, tmp_path / "curves.png", WGAN_GP)
    assert not (tmp_path / "curves.png").exists()


RECORD = {
    "step": 15, "update": 75, "seconds": 3.2, "d_real": 0.7, "generator_loss": -0.125,
    "wasserstein": 1.5, "penalty/gp": 0.25,
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set what the displays take for the time."""
    now = SimpleNamespace(value=100.0)
    time = SimpleNamespace(perf_counter=lambda: now.value)
    monkeypatch.setattr("gancore.report.display.time", time)
    return lambda value: setattr(now, "value", value)


@pytest.mark.parametrize(("steps", "left"), [(20, "0:10"), (45, "1:00"), (3615, "2:00:00")])
def test_lines_display(clock: Callable[[float], None], steps: int, left: str) -> None:
    file = io.StringIO()
    display = LinesDisplay(file)
    display.begin("runs/a[b]: gp; digits", 10, steps)  # resumed at step 10
    clock(110.0)
    display.advance(15, RECORD)
    display.record(RECORD)
    display.say("scoring …")
    display.end()
    begin, line, said = file.getvalue().splitlines()
    assert (begin, said) == ("runs/a[b]: gp; digits", "scoring …")
    numbers = "D(real)−D(fake) 1.5 penalty/gp 0.25 generator_loss -0.125"
    assert line == f"step 15/{steps} {numbers} | 0.5 steps/s, {left} left"


def test_lines_display_prints_no_control_codes(clock: Callable[[float], None]) -> None:
    file = io.StringIO()
    display = LinesDisplay(file)
    display.begin("title", 0, 20)
    display.record(RECORD)  # no time has passed: neither a crash nor nonsense
    display.record({**RECORD, "penalty/gp": math.inf})
    assert file.getvalue().count("\n") == 3
    assert all(char.isprintable() or char == "\n" for char in file.getvalue())


@pytest.mark.parametrize("plain", [True, False])
def test_displays_count_samples(clock: Callable[[float], None], plain: bool) -> None:
    display: Display
    display, file = (LinesDisplay(out := io.StringIO()), out) if plain else live()
    for done, now in [(256, 100.0), (512, 104.0), (768, 111.0), (1024, 112.0), (1200, 113.0)]:
        clock(now)
        display.count("sampling", done, 1200)
    display.count("scoring", 1, 4)
    display.end()
    if plain:  # the first, the last, and one in ten seconds
        shown = [f"sampling {done}/1200" for done in (256, 768, 1200)]
        assert file.getvalue().splitlines() == [*shown, "scoring 1/4"]
    else:
        assert "1200/1200" in file.getvalue()
        assert "scoring" in file.getvalue()


def live() -> tuple[LiveDisplay, io.StringIO]:
    file = io.StringIO()
    return LiveDisplay(Console(file=file, force_terminal=True, width=120)), file


def test_live_display_shows_step_speed_and_values(clock: Callable[[float], None]) -> None:
    display, file = live()
    display.begin("runs/a: gp", 10, 20)
    clock(110.0)
    display.advance(12, {**RECORD, "penalty/gp": 9.5})
    display.advance(15, {key: RECORD[key] for key in ("step", "wasserstein")})  # lazy: gp not due
    display.say("half [b]way[/b]")
    display.end()
    shown = file.getvalue()
    for text in (
        "runs/a: gp",
        "15/20",
        "0.5 steps/s",
        "D(real)−D(fake)",
        "penalty/gp",
        "half [b]way[/b]",
    ):
        assert text in shown
    last = shown[shown.rindex("penalty/gp") :]
    assert "9.5" in last  # the latest due value
    assert "1.5" in last
    assert "d real" not in shown
    assert shown.endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize("title", ["runs/sweep[a]: gp", "runs/[/x]: gp"])
def test_live_display_takes_a_folder_name_literally(title: str) -> None:
    display, file = live()
    try:
        display.begin(title, 0, 10)
    finally:
        display.end()
    assert title in file.getvalue()


def test_a_display_may_be_silent(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    display.begin("title", 0, 20)
    display.advance(1, RECORD)
    display.record(RECORD)
    display.count("sampling", 1, 2)
    display.say("text")
    display.end()
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("forced", [None, "1"])
def test_display_for_a_terminal_and_for_anything_else(
    forced: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if forced:  # continuous integration sets it: its log is no terminal all the same
        monkeypatch.setenv("FORCE_COLOR", forced)
    assert type(display_for(Terminal())) is LiveDisplay
    assert type(display_for(io.StringIO())) is LinesDisplay
