"""Files from strangers: nothing in them is run, escapes its folder, or ends in a traceback.

Run folders are in test_untrusted_runs.py, zips and images in test_data_folder.py,
test_data_images.py and test_untrusted_images.py, pages in test_report_page.py and
test_leaderboard_page.py, made-up recipes and boards in test_fuzz.py.
"""

from __future__ import annotations

import ast
import copy
import json
import re
import tomllib
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from helpers import BROKEN, ESCAPE, ROOT, TOY, Gan, is_clear, parsed
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from gancore.errors import InputError, RecipeError
from gancore.files.reading import LARGEST, read_toml
from gancore.leaderboard.board import Board
from gancore.leaderboard.compare import gate, regressed
from gancore.leaderboard.job import Job
from gancore.leaderboard.result import Result
from gancore.leaderboard.text import markdown
from gancore.recipe import Recipe
from gancore.training import build_trainer as build
from gancore.training import checkpoint

SOURCES = sorted([*(ROOT / "gancore").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")])

# nothing is run


PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unpickling(source: str) -> set[str]:
    """Return what of a source may read pickles: modules imported, names of `pickle`, calls."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names if alias.name.split(".")[0] in PICKLES}
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in PICKLES:
                found.add(f"from {module}")
            case ast.Attribute(value=ast.Name(id="pickle"), attr=name):
                found.add(f"pickle.{name}")
            case ast.Call(func=ast.Attribute(attr=name) as function, keywords=given_):
                call = ast.unparse(function)
                options = {each.arg: ast.unparse(each.value) for each in given_}
                if call == "torch.load" and options.get("weights_only") != "True":
                    found.add(call)
                if options.get("allow_pickle", "False") != "False":
                    found.add(f"{call}(allow_pickle)")
                if name in ("read_pickle", "load_state_dict_from_url") or call == "torch.hub.load":
                    found.add(call)
            case ast.Call(func=ast.Name(id="eval" | "exec" | "__import__" as name)):
                found.add(name)
    return found


def test_the_reader_of_sources_finds_what_unpickles() -> None:
    source = (
        "import pickle, dill.x, torch\nfrom joblib import load\npickle.loads(b'')\n"
        "def f():\n    import marshal\n    torch.load('x')\n"
        "torch.load('x', weights_only=False)\n"
        "np.load('x', allow_pickle=True)\npd.read_pickle('x')\neval('1')\n"
    )
    assert unpickling(source) == {
        *("pickle", "dill.x", "from joblib", "pickle.loads", "marshal", "torch.load"),
        *("np.load(allow_pickle)", "pd.read_pickle", "eval"),
    }
    assert unpickling("torch.load('x', weights_only=True)\nnp.load('x')\nre.compile('x')") == set()


def test_no_source_unpickles() -> None:
    found = {path.relative_to(ROOT).as_posix(): unpickling(path.read_text()) for path in SOURCES}
    assert len(found) > 80
    runs = {
        # a file that the command line names
        "gancore/entrypoints/plugin_file.py": {"exec"},
        # whose find_class is tried in test_data_images.py
        "gancore/data/cifar.py": {"pickle", "pickle.Unpickler"},
    }
    assert {name: calls for name, calls in found.items() if calls} == runs


# leaderboards


def leaderboard() -> dict[str, Any]:
    def entry(name: str, values: list[Any]) -> dict[str, Any]:
        return {"name": name, "scores": {"fid": {"values": values, "seeds": [0, 1, 2]}}}

    return {
        "format": 1,
        "metric": "fid",
        "higher_is_better": [],
        "entries": [entry("none", [1.0, 1.1, 1.2]), entry("gp", [2.0, 2.1, 2.3])],
        "protocol": {"extractor": "digits", "weights_sha256": "ab" * 32},
        "budget": None,
    }


def altered(path: str, value: Any) -> dict[str, Any]:
    """Return a leaderboard with another value at a path; None leaves it out."""
    whole = leaderboard()
    here: Any = whole
    *parents, last = path.split(".")
    for part in parents:
        here = here[int(part) if part.isdigit() else part]
    key = int(last) if last.isdigit() else last
    if value is None:
        del here[key]
    else:
        here[key] = value
    return whole


STRANGE: dict[str, Any] = {
    **{f"no {key}": altered(key, None) for key in leaderboard() if key != "budget"},
    **{f"{key} a number": altered(key, 3) for key in leaderboard() if key != "format"},
    "another format": altered("format", 2),
    "no entries": altered("entries", []),
    "a million entries": altered("entries", [{"name": "a", "scores": {}}] * 10**6),
    "numbers for entries": altered("entries", [1] * 10**5),
    "one name twice": altered("entries", leaderboard()["entries"][:1] * 2),
    "a path for a name": altered("entries.0.name", "../../x"),
    "markup for a name": altered("entries.0.name", "[/red]"),
    "control characters": altered("entries.0.name", ESCAPE),
    "a score's name": altered("entries.0.scores", {ESCAPE: {"values": [], "seeds": []}}),
    "an extractor": altered("protocol.extractor", "[/]"),
    "no weights": altered("protocol.weights_sha256", None),
    "no values": altered("entries.0.scores.fid.values", None),
    "fewer values": altered("entries.0.scores.fid.values", [1.0]),
    "text for values": altered("entries.0.scores.fid.values", ["1", "2", "3"]),
    "NaN": altered("entries.0.scores.fid.values", [float("nan"), 1.0, 2.0]),
    "inf": altered("entries.0.scores.fid.values", [float("inf"), 1.0, 2.0]),
    "1e300": altered("entries.0.scores.fid.values", [1e300, 1.0, 2.0]),
    "a seed twice": altered("entries.0.scores.fid.seeds", [0, 0, 1]),
    "text for seeds": altered("entries.0.scores.fid.seeds", ["0", "1", "2"]),
    "another budget": altered("budget", {ESCAPE: ESCAPE}),
    "a list": [leaderboard()],
    "null": None,
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_leaderboard_is_refused_with_exit_2(tmp_path: Path, gan: Gan, name: str) -> None:
    good, strange = tmp_path / "good.json", tmp_path / "strange.json"
    good.write_text(json.dumps(leaderboard()))
    strange.write_text(json.dumps(STRANGE[name]))
    code, out, err = gan("compare", good, strange)
    assert (code, out) == (2, "")
    assert is_clear(err, strange)
    if "million" not in name:  # which takes seconds to read
        code, out, err = gan("compare", strange, good)
        assert (code, out) == (2, "")


@pytest.mark.parametrize("name", ["cut", "empty", "a list", "null", "no text", "deep", "nested"])
def test_a_broken_leaderboard_is_refused_with_exit_2(tmp_path: Path, gan: Gan, name: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(BROKEN[name])
    code, out, err = gan("compare", path, path)
    assert (code, out) == (2, "")
    assert is_clear(err, path)


def test_the_leaderboard_that_they_are_made_from_is_compared(tmp_path: Path, gan: Gan) -> None:
    path = tmp_path / "good.json"
    path.write_text(json.dumps(leaderboard()))
    code, out, err = gan("compare", path, path)
    assert (code, err) == (0, "")
    assert "tie" in out


def test_a_score_without_values_decides_nothing(tmp_path: Path, gan: Gan) -> None:
    path = tmp_path / "none.json"
    path.write_text(json.dumps(altered("entries.1.scores.fid", {"values": [], "seeds": []})))
    code, out, err = gan("compare", path, path)
    assert (code, err) == (0, "")
    assert "undecided" in out


def test_unlike_leaderboards_say_so_without_control_characters() -> None:
    one, other = leaderboard(), leaderboard()
    other["protocol"][ESCAPE] = ESCAPE
    with pytest.raises(InputError, match="can't be compared") as caught:
        gate(*(Result.model_validate_json(json.dumps(each)) for each in (one, other)), "fid")
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


@pytest.mark.parametrize(("old", "new", "worse"), [(1e-300, 1e100, True), (1e100, 1e-300, False)])
def test_scores_of_any_size_have_a_verdict(
    tmp_path: Path, old: float, new: float, worse: bool
) -> None:
    paths = tmp_path / "old.json", tmp_path / "new.json"
    for path, size, last in zip(paths, (old, new), (0.8, 0.5), strict=True):
        values = [size, 0.9 * size, last * size]
        path.write_text(json.dumps(altered("entries.1.scores.fid.values", values)))
    found = gate(Result.read(paths[0]), Result.read(paths[1]), "fid")["gp"]
    assert found.verdict == ("worse" if worse else "better")
    assert regressed(found, 0.0) == worse


# names


NAMES = [
    "../x",
    "/etc/x",
    "a/../../x",
    "..",
    "a\0b",
    "a\nb",
    "a\rb",
    ESCAPE,
    "\u202ea",
    "~/x",
    "x" * 300,
]


def quoted(name: str) -> str:
    return json.dumps(name)  # is a TOML string too


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["plugin", "data", "generator", "critic", "loss"])
def test_a_component_s_name_is_looked_up_and_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gan: Gan, key: str, name: str
) -> None:
    text = re.sub(rf"(\[{key}\]\]?\nname = ).*", lambda found: found[1] + quoted(name), TOY)
    assert text != TOY
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    Path("r.toml").write_text(text)
    code, out, err = gan("run", "r.toml", "--device", "cpu")
    assert (code, out) == (2, "")
    assert all(line.isprintable() for line in err.split("\n"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["r.toml"]


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_s_name_that_is_no_file_s_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "board.toml"
    for key, text in (
        ("entry.0.name", 'baseline = "a"\n[[entry]]\nname = {}\n'),
        ("baseline", 'baseline = {}\n[[entry]]\nname = "a"\n'),
    ):
        path.write_text('recipe = "r.toml"\nseeds = [0]\n' + text.format(quoted(name)))
        with pytest.raises(RecipeError, match=key) as caught:
            Board.load(path)
        assert is_clear(str(caught.value), path)


def test_a_label_or_metric_of_a_board_is_text(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    text = 'recipe = "r.toml"\nseeds = [{seed}]\nbaseline = "a"\n{metric}[[entry]]\nname = "a"\n'
    path.write_text(text.format(seed=0, metric="") + f"label = {quoted(ESCAPE)}\n")
    with pytest.raises(RecipeError, match=r"entry.0.label: expected text without control"):
        Board.load(path)
    path.write_text(text.format(seed=0, metric='metric = "[/]"\n'))
    with pytest.raises(RecipeError, match=r"metric: "):
        Board.load(path)
    path.write_text(text.format(seed=2**63, metric=""))
    with pytest.raises(RecipeError, match=r"seeds.0: expected less than"):
        Board.load(path)


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b"])
def test_an_alias_names_no_file(tmp_path: Path, name: str) -> None:
    """The run is as any other, goes on where it stopped, and nothing is outside of its folder."""
    folder = tmp_path / "a" / "b" / "run"
    for steps in (2, 3):
        changes = {"plugin.0.name": "lecam", "plugin.0.as": name, "train.steps": steps}
        build(parsed(TOY, **changes), device="cpu").run(folder, resume=True)
    found = checkpoint.latest(folder / "checkpoints")
    assert found is not None
    assert name in found.state["plugins"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert all(path.is_relative_to(folder) for path in files)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", ESCAPE, "\u202ea"])
def test_an_alias_without_control_characters_is_asked_for(name: str) -> None:
    with pytest.raises(RecipeError, match=r"plugin.0.as: expected text without control") as caught:
        parsed(TOY, **{"plugin.0.as": name})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a\0b", "a\nb", ESCAPE, "\u202ea"])
def test_a_key_with_control_characters_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(TOY.replace("width", quoted(name)))
    with pytest.raises(RecipeError, match="a key with control characters") as caught:
        Recipe.load(path)
    assert is_clear(str(caught.value), path)


# limits


def test_an_override_that_can_not_be_is_refused() -> None:
    table = tomllib.loads(TOY)
    with pytest.raises(RecipeError, match="is no index from 0 to 1"):
        Recipe.parse(table, overrides=[f"plugin.{'9' * 5000}.weight=1"])
    with pytest.raises(RecipeError, match="a value that TOML does not have"):
        Recipe.parse(table, overrides={"generator.width": object()})
    with pytest.raises(RecipeError, match="nested over 32 deep"):
        Recipe.parse(table, overrides=[f"generator.{'a.' * 900}a=1"])


def test_lists_in_one_another_are_read_to_a_depth_of_32(tmp_path: Path) -> None:
    path = tmp_path / "deep.toml"
    path.write_text(f"a = {'[' * 32}{']' * 32}")
    assert read_toml(path)["a"]
    path.write_text(f"a = {'[' * 33}{']' * 33}")
    with pytest.raises(RecipeError, match="nested over 32 deep"):
        read_toml(path)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(TOY + "#" * (LARGEST - len(TOY)))
    Recipe.load(path)
    path.write_text(TOY + "#" * (LARGEST - len(TOY) + 1))
    with pytest.raises(RecipeError, match="over the limit of 256 KiB"):
        Recipe.load(path)
    for endless in (Path("/dev/zero"), tmp_path / "link"):
        if endless.name == "link":
            endless.symlink_to("/dev/zero")
        with pytest.raises(RecipeError, match="can't be read: it is a device, and no regular file"):
            Recipe.load(endless)


def test_a_path_with_a_null_byte_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"a\\x00b: can't be read: embedded null byte"):
        Recipe.load("a\0b")


def test_a_key_of_many_parts_is_refused_at_once(tmp_path: Path) -> None:
    """tomllib takes over a minute for this one."""
    path = tmp_path / "r.toml"
    path.write_text(TOY + "a." * 60_000 + "a = 1\n")
    with pytest.raises(RecipeError, match="a key of over 32 parts"):
        Recipe.load(path)
    dots = '# {0}\nx = "{0}"\ny = \'{0}\'\nz = """{0} "" {0}"""\n'.format("a." * 50)
    for text in (dots, f"x = [{'1.5, ' * 100}]\n"):
        path.write_text(text)
        with pytest.raises(RecipeError, match="unknown key"):
            Recipe.load(path)


# what is shown


def test_messages_hold_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / f"{ESCAPE.replace('/', '')}.toml"
    for text in (None, "[", "x = 1", f"'{ESCAPE}' = 1", f"x = {quoted(ESCAPE)}", "x." * 99 + "x=1"):
        if text is not None:
            path.write_text(text)
        for load in (Recipe.load, Board.load):
            with pytest.raises(RecipeError) as caught:
                load(path)
            assert all(line.isprintable() for line in str(caught.value).split("\n"))


def test_the_error_of_a_failed_run_is_text(tmp_path: Path) -> None:
    job = Job("gp", 0, {}, tmp_path)
    (tmp_path / "log.txt").write_text(f"Traceback\nerror: {ESCAPE}red{'x' * 5000}\n")
    job.finish(1, 0.0)
    assert job.state == "failed"
    assert job.error.isprintable()
    assert "red" in job.error
    assert len(job.error) < 1200


def cells(row: str) -> list[str]:
    return [unescape(re.sub("<.*?>", "", each)) for each in row.split("<td>")[1:]]


def rendered(label: str, error: str) -> tuple[list[list[str]], str]:
    """Return the cells of a leaderboard's Markdown as a reader renders them, and what is below."""
    about = {"plugins": {}, "seconds": [1.0], "missing": [], "collapsed": [], "cost": {}}
    entries = [
        {**copy.deepcopy(each), **about, "label": label, "failed": [{"seed": 0, "error": error}]}
        for each in leaderboard()["entries"]
    ]
    for entry in entries:
        entry["scores"]["fid"] |= {"median": 1.0, "low": 1.0, "high": 1.0, "verdict": "baseline"}
        entry["scores"]["fid"] |= {"seeds_compared": 0, "detectable": None, "scale": "ratio"}
    found = {**leaderboard(), "entries": entries, "baseline": "none", "seeds": [0, 1, 2]}
    text = markdown(Result.model_validate_json(json.dumps({**found, "protocol": {}})))
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    table, _, below = html.partition("</table>")
    return [cells(row) for row in table.split("<tr>")[2:]], below


@settings(max_examples=100, derandomize=True, deadline=None)
@given(label=st.text("ab |\\`<>&*_[]()!#~-+=\n\r\t\x1b:", max_size=12) | st.text(max_size=12))
def test_any_label_is_text_in_markdown(label: str) -> None:
    rows, below = rendered(label, label)
    assert [len(row) for row in rows] == [9, 9]
    plain = "".join(each if each.isprintable() else " " for each in label)
    assert rows[0][1].strip() == plain.strip()
    assert set(re.findall("<(.*?)>", below)) <= {"p", "/p", "br /", "br"}


@pytest.mark.parametrize(
    "label",
    [
        *("a | b", "a\n| --- |\n<b>", "`a`", "<script>alert(1)</script>", "![x](javascript:x)"),
        *("[x](https://x.invalid)", "a\\|b", "| a |", "</td></tr></table><img src=x>", ESCAPE),
        *("- a", "1. a", "2) a", "    a", "+ a", "===", "> a", "~~~", "# a", "---", "&lt;b&gt;"),
    ],
)
def test_wicked_labels_are_text_in_markdown(label: str) -> None:
    rows, below = rendered(label, f"{label}\n\n# {label}")
    plain = "".join(each if each.isprintable() else " " for each in label)
    assert [len(row) for row in rows] == [9, 9]
    assert rows[0][1].strip() == plain.strip()
    assert set(re.findall("<(.*?)>", below)) <= {"p", "/p", "br /", "br"}
