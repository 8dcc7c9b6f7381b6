"""`gan report`: what the pictures show is true, and the page opens in a real browser."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DIGITS, TOY, Critic, images, networks, parsed, started, trainer
from matplotlib.collections import PathCollection
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gancore.cli import gan as command
from gancore.errors import CheckpointError, DataError, InputError, PluginError
from gancore.report import save_grid
from gancore.report.filmstrip import Frame, animation, filmstrip, read_frames, spread
from gancore.report.histograms import (
    critic_weights,
    gradient_norms,
    plot_gradient_norms,
    plot_weights,
)
from gancore.report.page import Page, Picture, Section
from gancore.report.surface import plot_surface, surface
from gancore.report.writer import write_report
from gancore.step import interpolate
from gancore.training import Run, load_critic
from gancore.training import build_trainer as build
from gancore_clip import clip_weights

pytestmark = pytest.mark.xdist_group("report")  # the runs and the browser are made once

GRIDS = {"sample.every": 1, "sample.count": 50}
EVIL = "<img src=x onerror=alert(1)>"


# what the pictures show


W = torch.tensor([2.0, -1.0])
REAL = torch.tensor([[1.0, 4.0], [3.0, 5.0], [2.0, 4.5]])


def linear(x: Tensor) -> Tensor:
    return x.flatten(1) @ W


def test_the_surface_of_a_linear_critic() -> None:
    x, y, values = surface(linear, REAL, resolution=7)
    # the data is 2 wide and 1 high around (2, 4.5): 1.5 times 2 in both directions
    assert x.tolist() == pytest.approx([0.5, 1, 1.5, 2, 2.5, 3, 3.5])
    assert y.tolist() == pytest.approx([3, 3.5, 4, 4.5, 5, 5.5, 6])
    assert torch.allclose(values, 2 * x[None, :] - y[:, None])


def test_the_surface_is_drawn_under_real_and_generated_points() -> None:
    fake = torch.rand(9, 2) + torch.tensor([2.0, 4.0])
    axes, bar = plot_surface(linear, REAL, fake).axes
    assert axes.get_aspect() == 1
    assert (axes.get_xlim(), axes.get_ylim()) == (pytest.approx((0.5, 3.5)), pytest.approx((3, 6)))
    points = {
        each.get_label(): np.asarray(each.get_offsets())
        for each in axes.collections
        if isinstance(each, PathCollection)
    }
    assert np.allclose(points["real"], REAL)
    assert np.allclose(points["generated"], fake)
    assert bar.get_ylabel() == "critic's score"
    low, high = bar.get_ylim()
    assert low == pytest.approx(2 * 0.5 - 6)
    assert high >= 2 * 3.5 - 3


def test_contours_are_fine_near_the_data() -> None:
    """A critic that is steep far away: the levels still tell the data's scores apart."""

    def steep(x: Tensor) -> Tensor:
        return linear(x) + 30 * (x - REAL.mean(dim=0)).norm(dim=1).sub(1.2).relu()

    def step(critic: Callable[[Tensor], Tensor], fake: Tensor) -> float:
        contours = plot_surface(critic, REAL, fake).axes[0].collections[0]
        steps: list[float] = np.diff(contours.levels).tolist()  # type: ignore[attr-defined]
        assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3)
        return steps[0]

    values, scores = surface(steep, REAL).values, linear(torch.cat([REAL, REAL + 5]))
    assert step(steep, REAL) == pytest.approx((values.max() - values.min()).item() / 24, rel=1e-3)
    assert step(linear, REAL + 5) == pytest.approx((scores.max() - scores.min()).item() / 10)


def test_a_constant_critic_has_no_contours() -> None:
    figure = plot_surface(lambda x: x[:, 0] * 0 + 3, REAL, REAL)
    assert all(isinstance(each, PathCollection) for each in figure.axes[0].collections)
    assert Picture.of(figure, title="", caption="", alt="").data


