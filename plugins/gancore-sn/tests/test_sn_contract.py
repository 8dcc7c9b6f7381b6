"""The contract that every plugin keeps."""

from gancore.testing import PluginContract
from gancore_sn import SpectralNorm


class TestContract(PluginContract):
    plugin = SpectralNorm


class TestContractWithOptions(PluginContract):
    plugin = SpectralNorm
    options = {"n_power_iterations": 2}
