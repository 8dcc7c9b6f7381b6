"""The line budget of the core: so much is read by whoever wants to know what an update is."""

from __future__ import annotations

import ast
from pathlib import Path

import gancore

LIMITS = {"plugins": 913, "learner": 1630, "session": 2640}
"""The most lines of each group."""

GROUPS = {
    "plugins": ("hooks", "plugins", "step"),
    "learner": ("training.learner", "training.objective", "training.plan"),
    "session": ("training.session", "training.trainer"),
}
"""What each group begins with; it has the groups before it, too."""

CORE = Path(gancore.__file__).parent
MODULES = {
    ".".join(path.relative_to(CORE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in CORE.rglob("*.py")
    if path != CORE / "__init__.py"
}


def imports(module: str) -> set[str]:
    """Return the modules of the core that a module imports, for types and in functions too."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("gancore.") for name in names} & MODULES.keys()


def group(roots: tuple[str, ...], importers: dict[str, set[str]]) -> set[str]:
    """Return the modules of a group: its roots, and what only modules of the group import."""
    members = {root for root in roots if root in importers}
    while True:
        only = {name for name, users in importers.items() if users and users <= members}
        if only <= members:
            return members
        members |= only


def lines(module: str) -> int:
    return len(MODULES[module].read_text(encoding="utf-8").splitlines())


def test_a_group_has_what_only_it_imports() -> None:
    importers = {"a": {"z"}, "b": {"a"}, "c": {"b", "a"}, "d": {"a", "z"}, "z": set[str]()}
    assert group(("a",), importers) == {"a", "b", "c"}
    assert group(("a", "d", "missing"), importers) == {"a", "b", "c", "d"}
    assert "plugins" in imports("losses")
    assert "isolation.buffers" in imports("plugins")  # inside a function
    assert "step" in imports("hooks")  # for types


def test_the_core_keeps_its_line_budget() -> None:
    importers: dict[str, set[str]] = {module: set() for module in MODULES}
    for module in MODULES:
        for name in imports(module) - {module}:
            importers[name].add(module)
    roots: tuple[str, ...] = ()
    counts = {}
    for name, more in GROUPS.items():
        roots += more
        members = group(roots, importers)
        counts[name] = sum(map(lines, members))
        listed = ", ".join(f"{member} {lines(member)}" for member in sorted(members))
        print(f"{name:8} {counts[name]:6} of {LIMITS[name]:7}: {listed}")
    print(f"gancore  {sum(map(lines, MODULES)):6}")
    assert all(counts[name] <= LIMITS[name] for name in GROUPS), counts
