"""The guard: what a hook leaves changed of what others share is told, of whoever did it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LATENT, Critic, Spy, assert_same, trainer, weights
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, hookimpl, plugin
from gancore.checks.guard import Call, Guard
from gancore.checks.settings import kept
from gancore.errors import ContractError
from gancore.options import build
from gancore.training import Trainer
from gancore_gp import GradientPenalty

Act = Callable[[Any], None]


def acting(hook: str, act: Act, parameter: str = "step") -> object:
    """Return a plugin, called bad, whose one hook acts on one of its arguments."""
    source = f"def {hook}(self, {parameter}):\n    act({parameter})\n"
    space: dict[str, Any] = {"act": act}
    exec(source, space)
    return plugin(type("Bad", (), {hook: hookimpl(space[hook])}))()


@torch.no_grad()
def add(tensor: Tensor) -> None:
    tensor.add_(1.0)


def weight(module: Any) -> Tensor:
    parameter: Tensor = next(iter(module.parameters()))
    return parameter


def double(step: Any) -> None:
    step.critic.double()


def set_flag(tensor: Tensor, flag: bool) -> None:
    tensor.requires_grad_(flag)


def assign(name: str) -> Act:
    return lambda step: setattr(step, name, getattr(step, name).detach().clone())


CRITIC: dict[str, tuple[Act, str]] = {
    "real in place": (lambda step: add(step.real), r"step\.real in place"),
    "a view of real": (lambda step: add(step.real[:1].detach()), r"step\.real in place"),
    "fake in place": (lambda step: add(step.fake), r"step\.fake in place"),
    "real assigned": (assign("real"), r"step\.real for another"),
    "critic assigned": (
        lambda step: setattr(step, "critic", nn.Flatten()),
        r"step\.critic for another",
    ),
    "real's flag": (lambda step: set_flag(step.real, False), r"requires_grad of step\.real"),
    "interpolates in place": (lambda step: add(step.interpolates), r"step\.interpolates in place"),
    "scores in place": (
        lambda step: add(step.scores(step.real).detach()),
        r"the answer of step\.scores in place",
    ),
    "an input gradient in place": (
        lambda step: add(step.input_gradient(step.real).detach()),
        r"the answer of step\.input_gradient in place",
    ),
    "a critic's weight": (
        lambda step: add(weight(step.critic)),
        r"critic\.layers\.1\.weight in place",
    ),
    "a critic's last bias": (
        lambda step: add(list(step.critic.parameters())[-1]),
        r"critic\.layers\.3\.bias in place",
    ),
    "a frozen critic": (
        lambda step: step.critic.requires_grad_(False),
        r"requires_grad of critic\.layers\.1\.weight",
    ),
    "a double critic": (double, r"the dtype of critic\.layers\.1\.weight"),
    "a critic in eval mode": (lambda step: step.critic.eval(), "train or eval mode of the critic"),
    "a layer in eval mode": (
        lambda step: step.critic.layers[2].eval(),
        "train or eval mode of the critic",
    ),
    "another layer": (
        lambda step: step.critic.layers.__setitem__(3, nn.Linear(12, 1)),
        "the parameters or parts of the critic for others",
    ),
}
"""What a penalty may not do, and how it is told."""


@pytest.mark.parametrize("case", CRITIC)
def test_what_a_penalty_changes_is_told_before_the_optimizer_step(case: str) -> None:
    act, said = CRITIC[case]
    t = trainer(plugins=[Spy(), acting("penalty", act)])
    with pytest.raises(ContractError, match=rf"^plugin bad \(.*\): penalty changed {said}, which"):
        t.critic_update(0)
    assert all(part.training for part in t.critic.modules())
    assert all(parameter.requires_grad for parameter in t.critic.parameters())
    assert not t.learner.optimizers["critic"].state


GENERATOR: dict[str, tuple[Act, str]] = {
    "real in place": (lambda step: add(step.real), r"step\.real in place"),
    "fake in place": (lambda step: step.fake.mul_(2), r"step\.fake in place"),
    "latents in place": (lambda step: add(step.latents), r"step\.latents in place"),
    "latents assigned": (assign("latents"), r"step\.latents for another"),
    "real's flag": (lambda step: set_flag(step.real, True), r"requires_grad of step\.real"),
    "a generator's weight": (
        lambda step: add(weight(step.generator)),
        r"generator\.layers\.0\.weight in place",
    ),
    "a critic's weight": (
        lambda step: add(weight(step.critic)),
        r"critic\.layers\.1\.weight in place",
    ),
    "a generator in eval mode": (
        lambda step: step.generator.eval(),
        "train or eval mode of the generator",
    ),
}


@pytest.mark.parametrize("case", GENERATOR)
def test_what_a_generator_penalty_changes_is_told(case: str) -> None:
    act, said = GENERATOR[case]
    t = trainer(plugins=[acting("generator_penalty", act), Spy()])
    with pytest.raises(ContractError, match=rf"^plugin bad .*: generator_penalty changed {said}"):
        t.generator_update(0)


def test_of_two_processes_worth_of_plugins_the_one_that_did_it_is_named() -> None:
    """A sound plugin before and behind it, and one that sees the changed batch first."""
    seen: list[str] = []
    sound = acting("penalty", lambda step: seen.append("sound"))
    bad = acting("penalty", lambda step: add(step.real))
    t = trainer(plugins={"one": sound, "culprit": bad, "two": Spy()})
    with pytest.raises(ContractError, match=r"^plugin culprit \("):
        t.critic_update(0)
    assert seen == ["sound"]


def replace(critic: Any) -> None:
    critic.layers[3].weight = nn.Parameter(critic.layers[3].weight.clone())


def resize(critic: Any) -> None:
    critic.layers[3].weight.data = torch.zeros(1, 5)


POST: dict[str, tuple[Act, str]] = {
    "a frozen critic": (lambda critic: critic.requires_grad_(False), "requires_grad of critic"),
    "a double critic": (lambda critic: critic.double(), r"the dtype of critic\.layers\.1\.weight"),
    "a half layer": (lambda critic: critic.layers[3].half(), r"the dtype of critic\.layers\.3"),
    "a replaced parameter": (replace, "parameters or parts of the critic"),
    "a resized parameter": (resize, r"the shape of critic\.layers\.3\.weight"),
    "a new parameter": (
        lambda critic: critic.layers[0].register_parameter("gain", nn.Parameter(torch.ones(1))),
        "parameters or parts of the critic",
    ),
    "eval mode": (lambda critic: critic.eval(), "train or eval mode of the critic"),
}


@pytest.mark.parametrize("case", POST)
def test_what_post_step_may_not_do_to_the_critic(case: str) -> None:
    act, said = POST[case]
    t = trainer(plugins=[acting("post_step", act, "critic"), Spy()])
    with pytest.raises(ContractError, match=rf"^plugin bad .*: post_step changed .*{said}"):
        t.critic_update(0)


def test_post_step_may_change_values_of_the_critic_and_not_of_the_generator() -> None:
    def clamp(critic: nn.Module) -> None:
        for parameter in critic.parameters():
            parameter.clamp_(-0.01, 0.01)

    t = trainer(plugins=[acting("post_step", clamp, "critic")])
    t.critic_update(0)
    assert max(p.abs().max().item() for p in t.critic.parameters()) <= torch.tensor(0.01).item()
    other = trainer()
    t = trainer(plugins=[acting("post_step", lambda critic: add(weight(t.generator)), "critic")])
    before = weights(other.generator)
    with pytest.raises(ContractError, match=r"post_step changed generator\.layers\.0\.weight in"):
        t.critic_update(0)
    assert before.keys() == weights(t.generator).keys()


def test_prepare_critic_may_not_change_the_dtype() -> None:
    bad = acting("prepare_critic", lambda critic: critic.double(), "critic")
    with pytest.raises(ContractError, match=r"^plugin bad .*: prepare_critic .*torch\.float64"):
        trainer(plugins=[bad])


SETTINGS: dict[str, tuple[Callable[[], object], Callable[[], object], str]] = {
    "grad": (
        lambda: torch.set_grad_enabled(False),
        torch.is_grad_enabled,
        r"gradient mode at False \(it was True\)",
    ),
    "inference": (
        lambda: HELD[0].__enter__(),
        torch.is_inference_mode_enabled,
        r"inference mode at True \(it was False\)",
    ),
    "dtype": (
        lambda: torch.set_default_dtype(torch.float64),
        torch.get_default_dtype,
        r"default dtype at torch\.float64 \(it was torch\.float32\)",
    ),
    "device": (
        lambda: torch.set_default_device("meta"),
        torch.get_default_device,
        r"default device at meta \(it was None\)",
    ),
    "autocast": (
        lambda: torch.autocast("cpu", torch.bfloat16).__enter__(),
        lambda: torch.is_autocast_enabled("cpu"),
        r"autocast at True \(it was False\)",
    ),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
        r"deterministic mode at 2 \(it was 0\)",
    ),
    "anomaly": (
        lambda: torch.autograd.set_detect_anomaly(True),
        torch.is_anomaly_enabled,
        "anomaly mode at True",
    ),
    "threads": (
        lambda: torch.set_num_threads(3),
        torch.get_num_threads,
        r"number of threads at 3 \(it was 1\)",
    ),
    "precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
        "float32 matmul precision at medium",
    ),
    "cudnn": (
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: torch.backends.cudnn.benchmark,
        r"cudnn\.benchmark at True",
    ),
    "folder": (lambda: os.chdir("/"), os.getcwd, "working folder at / "),
}
HELD = [torch.inference_mode()]


@pytest.mark.parametrize(
    ("setting", "hook"),
    [
        *((setting, "penalty") for setting in SETTINGS),
        *((setting, "penalty_scale") for setting in ("grad", "dtype", "inference")),
        *((setting, "post_step") for setting in ("dtype", "device", "inference")),
    ],
)
def test_a_setting_left_changed_is_told_and_put_back(setting: str, hook: str) -> None:
    change, read, said = SETTINGS[setting]
    HELD[0] = torch.inference_mode()
    before = read()
    bad = acting(hook, lambda update: change() and None, "step" if hook == "penalty" else "update")
    t = trainer(plugins=[bad, Spy()])
    with pytest.raises(ContractError, match=rf"^plugin bad \(.*\): {hook} left the .*{said}"):
        t.critic_update(0)
    assert read() == before
    assert torch.is_grad_enabled()


def test_precisions_of_single_backends_are_seen_and_put_back() -> None:
    """torch's one name for all of them can't be read where they differ."""
    backend: Any = torch.backends
    switches = [backend.cuda.matmul, backend.mkldnn.matmul]
    before = [each.fp32_precision for each in switches]

    def change() -> None:
        backend.mkldnn.matmul.fp32_precision = "bf16"

    try:
        backend.cuda.matmul.fp32_precision = "tf32"
        backend.mkldnn.matmul.fp32_precision = "ieee"
        with kept("it"):
            pass
        said = r"^it left the float32 matmul precision at \('tf32', 'bf16'\)"
        with pytest.raises(ContractError, match=said), kept("it"):
            change()
        assert [each.fp32_precision for each in switches] == ["tf32", "ieee"]
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
    assert torch.get_float32_matmul_precision() == "highest"


def test_it_is_put_back_behind_an_error_too() -> None:
    def fail(step: CriticStep) -> None:
        torch.set_grad_enabled(False)
        raise ZeroDivisionError("oh")

    with pytest.raises(ZeroDivisionError, match="oh"):
        trainer(plugins=[acting("penalty", fail)]).critic_update(0)
    assert torch.is_grad_enabled()


def test_a_context_may_be_on_while_a_hook_is_called() -> None:
    with torch.no_grad(), kept("it"), torch.enable_grad():
        pass
    said = r"^it left the gradient mode at True \(it was False\)"
    with torch.no_grad(), pytest.raises(ContractError, match=said), kept("it"):
        torch.set_grad_enabled(True)


def test_what_a_hook_for_output_changes_is_told(tmp_path: Path) -> None:
    def clear(record: dict[str, Any]) -> None:
        record.clear()

    for hook, act, parameter, said in [
        ("log", clear, "record", "record in place"),
        ("log", lambda record: record.update(step=0), "record", "record in place"),
        ("sample", lambda samples: samples.zero_(), "samples", "samples in place"),
        ("start", lambda folder: torch.set_grad_enabled(False), "folder", "gradient mode"),
    ]:
        t = trainer(plugins=[acting(hook, act, parameter), Spy()])
        with pytest.raises(ContractError, match=rf"^plugin bad \(.*\): {hook} .*{said}"):
            t.run(tmp_path / f"{hook}{said[:3]}{id(act)}")


def test_configure_may_not_take_others_away() -> None:
    bad = acting("configure", lambda plugins: plugins.pop("spy"), "plugins")
    with pytest.raises(ContractError, match=r"^plugin bad .*: configure changed plugins in place"):
        trainer(plugins=[bad, Spy()])


def test_what_a_wrapper_does_is_told_of_the_wrapper() -> None:
    def wrapping(before: Act, after: Act, **kind: bool) -> object:
        class Around:
            @hookimpl(**kind)
            def penalty(self, step: CriticStep) -> Generator[None, Any, Any]:
                before(step)
                answers = yield
                after(step)
                return answers

        return Around()

    def nothing(step: CriticStep) -> None: ...

    def disturb(step: CriticStep) -> None:
        add(step.fake)

    def switch(step: CriticStep) -> None:
        torch.set_grad_enabled(False)

    def end(step: CriticStep) -> None:
        raise SystemExit(0)

    for before, after, kind in [
        (disturb, nothing, "wrapper"),
        (nothing, disturb, "wrapper"),
        (nothing, switch, "wrapper"),
        (end, nothing, "wrapper"),
        (nothing, end, "wrapper"),
        (disturb, nothing, "hookwrapper"),
    ]:
        around = wrapping(before, after, **{kind: True})
        with pytest.raises(ContractError, match=r"^(hook penalty of )?plugin around \("):
            trainer(plugins={"spy": Spy(), "around": around}).critic_update(0)
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), SystemExit(3), StopIteration("oh")])
def test_an_error_that_passes_a_wrapper_is_of_whom_it_wraps(error: BaseException) -> None:
    class Around:
        @hookimpl(wrapper=True)
        def post_step(self) -> Generator[None, Any, Any]:
            return (yield)

    def fail(critic: nn.Module) -> None:
        raise error

    t = trainer(plugins={"around": Around(), "it": acting("post_step", fail, "critic")})
    with pytest.raises((ContractError, type(error))) as caught:
        t.critic_update(0)
    told = [str(caught.value), *getattr(caught.value, "__notes__", ())]
    assert any("hook post_step of plugin it (" in line for line in told)
    assert not any("around" in line for line in told)


def test_a_network_that_changes_its_own_weights_is_nobodys_fault() -> None:
    class Normalizing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.layer.weight.div_(self.layer.weight.norm())
            out: Tensor = self.layer(x.flatten(1))
            return out

    class Joint:
        """Scores all samples in one pass, which is what such a critic allows."""

        @hookimpl
        def critic_loss(self, step: CriticStep) -> Tensor:
            real, fake = step.critic(torch.cat([step.real, step.fake])).chunk(2)
            return (fake - real).mean()

        @hookimpl
        def generator_loss(self, step: GeneratorStep) -> Tensor:
            return -step.scores(step.fake).mean()

    critic, whole = Normalizing(), trainer()
    t = Trainer(
        whole.generator,
        critic,
        whole.data,
        loss=Joint(),
        train={"steps": 1, "batch_size": 8},
        device="cpu",
    )
    for update in range(2):
        t.plugins.answer_loss("critic_loss", CriticStep(critic, *t.critic_samples(update)))
    step = _generator_step(t)
    t.learner.randomness.seed("generator_loss/joint", 0, alone=True)
    draws = torch.get_rng_state()
    t.plugins.answer_loss("generator_loss", step)
    assert torch.equal(torch.get_rng_state(), draws)
    assert critic.layer.weight.norm().item() == pytest.approx(1.0)
    bad = acting("penalty", lambda step: add(step.critic.layer.bias))
    t = Trainer(
        whole.generator,
        Normalizing(),
        whole.data,
        plugins=[bad],
        train={"steps": 1, "batch_size": 8},
        device="cpu",
    )
    with pytest.raises(ContractError, match=r"critic\.layer\.bias in place"):
        t.critic_update(0)


def _generator_step(t: Trainer) -> GeneratorStep:
    latents = torch.zeros(8, LATENT, requires_grad=True)
    real = torch.zeros(8, 1, 4, 4)
    return GeneratorStep(t.generator, t.critic, real, t.generator(latents), latents=latents)


def test_what_hooks_may_do_goes_on_as_it_was() -> None:
    """Statistics of batch normalization and a plugin's own tensors change at each update."""

    def busy(step: CriticStep) -> None:
        with torch.no_grad():
            copied = step.real.clone()
            add(copied)
            step.critic(copied)
        twin = torch.func.functional_call(
            step.critic,  # type: ignore[arg-type]
            {name: 2 * p for name, p in step.critic.named_parameters()},  # type: ignore[attr-defined]
            (step.real,),
        )
        assert twin.shape == (8, 1)
        record.append(step.interpolates + 1)

    record: list[Tensor] = []
    plain, t = trainer(), trainer(plugins=[acting("penalty", busy)])
    for update in range(2):
        plain.critic_update(update)
        t.critic_update(update)
    plain.generator_update(0)
    t.generator_update(0)
    assert len(record) == 2
    assert_same(weights(plain.generator), weights(t.generator))


