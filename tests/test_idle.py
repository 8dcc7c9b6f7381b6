"""What has no effect is told: options, plugins, data, critics, and entries of a board."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import TOY, Critic, Gan, Generator, images, parsed, started, trainer
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, hookimpl, plugin
from gancore.data import Dataset
from gancore.errors import RecipeError
from gancore.leaderboard.board import Board
from gancore.leaderboard.plan import plan
from gancore.losses import Hinge, NonSaturating, RpGAN, Wasserstein
from gancore.recipe import Recipe
from gancore.training import Trainer, check_recipe
from gancore.training.idle import IdleWarning
from gancore_gp import GradientPenalty
from gancore_lazy import Lazy


def told(**changes: Any) -> list[str]:
    """What `gan recipe check` says of the toy recipe with other values."""
    return check_recipe(parsed(TOY, **changes))


@pytest.mark.parametrize(
    ("idle", "at_work"),
    [
        (
            {"optimizer.name": "rmsprop", "optimizer.betas": [0.5, 0.9]},
            {"optimizer.name": "adam", "optimizer.betas": [0.5, 0.9]},
        ),
        ({"optimizer.alpha": 0.9}, {"optimizer.name": "rmsprop", "optimizer.alpha": 0.9}),
        (
            {"train.allow_batch_statistics": True, "plugin": []},
            {"train.allow_batch_statistics": True},
        ),
        (
            {"score.extractor": "digits", "score.metrics": ["w2"]},
            {"score.extractor": "digits", "score.metrics": ["kid"]},
        ),
        (
            {"score.weights": __file__, "score.metrics": ["modes"]},
            {"score.weights": __file__, "score.metrics": ["prc"]},
        ),
    ],
    ids=lambda changes: "-".join(changes),
)
def test_an_option_without_effect_is_told_in_one_line(
    idle: dict[str, Any], at_work: dict[str, Any]
) -> None:
    (line,) = told(**idle)
    key, _, rest = line.partition(" = ")
    assert key in idle
    assert " has no effect: it needs " in rest
    assert told(**at_work) == []
    del idle[key]
    assert told(**idle) == []  # no word of what nobody has set


def test_a_default_written_out_is_not_told() -> None:
    assert told(**{"score.every": 2, "score.extractor": "digits", "score.weights": __file__}) == []
    assert told(**{"optimizer.name": "rmsprop", "optimizer.betas": [0.0, 0.9]}) == []


@pytest.mark.parametrize("names", [["lazy"], ["clip", "lazy"], ["sn", "lazy", "tensorboard"]])
def test_what_scales_penalties_is_told_where_there_is_none(names: list[str]) -> None:
    (line,) = told(plugin=[{"name": name} for name in names])
    assert "plugin lazy (gancore-lazy" in line
    assert "has no effect: it scales penalties, and there is none" in line
    assert told(plugin=[{"name": "gp"}, *({"name": name} for name in names)]) == []


def test_gan_recipe_check_tells_it(gan: Gan, tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    path.write_text(TOY + '[optimizer]\nname = "rmsprop"\nbetas = [0.5, 0.9]\n')
    code, out, err = gan("recipe", "check", path)
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    assert line.startswith(f"{path}: valid; optimizer.betas = [0.5,0.9] has no effect: it needs ")


def test_gan_run_tells_it_before_it_trains(gan: Gan, tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    path.write_text(TOY)
    idle = ["--set=optimizer.alpha=0.5", "--set=train.steps=1", "--force", "--device=cpu"]
    code, out, err = started("run", path, "--out", tmp_path / "run", *idle)
    assert code == 0, err
    assert err.splitlines() == [
        "warning: --force has no effect without --resume",
        "warning: optimizer.alpha = 0.5 has no effect: it needs optimizer.name = 'rmsprop'; add "
        "that, or leave it out",
    ]
    assert "step 1/1" in out
    with pytest.warns(IdleWarning, match=r"optimizer.alpha = 0.5 has no effect"):
        code, _, err = gan("run", path, "--dry-run", *idle)
    assert code == 0
    with pytest.warns(IdleWarning, match=r"optimizer.alpha = 0.5 has no effect"):
        code, _, err = gan("run", path, "--out", tmp_path / "run", "--resume", *idle)
    assert (code, err) == (0, "")


def silent(make: Callable[[], Trainer], folder: Path) -> Trainer:
    """Run what has nothing to be warned of: warnings are errors here."""
    made = make()
    made.run(folder / "silent")
    return made


def test_a_trainer_warns(tmp_path: Path) -> None:
    with pytest.warns(IdleWarning, match=r"plugin lazy .* scales penalties") as caught:
        trainer(plugins=[Lazy()]).run(tmp_path / "run")
    assert len(caught) == 1
    silent(lambda: trainer(plugins=[GradientPenalty(), Lazy()]), tmp_path)


@plugin
class Late:
    """Scales penalties by 0 until an update."""

    update: int = 0

    @hookimpl
    def penalty_scale(self, plugin: str, update: int) -> float:
        return float(update >= self.update)


@plugin
class Watcher:
    """Answers nothing, at any time: by right."""

    @hookimpl
    def penalty(self, step: CriticStep) -> None:
        return None


def test_a_penalty_that_was_never_due_is_told_at_the_end(tmp_path: Path) -> None:
    plugins = {"gp": GradientPenalty(), "watcher": Watcher(), "late": Late(update=12)}
    with pytest.warns(IdleWarning, match=r"plugin \w+ .*: its penalty was scaled by 0") as caught:
        trainer(plugins=plugins).run(tmp_path / "run")  # of 12 updates
    assert [str(each.message).split()[1] for each in caught] == ["gp", "watcher"]
    plugins = {"gp": GradientPenalty(), "watcher": Watcher(), "late": Late(update=11)}
    silent(lambda: trainer(plugins=plugins), tmp_path)


def test_what_was_due_before_a_resume_is_not_told(tmp_path: Path) -> None:
    """Of 12 updates the first alone is due, and it is the other process's."""
    plugins = [GradientPenalty(), Lazy(every=12)]
    stopped = {"steps": 6, "batch_size": 8, "critic_steps": 2, "max_seconds": 1e-9}
    trainer(plugins=plugins, train=stopped).run(tmp_path / "run")
    again = trainer(plugins=[GradientPenalty(), Lazy(every=12)])
    again.run(tmp_path / "run", resume=True)
    assert again.learner.were_due == set()


