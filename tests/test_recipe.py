"""Recipes: what is refused and how it is told, overrides, and the way back to TOML."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from gancore.errors import PluginError, RecipeError
from gancore.options import complete, validate
from gancore.recipe import Optimizer, Recipe, Score, Train, differences, parse_override

BASE = """\
[data]
name = "digits"
[generator]
name = "dcgan"
width = 32
[critic]
name = "dcgan"
[loss]
name = "wasserstein"
[[plugin]]
name = "gp"
weight = 10
[[plugin]]
name = "lazy"
as = "rarely"
[train]
steps = 5
"""


def load(tmp_path: Path, text: str, overrides: Any = ()) -> Recipe:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    return Recipe.load(path, overrides)


def refusal(tmp_path: Path, text: str, overrides: Any = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_a_recipe_reads_as_written(tmp_path: Path) -> None:
    recipe = load(tmp_path, BASE)
    assert recipe.generator.options == {"width": 32}
    assert [each.name for each in recipe.plugin] == ["gp", "lazy"]
    assert [each.alias for each in recipe.plugin] == [None, "rarely"]
    assert recipe.plugin[0].options == {"weight": 10}
    assert recipe.plugin[1].options == {}
    assert (recipe.train.steps, recipe.train.batch_size, recipe.train.generator_batch) == (
        5,
        64,
        64,
    )
    assert recipe.optimizer.betas == (0.0, 0.9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1\nb = = 2\n", "r.toml:2:5: "),
        ("[train\nsteps = 1\n", "r.toml:1:7: "),
        ('a = "x\n', "r.toml:1:7: "),
        ("[data]\nname = 'x'\nname = 'y'\n", "r.toml:3:"),
        ("a = [1,\n2", "r.toml:2:"),
    ],
)
def test_malformed_toml_has_a_place(tmp_path: Path, text: str, said: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(said)
    assert message.split(":")[2].isdigit()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.toml: can't be read: No such file"):
        Recipe.load(tmp_path / "nowhere.toml")
    with pytest.raises(RecipeError, match="can't be read: Is a directory"):
        Recipe.load(tmp_path)
    (tmp_path / "latin.toml").write_bytes("# caf\xe9\n".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.toml: is not UTF-8"):
        Recipe.load(str(tmp_path / "latin.toml"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimiser.lr=1", "optimiser: unknown key. Did you mean 'optimizer'?"),
        ("train.stepss=1", "train.stepss: unknown key. Did you mean 'steps'?"),
        ("optimizer.lrr=1", "optimizer.lrr: unknown key. Did you mean 'lr'?"),
        ("checkpoint.evry=1", "checkpoint.evry: unknown key. Did you mean 'every'?"),
        ("score.metric=[]", "score.metric: unknown key. Did you mean 'metrics'?"),
        ("train.steps='9'", "train.steps: expected a valid integer, got '9'"),
        ("train.steps=true", "train.steps: expected a valid integer, got True"),
        ("train.steps=1.5", "train.steps: expected a valid integer"),
        ("train.steps=-1", "train.steps: expected greater than or equal to 0"),
        ("train.steps=10_000_000_000", "train.steps: expected less than or equal to 1000000000"),
        ("train.batch_size=0", "train.batch_size: expected greater than or equal to 1"),
        ("train.batch_size=1_000_000_000", "train.batch_size: expected less than"),
        ("train.generator_batch_size=2_000_000", "train.generator_batch_size: expected less than"),
        ("train.critic_steps=1_000_000", "train.critic_steps: expected less than"),
        ("train.seed=9223372036854775808", "train.seed: expected less than"),
        ("train.max_seconds=0", "train.max_seconds: expected greater than 0"),
        ("train.max_seconds=nan", "train.max_seconds: expected a finite number"),
        ("train.precision='fp16'", "train.precision: expected 'fp32' or 'bf16', got 'fp16'"),
        ("train.ema=1", "train.ema: expected less than 1"),
        ("train.ema=true", "train.ema: expected a valid number"),
        ("train=5", "train: expected"),
        ("optimizer.lr=0", "optimizer.lr: expected greater than 0"),
        ("optimizer.lr=inf", "optimizer.lr: expected a finite number"),
        ("optimizer.lr='1e-3'", "optimizer.lr: expected a valid number, got '1e-3'"),
        ("optimizer.lr=1e300", "optimizer.lr: expected less than or equal to 1000"),
        ("optimizer.betas=[0.5]", "optimizer.betas.1: missing"),
        ("optimizer.betas=[0.0, 1.0]", "optimizer.betas.1: expected less than 1"),
        ("optimizer.name='sgd'", "optimizer.name: expected 'adam' or 'rmsprop', got 'sgd'"),
        ("log.every=0", "log.every: expected greater than or equal to 1"),
        ("sample.count=5000", "sample.count: expected less than or equal to 4096"),
        ("score.samples=1", "score.samples: expected greater than or equal to 2"),
        ("score.samples=100_000_000", "score.samples: expected less than"),
        ("score.metrics=[1]", "score.metrics.0: expected a valid string, got 1"),
        ("data.flip=1", "data.flip: expected a valid boolean, got 1"),
        ("data.name=3", "data.name: expected a valid string, got 3"),
        ("plugin=3", "plugin: expected"),
        ("plugin.1.as=3", "plugin.1.as: expected a valid string, got 3"),
        ("plugin.2.weight=3", "plugin.2.name: missing; it has no default"),
    ],
)
def test_a_wrong_value_names_file_key_and_what_was_expected(
    tmp_path: Path, override: str, said: str
) -> None:
    assert refusal(tmp_path, BASE, [override]).startswith(f"r.toml: {said}")


@pytest.mark.parametrize("number", ["9" * 300, "9" * 5000, "0x" + "f" * 5000])
def test_absurd_numbers_are_refused(tmp_path: Path, number: str) -> None:
    for override in (f"train.steps={number}", f"optimizer.lr={number}"):
        key = override.partition("=")[0]
        assert key in refusal(tmp_path, BASE, [override])
    assert refusal(tmp_path, f"{BASE}seed = {number}\n").startswith("r.toml")


def test_absurd_nesting_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "a = " + "[" * 3000 + "]" * 3000).startswith("r.toml")


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "[train]\nsteps = '3'\nseeed = 1\n[sampel]\n").splitlines()
    keys = {line.split(": ")[1] for line in lines}
    assert keys == {"data", "generator", "critic", "loss", "train.steps", "train.seeed", "sampel"}
    assert all(line.startswith("r.toml: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("train.steps=200", ("train.steps", 200)),
        ("optimizer.betas=[0, 0.9]", ("optimizer.betas", [0, 0.9])),
        (" data.name = 'x'", ("data.name", "x")),
        ("data.name=digits", ("data.name", "digits")),
        ("data.path=/a/b=c", ("data.path", "/a/b=c")),
        ("score.weights=", ("score.weights", None)),
        ("data.name=3\nx = 4", ("data.name", "3\nx = 4")),
    ],
)
def test_override_is_toml_or_else_a_string(text: str, pair: tuple[str, Any]) -> None:
    assert parse_override(text) == pair


@pytest.mark.parametrize(
    "text",
    ["2024-01-01", "2024-01-01 10:00:00", "2024-01-01T10:00:00.5Z", "10:00:00", "2024-01-01 # x"],
)
def test_what_toml_reads_as_a_date_stays_the_text(text: str) -> None:
    """And with it all else of the line: a comment is none on a command line."""
    for spaced in (f"data.path={text}", f"data.path = {text} "):
        assert parse_override(spaced) == ("data.path", text)


@pytest.mark.parametrize("value", ["2024-01-01 10:00:00", "10:00:00.50", "[2024-01-01]"])
def test_a_date_in_a_file_is_refused_as_its_text_is_lost(tmp_path: Path, value: str) -> None:
    said = refusal(tmp_path, BASE.replace("width = 32", f"width = {value}"))
    assert said.startswith("r.toml: generator.width")
    assert "expected no date or time, got " in said
    assert "quotes" in said


TYPED = ["1_000", "0x10", "inf", "-nan", "+1", "1e3", "1.50", "007", "true", "[1, 2]", "5 # x"]
"""Values that are no strings in TOML, but for one, and would be others if written back."""


@pytest.mark.parametrize("typed", TYPED)
def test_a_text_option_has_what_was_typed(tmp_path: Path, typed: str) -> None:
    def text(*, path: str = "", size: float = 1.0) -> None:
        """Two options, of which one takes text."""

    recipe = load(tmp_path, BASE, [f"generator.path={typed}", f"score.extractor={typed}"])
    recipe = recipe.without(["gp"])  # a copy knows it too
    assert recipe.score.extractor == typed
    options = recipe.generator.options
    del options["width"]
    assert validate(text, options, "generator") == {"path": typed}
    assert complete(text, options) == {"path": typed, "size": 1.0}


def test_a_number_on_the_command_line_is_one_where_a_number_is_meant(tmp_path: Path) -> None:
    def sized(*, size: float) -> None:
        """One option."""

    recipe = load(tmp_path, BASE, ["generator.size=1_0e2", "train.steps=1_000", "log.every=0x10"])
    assert (recipe.train.steps, recipe.log.every) == (1000, 16)
    options = recipe.generator.options
    del options["width"]
    assert validate(sized, options, "generator") == complete(sized, options) == {"size": 1000.0}
    for text in ("inf", "nan"):
        options = load(tmp_path, BASE, [f"generator.size={text}"]).generator.options
        del options["width"]
        with pytest.raises(
            PluginError, match=f"generator: size: expected a valid number, got '{text}'"
        ):
            validate(sized, options, "generator")


def test_no_value_removes_the_key(tmp_path: Path) -> None:
    """So that its default holds, whether it was there or not."""
    text = f"{BASE}batch_size = 8\n[score]\nevery = 5\nsamples = 9\n"
    for every in ("score.every=", "score.every = ", " score.every="):
        recipe = load(tmp_path, text, [every, "train.batch_size=", "train.ema=", "sample.count="])
        assert (recipe.score.every, recipe.score.samples) == (None, 9)
        assert recipe.train == Train(steps=5)
    assert load(tmp_path, text, {"score.every": None}).score.every is None
    assert load(tmp_path, text, ["score="]).score == Score()
    assert load(tmp_path, text, ["score=", "score.every=3"]).score == Score(every=3)
    assert load(tmp_path, text, ["score.every=3", "score.every="]).score.every is None
    assert load(tmp_path, text, ["score.every=", "score.every=3"]).score.every == 3
    assert load(tmp_path, text, ["plugin.0.weight="]).plugin[0].options == {}
    assert load(tmp_path, text, ["plugin="]).plugin == ()
    assert load(tmp_path, text, ["score.extractor=''"]).score.extractor == ""


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("score.evry", "override 'score.evry': there is no such key to remove. Did you mean 'ev"),
        ("plugin.0.wieght", "override 'plugin.0.wieght': there is no such key to remove. Did you"),
        ("scor.every", "override 'scor.every': there is no such key to remove."),
        ("plugin.0", "override 'plugin.0': name a key of the item"),
        ("plugin.7.weight", "override 'plugin.7.weight': '7' is no index from 0 to 2"),
        ("train.steps.x", "override 'train.steps.x': 'steps' is a value, not a table"),
        ("train.steps", "r.toml: train.steps: missing"),
    ],
)
def test_what_can_not_be_removed_is_told(tmp_path: Path, key: str, said: str) -> None:
    assert refusal(tmp_path, BASE, [f"{key}="]).startswith(said)


@pytest.mark.parametrize("text", ["train.steps", "=3", " = 3", ""])
def test_override_without_key_or_value(text: str) -> None:
    with pytest.raises(RecipeError, match=r"expected KEY=VALUE, such as train\.steps=200"):
        parse_override(text)


def test_overrides_set_keys_items_and_append(tmp_path: Path) -> None:
    overrides = ["train.steps=7", "plugin.0.weight=50.0", "plugin.2.name=r1", "plugin.2.gamma=1"]
    recipe = load(tmp_path, BASE, [*overrides, "optimizer.betas=[0, 0.5]", "log.every=2"])
    assert recipe.train.steps == 7
    assert [each.name for each in recipe.plugin] == ["gp", "lazy", "r1"]
    assert [each.options for each in recipe.plugin] == [{"weight": 50.0}, {}, {"gamma": 1}]
    assert recipe.optimizer.betas == (0.0, 0.5)
    assert [type(beta) for beta in recipe.optimizer.betas] == [float, float]
    assert recipe.log.every == 2
    assert recipe == load(tmp_path, BASE, dict(map(parse_override, overrides)) | {
        "optimizer.betas": (0, 0.5), "log.every": 2,
    })  # fmt: skip


def test_an_override_starts_a_list(tmp_path: Path) -> None:
    text = BASE.replace('[[plugin]]\nname = "gp"\nweight = 10\n', "")
    text = text.replace('[[plugin]]\nname = "lazy"\nas = "rarely"\n', "")
    assert load(tmp_path, text).plugin == ()
    assert load(tmp_path, text, ["plugin.0.name=gp"]).plugin[0].name == "gp"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("plugin.3.name", "'3' is no index from 0 to 2"),
        ("plugin.x.name", "'x' is no index from 0 to 2"),
        ("plugin.-1.name", "'-1' is no index from 0 to 2"),
        ("plugin.².name", "'²' is no index from 0 to 2"),
        ("plugin.0", "name a key of the item"),
        ("train.steps.x", "'steps' is a value, not a table"),
    ],
)
def test_an_override_that_leads_nowhere(tmp_path: Path, key: str, said: str) -> None:
    message = refusal(tmp_path, BASE, {key: "gp"})
    assert message.startswith(f"override {key!r}: {said}")


def test_every_option_of_a_plugin_can_be_set(tmp_path: Path) -> None:
    """The core takes `name` and `as`; any other key is the plugin's, `alias` too."""
    recipe = load(tmp_path, BASE, ["plugin.0.alias=x", "plugin.0.every=2"])
    assert recipe.plugin[0].options == {"weight": 10, "alias": "x", "every": 2}


