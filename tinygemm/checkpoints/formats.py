"""The reader of each format, and the layers that a checkpoint holds."""

from __future__ import annotations

import torch

from tinygemm.checkpoints import awq, compressed_tensors, gptq, native
from tinygemm.checkpoints.files import CONFIG, Checkpoint, StoredLayer
from tinygemm.checkpoints.integers import FLOATS, LayerWeight
from tinygemm.kernel.quant import PackedInt4

READERS = {"gptq": gptq, "awq": awq, "compressed-tensors": compressed_tensors, native.METHOD: native}
NOT_EXACT = {  # formats whose numbers are no (code - zero) * scale with a zero among the codes
    "hqq": "its zero points are fractions",
    "torchao": "its int4 weights add a fraction to each group",
    "bitsandbytes": "its 4-bit codes are not evenly spaced",
}


class QuantizedCheckpoint:
    """A checkpoint with the reader of its format.

    layers: the paths of its quantised layers
    plain:  the names of all other tensors, biases of the quantised layers not among them
    raises: ValueError naming the file where the format, or what its config says, is not read here
    """

    def __init__(self, folder):
        self.stored = Checkpoint(folder)
        file = self.stored.folder / CONFIG
        if not self.stored.settings:
            raise ValueError(f"{file} has no quantization_config; round a float model with tinygemm.quantize_model")
        self.method = str(self.stored.settings.get("quant_method")).lower()
        if self.method not in READERS:
            why = f": {NOT_EXACT[self.method]}, so it cannot be converted exactly" if self.method in NOT_EXACT else ""
            raise ValueError(f"{file}: quant_method must be one of {', '.join(READERS)}, got {self.method!r}{why}")
        self._reader = READERS[self.method]
        try:
            self._reader.check(self.stored.settings)
        except ValueError as error:
            raise ValueError(f"{file}: quantization_config.{error}") from None
        except (AttributeError, TypeError) as error:  # a list, say, where the format has an object
            raise ValueError(f"{file}: quantization_config is not laid out as {self.method} has it: {error}") from error
        mark, names = f".{self._reader.MARK}", self.stored.homes
        self.layers = [name.removesuffix(mark) for name in names if name.endswith(mark)]
        if not self.layers:
            raise ValueError(f"{self.stored.folder} holds no {self.method} layer: no tensor is called *{mark}")
        of_layers = {f"{path}.{part}" for path in self.layers for part in (*self._reader.PARTS, "bias")}
        self.plain = [name for name in names if name not in of_layers]

    def read(self, path: str, device: torch.device | str = "cpu") -> LayerWeight:
        """The packed weight of a layer; raises ValueError naming the tensor and the file."""
        return self._reader.read(StoredLayer(self.stored, path, device), self.stored.settings)

    def bias(self, path: str, w: PackedInt4) -> torch.Tensor | None:
        """The stored bias of a layer [N], on the device of its weight."""
        layer = StoredLayer(self.stored, path, w.device)
        return layer.tensor("bias", FLOATS, (w.N,)) if "bias" in layer else None

    def parts(self, path: str) -> list[str]:
        """The names of the tensors that make up a layer's weight."""
        return [name for part in self._reader.PARTS if (name := f"{path}.{part}") in self.stored.homes]

    def error(self, path: str, fault: object) -> ValueError:
        """The error that says what is wrong with a layer, by the tensor that every quantised layer has."""
        return self.stored.error(f"{path}.{self._reader.MARK}", fault)
