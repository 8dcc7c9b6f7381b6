"""The contract that every plugin keeps."""

from gancore.testing import PluginContract
from gancore_tensorboard import TensorBoard


class TestContract(PluginContract):
    plugin = TensorBoard


class TestContractWithOptions(PluginContract):
    plugin = TensorBoard
    options = {"folder": "elsewhere"}