def test_without(tmp_path: Path) -> None:
    recipe = load(tmp_path, BASE)
    assert [each.name for each in recipe.without(["rarely"]).plugin] == ["gp"]
    assert recipe.without(["gp", "rarely"]).plugin == ()
    assert recipe.without([]) == recipe
    assert len(recipe.plugin) == 2
    with pytest.raises(RecipeError, match=r"--no-plugin rarly: .*Did you mean 'rarely'\?"):
        recipe.without(["rarly"])
    with pytest.raises(RecipeError, match="--no-plugin lazy: "):  # it goes by its other name
        recipe.without(["lazy"])


def test_the_generators_batch_is_the_critics_unless_said() -> None:
    assert Train(steps=1, batch_size=5).generator_batch == 5
    assert Train(steps=1, batch_size=5, generator_batch_size=7).generator_batch == 7


def test_differences_name_what_makes_another_run(tmp_path: Path) -> None:
    old = load(tmp_path, BASE).table()
    same = ["train.steps=9", "train.max_seconds=1", "checkpoint.every=7", "sample.count=9"]
    assert (
        differences(old, load(tmp_path, BASE, [*same, "log.every=1", "score.samples=9"]).table())
        == []
    )
    decays = [
        load(tmp_path, BASE, [f"train.steps={steps}", "optimizer.decay=linear"]).table()
        for steps in (8, 9)
    ]
    assert differences(*decays) == ["train.steps: was 8, is 9"]
    new = load(tmp_path, BASE, ["train.seed=1", "optimizer.betas=[0, 0.5]", "plugin.0.weight=5"])
    assert differences(old, new.without(["rarely"]).table()) == [
        "optimizer.betas: was [0.0, 0.9], is [0.0, 0.5]",
        "plugin.0.weight: was 10, is 5",
        "plugin.1.as: was 'rarely', is None",
        "plugin.1.name: was 'lazy', is None",
        "train.seed: was 0, is 1",
    ]