# data


@pytest.mark.parametrize(("most", "dark"), [(0, True), (1, True), (16, True), (31, True)])
@pytest.mark.parametrize("where", [0, 70])
def test_images_that_are_nearly_black_are_told(
    most: int, dark: bool, where: int, tmp_path: Path
) -> None:
    """As 0/1 or scikit-learn's 0 … 16 become where nobody scales them."""
    samples = torch.zeros(80, 1, 4, 4, dtype=torch.uint8)
    samples[where, 0, 1, 2] = most
    with pytest.warns(IdleWarning, match=f"'mine': no value is above {most}, so that all images"):
        trainer(data=Dataset("mine", samples)).run(tmp_path / "run")
    samples[where, 0, 1, 2] = 32
    silent(lambda: trainer(data=Dataset("mine", samples)), tmp_path)


# critics


class Ends(nn.Module):
    """A critic of 4×4 images that ends in something."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 1)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.layer(x.flatten(1)))


@plugin
class LeastSquares:
    """A loss for scores in [0, 1], by right (Mao et al., 2017)."""

    @hookimpl
    def critic_loss(self, step: CriticStep) -> Tensor:
        return (1 - step.scores(step.real)).square().mean() + step.scores(step.fake).square().mean()

    @hookimpl
    def generator_loss(self, step: GeneratorStep) -> Tensor:
        return (1 - step.scores(step.fake)).square().mean()


def first_update(critic: nn.Module, loss: object, **train: Any) -> list[str]:
    """What the first two critic updates warn of."""
    sections = {"steps": 2, "batch_size": 4, **train}
    made = Trainer(Generator(), critic, images(), loss=loss, train=sections, device="cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.critic_update(0)
        made.critic_update(1)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("loss", [Wasserstein, Hinge, NonSaturating, RpGAN])
def test_a_sigmoid_under_a_loss_on_logits_is_told_once(loss: type) -> None:
    (line,) = first_update(Ends(nn.Sigmoid()), loss())
    assert line.startswith("the critic ends in a sigmoid, and the loss ")
    assert line.endswith("is for scores of any size: take it off the critic")
    assert first_update(Ends(nn.Identity()), loss()) == []


@pytest.mark.parametrize(
    ("end", "what"),
    [
        (lambda x: torch.sigmoid(x).squeeze(1), "a sigmoid"),
        (lambda x: torch.sigmoid(x.expand(-1, 3)).mean(1), "a sigmoid"),
        (lambda x: torch.sigmoid(x).clamp(1e-6, 1 - 1e-6).view(-1, 1, 1, 1), "a sigmoid"),
        (nn.functional.logsigmoid, "a logarithm of a sigmoid"),
        (torch.tanh, "a tanh"),
        (lambda x: torch.softmax(torch.cat([x, -x], 1), 1)[:, 0], "a softmax"),
    ],
)
def test_bounded_ends(end: Callable[[Tensor], Tensor], what: str) -> None:
    (line,) = first_update(Ends(end), Hinge())
    assert line.startswith(f"the critic ends in {what},")


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x * torch.sigmoid(x),  # a gate bounds nothing
        lambda x: 10 * torch.tanh(x),
        lambda x: torch.sigmoid(x) - x,
        lambda x: torch.logit(torch.sigmoid(x)),
        nn.functional.softplus,
    ],
)
def test_a_sigmoid_that_is_not_the_end_is_not_told(end: Callable[[Tensor], Tensor]) -> None:
    assert first_update(Ends(end), NonSaturating()) == []


def test_losses_for_probabilities_may_have_a_sigmoid() -> None:
    assert first_update(Ends(nn.Sigmoid()), LeastSquares()) == []
    assert first_update(Critic(), LeastSquares()) == []


def test_a_sigmoid_is_told_in_bf16_too() -> None:
    (line,) = first_update(Ends(nn.Sigmoid()), NonSaturating(), precision="bf16")
    assert line.startswith("the critic ends in a sigmoid")


# boards

BOARD = """
recipe = "toy.toml"
baseline = "gp"
seeds = [0, 1]
{more}
[[entry]]
name = "gp"
[[entry]]
name = "other"
set = [{other}]
"""


def planned(folder: Path, other: str = "", more: str = "", recipe: str = TOY) -> Any:
    (folder / "toml").mkdir(exist_ok=True)
    (folder / "toml" / "toy.toml").write_text(
        recipe.replace("metrics = []", 'metrics = ["w2", "modes"]')
    )
    path = folder / "toml" / "board.toml"
    path.write_text(BOARD.format(other=other, more=more))
    loaded = Board.load(path)
    recipes = loaded.within_budget(loaded.recipes(path.parent), {})
    return plan(loaded, recipes, folder / "out", device="cpu")


@pytest.mark.parametrize(
    "other",
    [
        "",
        '"plugin.0.weight=10.0"',  # its default
        '"log.every=7", "checkpoint.every=2", "sample.every=9"',
        '"score.every=2"',
    ],
)
def test_two_entries_that_make_the_same_runs_are_an_error(tmp_path: Path, other: str) -> None:
    with pytest.raises(RecipeError, match="entries 'gp' and 'other' are one and the same"):
        planned(tmp_path, other)


@pytest.mark.parametrize(
    "other", ['"plugin.0.weight=9.0"', '"train.steps=4"', '"plugin.0.as=mine"', '"train.ema=0.9"']
)
def test_entries_that_differ_are_made(tmp_path: Path, other: str) -> None:
    assert len(planned(tmp_path, other)) == 4


@pytest.mark.parametrize("other", ['"train.seed=5"', '" train.seed = 5"'])
def test_a_seed_in_a_boards_set_is_an_error(tmp_path: Path, other: str) -> None:
    with pytest.raises(RecipeError, match=r"train.seed has no effect, for `seeds` of the board"):
        planned(tmp_path, other)
    with pytest.raises(RecipeError, match=r"train.seed has no effect, for `seeds` of the board"):
        planned(tmp_path, '"train.ema=0.5"', more=f"set = [{other}]")


def test_a_recipe_may_have_a_seed_of_its_own(tmp_path: Path) -> None:
    seeded = TOY.replace("[train]", "[train]\nseed = 7")
    jobs = planned(tmp_path, '"train.ema=0.5"', recipe=seeded)
    assert [job.recipe["train"]["seed"] for job in jobs] == [0, 0, 1, 1]


def test_steps_beside_a_budget_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.steps has no effect, for \[budget\] of the bo"):
        planned(tmp_path, '"train.steps=4"', more="budget = {count = 10}")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('metric = "fid"', "the runs will have w2, modes, and the board ranks by fid"),
        (
            'set = ["score.metrics=[]"]',
            "the runs will have no scores, and the board ranks by the first",
        ),
    ],
)
def test_a_board_that_ranks_by_no_score_of_its_runs_is_an_error(
    tmp_path: Path, more: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        planned(tmp_path, '"train.ema=0.5"', more=more)
    assert planned(tmp_path, '"train.ema=0.5"', more='metric = "modes"')


def test_the_recipes_in_the_repository_have_nothing_idle() -> None:
    for path in sorted((Path(__file__).parents[1] / "recipes").glob("*.toml")):
        assert [line for line in check_recipe(Recipe.load(path)) if "no effect" in line] == [], path


def test_a_loss_of_one_pass_makes_one_pass() -> None:
    """Scores are judged where there are some: a pass of ours would move a critic's state."""

    @plugin
    class Joint:
        any_score: ClassVar[bool] = True

        @hookimpl
        def critic_loss(self, step: CriticStep) -> Tensor:
            real, fake = step.scores(torch.cat([step.real, step.fake])).chunk(2)
            return (fake - real).mean()

        @hookimpl
        def generator_loss(self, step: GeneratorStep) -> Tensor:
            return -step.scores(step.fake).mean()

    sizes: list[list[int]] = []
    made = trainer(loss=Joint())
    made.critic.register_forward_pre_hook(lambda module, given: sizes[-1].append(len(given[0])))
    for update in range(3):
        sizes.append([])
        made.critic_update(update)
    assert sizes[0] == sizes[1] == sizes[2]


def test_a_mistake_in_a_board_is_told_before_costs_are_measured(tmp_path: Path, gan: Gan) -> None:
    (tmp_path / "toy.toml").write_text(TOY)  # without scores
    board = tmp_path / "board.toml"
    board.write_text(
        'recipe = "toy.toml"\nbaseline = "none"\nseeds = [0]\n'
        '[[entry]]\nname = "none"\nset = ["plugin.0.weight=9.0"]\n[[entry]]\nname = "gp"\n'
    )
    code, out, err = gan("leaderboard", board, "--out", tmp_path / "out")
    assert code == 2
    assert "the runs will have no scores" in err
    assert "measuring" not in out + err