@pytest.mark.parametrize("shape", [(2,), (1, 1, 2)])
def test_the_gradient_norms_of_a_linear_critic_are_its_weight_s(shape: tuple[int, ...]) -> None:
    real, fake = torch.randn(300, *shape), torch.randn(300, *shape)
    norms = gradient_norms(linear, real, fake)
    assert norms.shape == (300,)
    assert torch.allclose(norms, torch.tensor(5.0).sqrt())
    assert not real.requires_grad


def test_gradient_norms_are_taken_between_real_and_generated() -> None:
    real, fake = torch.randn(300, 2), torch.randn(300, 2) + 5
    where = interpolate(real, fake, generator=torch.Generator().manual_seed(1))
    norms = gradient_norms(
        lambda x: x.square().sum(dim=1) / 2,  # whose gradient is x
        real,
        fake,
        generator=torch.Generator().manual_seed(1),
    )
    assert torch.allclose(norms, where.detach().norm(dim=1))


def test_the_histogram_of_gradient_norms_has_a_line_at_one() -> None:
    figure = plot_gradient_norms(torch.tensor([2.0, 2.0, 3.0, torch.inf]))
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [1, 1]
    assert axes.get_xlim()[0] == 0
    assert axes.get_xlim()[1] > 3
    assert sum(bar.get_height() for bar in axes.patches) == 3  # of the finite ones


def test_the_weights_of_a_clipped_critic_lie_within_its_limit() -> None:
    _, critic = networks()
    free = critic_weights(critic)
    assert len(free) == 16 * 12 + 12  # weights, and no biases
    assert free.abs().max() > 0.05
    clip_weights(critic, 0.05)
    clipped = critic_weights(critic)
    assert clipped.abs().max().item() == pytest.approx(0.05)
    bars = plot_weights(clipped).axes[0].patches
    assert sum(bar.get_height() for bar in bars) == len(clipped)
    edges = [edge for bar in bars for edge in (bar.get_x(), bar.get_x() + bar.get_width())]
    assert (min(edges), max(edges)) == (pytest.approx(-0.05), pytest.approx(0.05))


def test_normalized_weights_are_shown_as_the_critic_uses_them() -> None:
    with torch.no_grad():
        layer = nn.Linear(5, 3)
        layer.weight.mul_(100)
    critic = nn.Sequential(nn.LayerNorm([2, 5]), spectral_norm(layer, n_power_iterations=50)).eval()
    weights = critic_weights(critic).view(3, 5)
    assert torch.equal(weights, layer.weight)
    assert torch.linalg.matrix_norm(weights, 2).item() == pytest.approx(1, abs=0.01)


def test_a_critic_without_weights_has_an_empty_histogram() -> None:
    assert critic_weights(nn.Flatten()).shape == (0,)
    assert Picture.of(plot_weights(torch.empty(0)), title="", caption="", alt="").data


# samples over time


@pytest.mark.parametrize(
    ("count", "expected"),
    [(9, [*range(7)]), (7, [*range(7)]), (4, [0, 2, 4, 6]), (2, [0, 6])],
)
def test_spread(count: int, expected: list[int]) -> None:
    assert spread(range(7), count) == expected


def grids(folder: Path, steps: list[int]) -> Path:
    for step in steps:
        save_grid(images(4).samples[:4], folder / f"step-{step:06d}.png")
    return folder


def test_the_animation_has_a_frame_for_each_grid(tmp_path: Path) -> None:
    """Also where two grids are the same, which GIF writers merge."""
    frames = read_frames(grids(tmp_path, [1_000_000, 20, 3]))
    assert [frame.step for frame in frames] == [3, 20, 1_000_000]
    moving = Image.open(io.BytesIO(animation(frames)))
    assert (moving.format, moving.n_frames, moving.info["loop"]) == ("GIF", 3, 0)
    width, height = frames[0].image.size
    for number, frame in enumerate(frames):
        moving.seek(number)
        assert moving.size == (width, height + 24)
        below = np.asarray(moving.convert("RGB"))[24:].astype(int)
        assert np.abs(below - np.asarray(frame.image)).max() < 16  # 256 colours
        assert moving.info["duration"] == (1500 if number == 2 else 500)


