"""The contract that every plugin keeps."""

from gancore.testing import PluginContract
from gancore_lazy import Lazy


class TestContract(PluginContract):
    plugin = Lazy


class TestContractWithOptions(PluginContract):
    plugin = Lazy
    options = {"every": 4}
