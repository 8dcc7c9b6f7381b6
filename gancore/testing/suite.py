"""The contract as a pytest class."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from gancore.testing.check import CHECKS, Check
from gancore.testing.scene import Subject


class PluginContract:
    """Subclass it in a test file, name the plugin, and pytest runs a test for each check.

    class TestContract(PluginContract):
        plugin = MyPenalty
        options = {"weight": 2.0}
    """

    plugin: ClassVar[type]
    options: ClassVar[dict[str, Any]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make a test of each check that applies to the plugin."""
        if "check" in metafunc.fixturenames:
            applying = [check for check in CHECKS if check.applies(self.subject())]
            metafunc.parametrize("check", applying, ids=[check.name for check in applying])

    def subject(self) -> Subject:
        """Return the plugin with its options."""
        return Subject(self.plugin, dict(self.options))

    def test_contract(self, check: Check) -> None:
        """Run one check; skip it, with the author's reason, if declared inapplicable."""
        result = check.run(self.subject())
        if result.verdict == "inapplicable":
            pytest.skip(result.detail)
        assert result.verdict == "passed", f"{check.about}\n{result.detail}"