def test_sections_from_python() -> None:
    section = Train.of({"steps": 3})
    assert Train.of(section) is section
    assert Optimizer.of(None) == Optimizer()
    assert Optimizer.of({"betas": (0, 0.9)}).betas == (0.0, 0.9)
    with pytest.raises(RecipeError, match=r"^train: stepz: unknown key\. Did you mean 'steps'\?"):
        Train.of({"stepz": 3, "steps": 3})


def test_a_weights_file_is_saved_as_an_absolute_path() -> None:
    path = Score.of({"weights": "w.pth"}).weights
    assert path == str(Path.cwd() / "w.pth")
    assert Score.of({"weights": path}).weights == path


unit = st.floats(0, 1, exclude_max=True)
seconds = st.none() | st.floats(0, exclude_min=True, allow_infinity=False)
trains = st.builds(
    Train,
    steps=st.integers(0, 10**9),
    batch_size=st.integers(1, 2**20),
    generator_batch_size=st.none() | st.integers(1, 2**20),
    critic_steps=st.integers(1, 10_000),
    seed=st.integers(0, 2**63 - 1),
    max_seconds=seconds,
    precision=st.sampled_from(["fp32", "bf16"]),
    ema=unit,
    allow_batchnorm=st.booleans(),
)
optimizers = st.builds(
    Optimizer,
    name=st.sampled_from(["adam", "rmsprop"]),
    lr=st.floats(0, 1e3, exclude_min=True),
    betas=st.tuples(unit, unit),
    alpha=unit,
    decay=st.sampled_from(["none", "linear", "cosine"]),
)


@settings(deadline=None, max_examples=40)
@given(trains, optimizers)
def test_the_saved_recipe_is_the_recipe(train: Train, optimizer: Optimizer) -> None:
    recipe = Recipe.parse(tomllib.loads(BASE)).model_copy(
        update={"train": train, "optimizer": optimizer}
    )
    table = recipe.table()
    assert Recipe.parse(tomllib.loads(tomli_w.dumps(table))) == recipe
    assert table["plugin"][1] == {"name": "lazy", "as": "rarely"}
    assert table["checkpoint"] == {"every": 1000, "keep": 3}