def test_a_wrapper_and_an_inference_tensor_cost_nothing_but_a_look() -> None:
    guard = Guard()
    with torch.inference_mode():
        samples = torch.ones(2)
    with guard.compared(Call("it", "sample", {"samples": samples, "step": 3})):
        pass
    call = Call("it", "sample", {"samples": (samples := torch.ones(2))})
    said = "^plugin it: sample changed samples in place"
    with pytest.raises(ContractError, match=said), guard.compared(call):
        samples.add_(1)


# What is raised


def test_whatever_is_raised_is_named_once() -> None:
    for error in (KeyboardInterrupt(), GeneratorExit(), BaseException("oh"), EOFError()):

        def fail(step: CriticStep, error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            trainer(plugins=[acting("penalty", fail)]).critic_update(0)
        (note,) = caught.value.__notes__
        assert note.startswith("raised in hook penalty of plugin bad (")
        assert note.endswith(", update 0")


@pytest.mark.parametrize("code", [0, None, 3, "bye"])
def test_sys_exit_in_a_hook_is_an_error(code: Any) -> None:
    def leave(step: CriticStep) -> None:
        raise SystemExit(code)

    said = rf"^hook penalty of plugin bad \(.*\), update 0 raised SystemExit\({code!r}\)"
    with pytest.raises(ContractError, match=said):
        trainer(plugins=[acting("penalty", leave)]).critic_update(0)


class Keeper:
    """Keeps a state, badly."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    @hookimpl
    def start(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        raise self.error

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise self.error


def test_so_it_is_in_state_dict_and_load_state_dict() -> None:
    for call in ("state_dict", "load_state_dict"):
        for error in (SystemExit(), ZeroDivisionError()):
            plugins = trainer(plugins={"it": Keeper(error)}).plugins
            with pytest.raises((ContractError, ZeroDivisionError)) as caught:
                plugins.state_dict() if call == "state_dict" else plugins.load_state_dict(
                    {"it": {}}
                )
            told = " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
            assert f"{call} of plugin it (" in told


def test_and_in_the_construction() -> None:
    for act, said in [
        (lambda: exec("raise SystemExit(0)"), r"SystemExit\(0\)"),
        (lambda: torch.set_default_dtype(torch.float64), "default dtype at torch.float64"),
    ]:

        @plugin
        class Built:
            def __post_init__(self, act: Callable[[], None] = act) -> None:
                act()

        with pytest.raises(ContractError, match=rf"the construction of .*Built, plugin\.0.*{said}"):
            build(Built, {}, "plugin.0")
        assert torch.get_default_dtype() is torch.float32


PENALTY = """
import sys, click, torch
from gancore import hookimpl, plugin
{top}

@plugin
class Leaver:
    "Leaves."

    @hookimpl
    def penalty(self, step):
        {act}
        return step.scores(step.real).square().mean()
"""


@pytest.fixture
def leaver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Install a plugin, `leaver`; return a recipe that names it."""
    from helpers import TOY

    def install(act: str = "pass", top: str = "") -> Path:
        (tmp_path / "leaver.py").write_text(PENALTY.format(act=act, top=top))
        info = tmp_path / "leaver-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaver\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text("[gancore.plugins]\nleaver = leaver:Leaver\n")
        monkeypatch.syspath_prepend(tmp_path)
        path = tmp_path / "r.toml"
        path.write_text(TOY.replace('"gp"', '"leaver"'))
        return path

    yield install
    sys.modules.pop("leaver", None)


@pytest.mark.parametrize(
    ("act", "code", "said"),
    [
        (
            "sys.exit()",
            1,
            r"^error: hook penalty of plugin leaver \(leaver 1\.5\), update 0 raised S",
        ),
        ("raise KeyboardInterrupt", 130, "^stopped\n  raised in hook penalty of plugin leaver"),
        ("raise EOFError('short')", 1, "^error: EOFError: short\n  raised in hook penalty of plug"),
        (
            "raise BrokenPipeError(32, 'x')",
            1,
            "^error: BrokenPipeError.*\n  raised in hook penalty",
        ),
        ("raise click.exceptions.Exit(0)", 1, "^error: Exit: 0\n  raised in hook penalty of"),
        ("raise click.Abort", 1, "^error: Abort: \n  raised in hook penalty of plugin leaver"),
        ("raise click.ClickException('x')", 1, "^error: ClickException: x\n  raised in hook"),
        ("raise RuntimeError('allocate memory')", 1, "raised in hook penalty of plugin leaver"),
    ],
)
def test_no_run_that_a_plugin_ended_exits_with_0(
    act: str, code: int, said: str, leaver: Callable[..., Path], gan: Any, tmp_path: Path
) -> None:
    recipe = leaver(act)
    found, _, err = gan("run", recipe, "--out", tmp_path / "run")
    assert found == code, err
    assert re.search(said, err.strip("\n"), re.M), err


@pytest.mark.parametrize("top", ["sys.exit(0)", "raise GeneratorExit"])
def test_so_it_is_at_its_import(
    top: str, leaver: Callable[..., Path], gan: Any, tmp_path: Path
) -> None:
    code, _, err = gan("run", leaver(top=top), "--out", tmp_path / "run")
    assert code == 2
    assert "plugin leaver (leaver 1.5) can't be imported: " in err


def test_a_setting_that_its_import_changes(leaver: Callable[..., Path], gan: Any) -> None:
    recipe = leaver(top="torch.set_default_dtype(torch.float64)")
    code, _, err = gan("recipe", "check", recipe)
    assert code == 2
    assert "the import of plugin leaver (leaver 1.5) left the default dtype at torch.float64" in err
    assert torch.get_default_dtype() is torch.float32
    done = subprocess.run(  # where it is the one that imports torch
        [sys.executable, "-c", "from gancore.plugins import load; load('leaver')"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "import of plugin leaver (leaver 1.5) left the default dtype" in done.stderr


def test_a_network_ends_no_run_silently(
    gan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers import TOY

    from gancore.networks import mlp

    def leave(*arguments: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(mlp.MLPCritic, "forward", leave)
    path = tmp_path / "r.toml"
    path.write_text(TOY)
    code, _, err = gan("run", path, "--out", tmp_path / "run")
    assert code == 1
    assert "SystemExit(0)" in err


@pytest.mark.parametrize("critic", ["a mode", "a part", "a late part"])
def test_a_critic_that_changes_its_own_parts_is_nobodys_fault(critic: str) -> None:
    class Own(Critic):
        def forward(self, x: Tensor) -> Tensor:
            if critic == "a mode":
                self.layers[2].training = False
            elif critic == "a part" or not hasattr(self, "extra"):
                self.extra = nn.Identity()
            return super().forward(x)

    t = Trainer(
        trainer().generator,
        Own(),
        trainer().data,
        plugins=[GradientPenalty()],
        train={"steps": 2, "batch_size": 8},
        device="cpu",
    )
    for update in range(2):
        t.critic_update(update)
        t.generator_update(update)


@pytest.mark.parametrize("left", [False, True])
def test_a_wrapper_may_have_a_with_block_around_its_yield(left: bool) -> None:
    """Its settings are compared when it is over; then what it left is told of itself."""

    class Around:
        @hookimpl(wrapper=True)
        def penalty(self, step: CriticStep) -> Any:
            block = torch.autocast("cpu", torch.bfloat16)
            block.__enter__()
            answers = yield
            if not left:
                block.__exit__(None, None, None)
            return [answer.float() for answer in answers]

        @hookimpl
        def post_step(self) -> None:
            """Has a hook of its own, too."""

    t = trainer(plugins=[Around(), GradientPenalty()])
    if not left:
        assert t.critic_update(0)["penalty/gp"] > 0
        return
    with pytest.raises(
        ContractError, match=r"^plugin around .*: penalty left the autocast at True"
    ):
        t.critic_update(0)
    assert not torch.is_autocast_enabled("cpu")
