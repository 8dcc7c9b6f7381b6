"""`gan bench`: what plugins cost with a recipe, from the command line."""

from __future__ import annotations

import json
import tomllib

import pytest
from helpers import ROOT, Gan, started

from gancore.cli.bench import _with
from gancore.recipe import Recipe

RECIPES = ROOT / "recipes"


def test_json_has_an_entry_for_each_set_with_its_plugins_and_cost() -> None:
    code, out, err = started(
        *("bench", RECIPES / "r1_r2_digits.toml", "--json", "--rounds", "2"),
        "--set=train.steps=320",
        *("--plugins", "r1", "--plugins", "r1+r2", "--plugins", "r1+lazy", "--plugins", "clip"),
    )
    assert code == 0, err
    found = json.loads(out)
    assert "measuring costs" in err
    assert found["recipe"]["loss"]["name"] == "rpgan"
    assert found["environment"]["versions"].keys() >= {"gancore", "torch"}
    entries = {entry["name"]: entry for entry in found["entries"]}
    assert list(entries) == ["none", "r1", "r1+r2", "r1+lazy", "clip"]
    assert {key.split("==")[0] for key in entries["r1+r2"]["plugins"].values()} == {
        "gancore-r1",
        "gancore-r2",
    }
    ratios = {name: entry["cost"]["flops_ratio"] for name, entry in entries.items()}
    assert ratios["none"] == entries["none"]["cost"]["time_ratio"] == ratios["clip"] == 1.0
    r1 = ratios["r1"] - 1
    assert ratios["r1+r2"] == pytest.approx(1 + 2 * r1)
    assert ratios["r1+lazy"] == pytest.approx(1 + r1 / 16)
    for entry in entries.values():
        assert entry["cost"]["seconds"] > 0
        assert entry["cost"]["memory"] > 0
        assert entry["cost"]["operations"] > 10


def test_other_plugins_leave_the_rest_of_the_recipe_as_typed() -> None:
    text = (ROOT / "recipes" / "wgan_gp_digits.toml").read_text()
    recipe = Recipe.parse(tomllib.loads(text), overrides=["data.path=1_000"])
    made = _with(recipe, "r1+lazy")
    assert [each.called for each in made.plugin] == ["r1", "lazy"]
    assert made.data.options.typed == {"path": "1_000"}
    assert made == recipe.model_copy(update={"plugin": made.plugin})


def test_the_recipes_own_plugins_are_measured_unless_others_are_named(gan: Gan) -> None:
    recipe = RECIPES / "wgan_gp_digits.toml"
    code, out, _ = gan("bench", recipe, "--rounds", "1", "--set=train.batch_size=4")
    assert code == 0
    assert "A critic update of dcgan on digits, 4 samples, fp32" in out
    names = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert names == ["none", "gp"]
    code, out, _ = gan("bench", RECIPES / "none_digits.toml", "--rounds", "1", "--json")
    assert code == 0
    assert [entry["name"] for entry in json.loads(out)["entries"]] == ["none"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--plugins", "gpp"], 2, "no plugin 'gpp' is installed. Did you mean 'gp'?"),
        (["--plugins", "gp+"], 2, "plugin.1.name: expected a name that can be printed"),
        (["--plugins", "clip+sn"], 2, "can't be combined"),
        (["--plugins", "gp", "--set=train.batch=4"], 2, "train.batch"),
        (["--set=plugin.0.weight=1e300"], 1, "the first update failed"),
    ],
)
def test_what_cant_be_measured_is_one_line(
    gan: Gan, arguments: list[str], code: int, said: str
) -> None:
    found, _, err = gan("bench", RECIPES / "wgan_gp_digits.toml", "--rounds", "1", *arguments)
    assert found == code
    assert said in err
    assert "Traceback" not in err
