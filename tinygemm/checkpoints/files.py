"""A checkpoint on disk: its configs, and its tensors, read one at a time."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"
GENERATION = "generation_config.json"
OLD_GPTQ_CONFIG = "quantize_config.json"  # beside a config.json that says nothing of the quantisation
FLOATS = ("F16", "BF16", "F32", "F64")  # as safetensors writes them


class Checkpoint:
    """A folder with a config.json and safetensors files. Opening it reads the headers alone.

    config:   the content of config.json
    settings: its quantization_config, {} where there is none
    homes:    the file of every tensor, by the tensor's name
    raises:   ValueError naming the file and what is wrong with it
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is no folder; a checkpoint is one, with a {CONFIG} and safetensors files")
        self.config = read_json(self.folder / CONFIG)
        self.settings = self._settings()
        self._opened: dict[Path, safe_open] = {}
        self.homes = self._homes()

    def _settings(self) -> dict:
        nested = self.config.get("text_config") or {}
        for home in (self.config, nested):
            for key in ("quantization_config", "compression_config"):
                if settings := home.get(key):
                    if not isinstance(settings, dict):
                        raise ValueError(f"{self.folder / CONFIG}: {key} must be an object, got {settings!r}")
                    return settings
        old = self.folder / OLD_GPTQ_CONFIG
        return {"quant_method": "gptq"} | read_json(old) if old.is_file() else {}

    def _homes(self) -> dict[str, Path]:
        index = self.folder / INDEX
        if not index.is_file():
            file = self._single_file()
            return dict.fromkeys(self._open(file).keys(), file)
        homes = read_json(index).get("weight_map")
        if not isinstance(homes, dict) or not homes:
            raise ValueError(f"{index} has no weight_map of tensors to files")
        homes = {name: self.folder / file for name, file in homes.items()}
        held = {file: set(self._open(file).keys()) for file in set(homes.values())}
        for name, file in homes.items():
            if name not in held[file]:
                raise ValueError(f"{file} does not hold the tensor {name} that {INDEX} says it does")
        return homes

    def _single_file(self) -> Path:
        files = sorted(self.folder.glob("*.safetensors"))
        if self.folder / SINGLE in files:
            return self.folder / SINGLE
        if len(files) != 1:
            found = f"{len(files)} of them and no {INDEX}" if files else "none"
            raise ValueError(f"{self.folder} must hold safetensors files, and has {found}")
        return files[0]

    def _open(self, file: Path) -> safe_open:
        if file not in self._opened:
            try:
                self._opened[file] = safe_open(file, framework="pt")
            except FileNotFoundError:
                raise ValueError(f"{file} does not exist, and {INDEX} names it") from None
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is no whole safetensors file: {error}") from error
        return self._opened[file]

    def check(self, name: str, target: torch.Tensor) -> None:
        """Raise a ValueError where a tensor cannot be copied into another one as it is; its values are not read."""
        header = self._open(self.homes[name]).get_slice(name)
        if header.get_shape() != list(target.shape):
            raise self.error(name, f"must have shape {list(target.shape)} as in the model, got {header.get_shape()}")
        if target.is_floating_point() and header.get_dtype() not in FLOATS:
            raise self.error(name, f"must be one of {', '.join(FLOATS)}, got {header.get_dtype()}")

    def tensor(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        return self._open(self.homes[name]).get_tensor(name).to(device)

    def error(self, name: str, fault: object) -> ValueError:
        """The error that says what is wrong with a tensor, and in which file it lies."""
        return ValueError(f"{self.homes[name]}: {name} {fault}")


class StoredLayer:
    """The tensors of one linear layer in a checkpoint, read when they are asked for."""

    def __init__(self, checkpoint: Checkpoint, path: str, device: torch.device | str = "cpu"):
        self.checkpoint, self.path, self.device = checkpoint, path, device

    def name(self, part: str) -> str:
        return f"{self.path}.{part}"

    def __contains__(self, part: str) -> bool:
        return self.name(part) in self.checkpoint.homes

    def tensor(self, part: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int | None, ...]) -> torch.Tensor:
        """A tensor of one of the dtypes and of the shape, in which None is any size.

        raises: ValueError naming the tensor and the file
        """
        name = self.name(part)
        if part not in self:
            raise ValueError(f"{self.checkpoint.folder} holds no tensor {name}, which the layer needs")
        tensor = self.checkpoint.tensor(name, self.device)
        fits = tensor.dim() == len(shape) and all(
            want in (None, has) for want, has in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype not in dtypes or 0 in tensor.shape:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            sizes = ", ".join("*" if size is None else str(size) for size in shape)
            has = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise self.error(part, f"must be {wanted} [{sizes}], got {has}")
        return tensor

    def error(self, part: str, fault: object) -> ValueError:
        return self.checkpoint.error(self.name(part), fault)


def read_json(file: Path) -> dict:
    """The object in a JSON file; raises ValueError naming the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist") from None
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(content).__name__}")
    return content
