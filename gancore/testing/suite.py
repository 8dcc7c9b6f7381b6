"""The contract as a pytest class."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from gancore.testing.contract import CHECKS, Check
from gancore.testing.scene import Subject


class PluginContract:
    """Subclass it in a test file, name the plugin, and pytest runs a test for each check.

    class TestContract(PluginContract):
        plugin = MyPenalty
        options = {"weight": 2.0}
    """

    plugin: ClassVar[type]
    options: ClassVar[dict[str, Any]] = {}

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
    def test_contract(self, check: Check) -> None:
        """Run one check; skip it where it does not apply."""
        subject = Subject(self.plugin, dict(self.options))
        if not check.applies(subject):
            pytest.skip(f"for plugins with {', '.join(sorted(check.hooks))}")
        result = check.run(subject)
        if result.verdict == "inapplicable":
            pytest.skip(result.found)
        assert result.verdict == "passed", f"{check.about}\n{result.found}"