def test_a_long_run_s_animation_has_sixty_frames_of_sane_size() -> None:
    large = Image.new("RGB", (2000, 1000), "red")
    frames = spread([Frame(step, large) for step in range(1, 101)], 60)
    assert (frames[0].step, frames[-1].step) == (1, 100)
    moving = Image.open(io.BytesIO(animation([*frames[:1], Frame(7, large.crop((0, 0, 50, 50)))])))
    assert moving.size == (640, 320 + 24)
    assert moving.n_frames == 2


def test_the_filmstrip_shows_first_and_last(tmp_path: Path) -> None:
    frames = read_frames(grids(tmp_path, [10 * step for step in range(1, 21)]), count=15)
    assert len(frames) == 15
    shown = [axes for axes in filmstrip(frames).axes if axes.images]
    assert len(shown) == 6
    assert (shown[0].get_title(), shown[-1].get_title()) == ("step 10", "step 200")
    assert np.array_equal(np.asarray(shown[0].images[0].get_array()), np.asarray(frames[0].image))


def test_a_damaged_grid_is_named(tmp_path: Path) -> None:
    (grids(tmp_path, [1]) / "step-000002.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"step-000002\.png can't be read"):
        read_frames(tmp_path)
    with pytest.raises(DataError, match="needs a frame"):
        animation([])


# the critic of a run


@pytest.mark.parametrize("plugin", ["gp", "sn"])
def test_load_critic_is_the_critic_that_was_trained(tmp_path: Path, plugin: str) -> None:
    made = build(parsed(TOY, **{"plugin.0.name": plugin}), device="cpu")
    run = made.run(tmp_path / "run")
    loaded = load_critic(run.path)
    assert not any(part.training for part in loaded.modules())
    x = torch.randn(10, 2)
    assert torch.equal(loaded(x), made.critic(x))
    assert torch.equal(critic_weights(loaded), critic_weights(made.critic))


def test_load_critic_of_a_run_from_python(tmp_path: Path) -> None:
    made = trainer()
    run = made.run(tmp_path / "run")
    with pytest.raises(PluginError, match=r"python:Critic.*load_critic\('.*', critic=…\)"):
        load_critic(run)
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(load_critic(run, critic=Critic())(x), made.critic(x))
    with pytest.raises(CheckpointError, match="do not fit: Error.*layers") as caught:
        load_critic(run, critic=nn.Linear(2, 1))
    assert str(caught.value).isprintable()


# the page


class Parsed(HTMLParser):
    """What a page's tags say."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> dict[str, Image.Image]:
        """Return each picture by its alt text, decoded."""
        found = {}
        for tag, attributes in self.tags:
            if tag == "img":
                head, _, data = str(attributes["src"]).partition(",")
                assert head in ("data:image/png;base64", "data:image/gif;base64")
                picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
                picture.load()
                assert picture.format == head[11:14].upper()
                found[str(attributes["alt"])] = picture
        return found


def headings(html: str) -> list[str]:
    return [part.partition("</h3>")[0] for part in html.split("<h3>")[1:]]


def needs_nothing_else(html: str) -> bool:
    """Whether all that a page refers to is in it."""
    tags = Parsed(html).tags
    named = [value for _, a in tags for key, value in a.items() if key in ("src", "href", "srcset")]
    return (
        all(str(value).startswith("data:") for value in named)
        and not {"script", "iframe", "object", "embed", "base"} & {tag for tag, _ in tags}
        and not any(word in html for word in ("http:", "https:", "url(", "@import"))
    )


def page(**changes: Any) -> Page:
    values: dict[str, Any] = {
        "title": "run",
        "summary": "",
        "scores": {},
        "protocol": "",
        "sections": [],
        "recipe": "",
        "environment": {},
        "record": {},
    }
    return Page(**{**values, **changes})


def test_every_text_of_a_page_is_escaped() -> None:
    pixel = Picture(EVIL, EVIL, EVIL, b"GIF", "image/gif")
    made = page(
        title=EVIL,
        summary=EVIL,
        scores={EVIL: EVIL},
        protocol=EVIL,
        sections=[Section(EVIL, [pixel], [EVIL])],
        recipe=EVIL,
        environment={EVIL: EVIL},
        record={EVIL: EVIL, "number": 1 / 3},
    ).html()
    parsed = Parsed(made)
    (picture,) = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert picture == {"src": "data:image/gif;base64,R0lG", "alt": EVIL}
    assert parsed.text.count(EVIL) == 15  # the title twice
    assert "0.333333" in parsed.text
    assert needs_nothing_else(made)
    assert not needs_nothing_else('<img src="http://x">')
    assert not needs_nothing_else("<script></script>")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run on points, in a folder and with a plugin of wicked names."""
    folder = tmp_path_factory.mktemp("runs") / EVIL
    build(parsed(TOY, **GRIDS, **{"plugin.0.as": EVIL}), device="cpu").run(folder)
    code, out, err = started("report", folder)
    assert code == 0, err
    assert out.splitlines()[-1] == f"report in {folder / 'report.html'}"
    return folder / "report.html"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run on images, with scores."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    build(parsed(DIGITS, **GRIDS), device="cpu").run(folder)
    write_report(Run(folder), device="cpu")
    return folder / "report.html"


CRITIC = ["Weights", "Gradient norms"]
GAP = "D(real) − D(fake)"
CURVES = ["Wasserstein estimate", "Critic&#39;s scores", "Losses", "Penalties", "Gradient norms"]


def test_the_report_of_a_toy(toy: Path) -> None:
    html = toy.read_text(encoding="utf-8")
    parsed = Parsed(html)
    expected = ["Over time", "In motion", "Value surface", *CRITIC, *CURVES]
    assert headings(html) == expected
    pictures = parsed.pictures()
    assert len(pictures) == len(expected)
    moving = pictures["The sample grids up to step 3, one after the other"]
    assert moving.n_frames == 3  # type: ignore[attr-defined]
    assert (toy.parent / "samples.gif").read_bytes() in (
        base64.b64decode(str(a["src"]).partition(",")[2]) for t, a in parsed.tags if t == "img"
    )
    assert needs_nothing_else(html)
    assert (toy.parent / "recipe.toml").read_text(encoding="utf-8") in parsed.text
    assert f"penalty/{EVIL}" in parsed.text
    assert "gancore-gp==" in parsed.text
    assert f"wasserstein + {EVIL}, 3 of 3 steps, seed 0" in parsed.text
    assert "Not scored" in parsed.text
    assert '<tr><th scope="row">step</th><td>3</td></tr>' in html  # of the last record
    assert not [each for _, each in parsed.tags if each.get("class") == "missing"]
    assert [path.name for path in toy.parent.glob(".*")] == []  # nothing half written


def test_the_report_of_images_has_scores_with_their_protocol(digits: Path) -> None:
    html = digits.read_text(encoding="utf-8")
    text = Parsed(html).text
    scores = json.loads((digits.parent / "scores.json").read_text())["scores"]
    assert headings(html) == ["Over time", "In motion", *CRITIC, *CURVES]
    assert "FID (digits features)" in text
    assert f"{scores['fid']:.4g}" in text
    assert "64 samples against 1,797 of digits (all), extractor digits (weights" in text
    assert needs_nothing_else(html)


def test_the_same_run_gives_the_same_report(digits: Path) -> None:
    before = digits.read_bytes()
    write_report(Run(digits.parent), device="cpu")
    assert digits.read_bytes() == before


def test_a_run_from_python_has_what_can_be_made(tmp_path: Path) -> None:
    run = trainer().run(tmp_path / "run")
    told: list[tuple[str, int, int]] = []
    write_report(run, device="cpu", progress=lambda *what: told.append(what))
    html = run.report_path.read_text(encoding="utf-8")
    assert headings(html) == ["Over time", "In motion", GAP, *CURVES[1:3], CURVES[4]]  # no penalty
    (line,) = [each for each in html.splitlines() if 'class="missing"' in each]
    assert "Pictures of the critic are missing: " in line
    assert "was made from Python with python:Generator" in line
    assert told[0] == ("drawing", 0, 3)
    assert told[-1] == ("drawing", 3, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "distance times the critic's Lipschitz constant, as far as that is held by gp."),
        ({"plugin": []}, "It estimates no distance, as nothing holds the critic."),
        ({"loss.name": "hinge"}, "It estimates no distance, as the hinge loss makes it none."),
    ],
)
def test_the_report_says_what_its_own_run_estimates(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    run = build(parsed(TOY, **{"train.steps": 1}, **changes), device="cpu").run(tmp_path / "run")
    write_report(run, device="cpu")
    html = run.report_path.read_text(encoding="utf-8")
    assert said in Parsed(html).text
    assert ("Wasserstein estimate" in html) == (not changes)
    assert (f">{GAP}<" in html) == bool(changes)


def test_data_and_samples_that_are_gone_are_told(tmp_path: Path) -> None:
    run = build(parsed(TOY, **GRIDS), device="cpu").run(tmp_path / "run")
    recipe = run.recipe_path.read_text().replace('"gaussians8"', '"gone"')
    run.recipe_path.write_text(recipe)
    shutil.rmtree(tmp_path / "run" / "samples")
    without_samples, without_critic = write_report(run)
    html = run.report_path.read_text(encoding="utf-8")
    assert headings(html) == [CRITIC[0], *CURVES]
    assert without_samples.startswith("No samples: ")
    assert without_critic.startswith(
        "The critic's value surface and gradient norms are left out: no dataset 'gone' is installed"
    )
    lines = [line.strip() for line in Parsed(html).text.splitlines()]
    assert {without_samples, without_critic} <= {*lines}
    assert not run.animation_path.exists()


def test_a_run_without_records_or_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run folder"):
        command.main(["report", str(tmp_path)], standalone_mode=False)
    run = trainer().run(tmp_path / "run")
    shutil.rmtree(run.checkpoints)
    with pytest.raises(CheckpointError, match="has no checkpoint yet: run it first"):
        write_report(run)
    assert not run.report_path.exists()


@pytest.mark.parametrize("content", [None, ""])
def test_a_trained_run_without_records_has_the_rest(tmp_path: Path, content: str | None) -> None:
    run = build(parsed(TOY, **GRIDS), device="cpu").run(tmp_path / "run")
    run.metrics_path.unlink()
    if content is not None:
        run.metrics_path.write_text(content)
    code, _, err = started("report", run.path)
    assert code == 0
    assert err == ("warning: No curves: metrics.jsonl has no records, or is gone. Copy it anew.\n")
    html = run.report_path.read_text(encoding="utf-8")
    assert headings(html) == ["Over time", "In motion", "Value surface", *CRITIC]
    assert "3 of 3 steps, seed 0" in html


# in a browser


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
@pytest.mark.parametrize("name", ["toy", "digits"])
def test_the_page_opens_in_chromium(
    browser: Any, name: str, width: int, scheme: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(name)
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    tab = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    tab.goto(path.as_uri(), wait_until="load")
    sizes = tab.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.width])")
    assert len(sizes) == len(headings(path.read_text(encoding="utf-8")))
    assert all(complete and natural > 100 and shown > 100 for complete, natural, shown in sizes)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.inner_text("h1") == path.parent.name
    assert set(asked) <= {"file", "data"}
    assert asked.count("file") == 1
    assert complaints == []
    context.close()
