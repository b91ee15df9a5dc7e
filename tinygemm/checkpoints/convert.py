"""A checkpoint of another format, written again in ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from tinygemm.checkpoints import native
from tinygemm.checkpoints.files import CONFIG, INDEX, OLD_GPTQ_CONFIG, SINGLE
from tinygemm.checkpoints.folder import new_folder, write_json, write_tensors
from tinygemm.checkpoints.formats import QuantizedCheckpoint

LEFT = (CONFIG, INDEX, OLD_GPTQ_CONFIG, "quant_config.json")  # they describe the weights of the source
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")


def convert(source: str | Path, target: str | Path) -> list[str]:
    """Write a quantised checkpoint as one of our own, which loads without unpacking; codes, scales and zeros as stored.

    source:  a folder as `load_checkpoint` takes it; it is only read, a file at a time
    target:  a folder that does not exist; it appears when it is whole, with tokenizer and other small files along
    returns: the paths of the layers that were converted
    raises:  ValueError as `load_checkpoint`, or where the target exists; OSError naming the file
    """
    with new_folder(target) as folder:
        checkpoint = QuantizedCheckpoint(source)
        if checkpoint.method == native.METHOD:
            raise ValueError(f"{source} is in our own format already")
        _write(checkpoint, folder)
    return checkpoint.layers


def _write(checkpoint: QuantizedCheckpoint, folder: Path) -> None:
    stored = checkpoint.stored
    files = sorted(set(stored.homes.values()))
    described, weight_map, total = {}, {}, 0
    for file in files:
        tensors = _converted(checkpoint, file, described)
        name = file.name if len(files) > 1 else SINGLE
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
        if tensors:
            write_tensors(tensors, folder / name)
    if len(files) > 1:
        write_json({"metadata": {"total_size": total}, "weight_map": weight_map}, folder / INDEX)
    for file in stored.folder.iterdir():
        if file.is_file() and file.name not in LEFT and file.suffix not in WEIGHTS:
            shutil.copyfile(file, folder / file.name)
    kept = {key: value for key, value in stored.config.items() if key != "compression_config"}
    write_json(kept | {"quantization_config": native.settings_of(described)}, folder / CONFIG)


def _converted(checkpoint: QuantizedCheckpoint, file: Path, described: dict[str, dict]) -> dict[str, torch.Tensor]:
    """The tensors to write in the place of a file; of a layer in several files all go where its codes are."""
    here = {name for name, home in checkpoint.stored.homes.items() if home == file}
    layers = [path for path in checkpoint.layers if checkpoint.parts(path)[0] in here]
    tensors = {}
    for path in layers:
        weight = checkpoint.read(path)
        checkpoint.bias(path, weight.packed)
        described[path] = native.described(weight.packed)
        tensors |= {f"{path}.{part}": tensor for part, tensor in native.tensors(weight).items()}
    as_it_is = here - {name for path in checkpoint.layers for name in checkpoint.parts(path)}
    return tensors | {name: checkpoint.stored.tensor(name) for name in sorted(as_it_is)}
