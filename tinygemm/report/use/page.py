"""The code of the chapter on use, shown as text; tests run the same text on the CPU."""

from __future__ import annotations

from IPython.display import Markdown

CODE = {
    "model": """
import tinygemm

tinygemm.quantize_model(model)  # every nn.Linear but lm_head becomes an Int4Linear, in place
""",
    "weight": """
w = tinygemm.quantize(weight)  # [N, K] float16 -> packed INT4, one scale per 128 weights
y = tinygemm.gemm(x, w)  # [..., K] float16 -> [..., N]
""",
    "checkpoint": """
model = tinygemm.load_checkpoint(folder)
""",
    "save": """
tinygemm.save_checkpoint(model, "ours")  # load_checkpoint("ours") gives the same tensors
""",
    "generate": """
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
tinygemm.quantize_model(model, join=True)  # q/k/v and gate/up in one product each
with torch.inference_mode():
    tokens = model.generate(prompt, max_new_tokens=4, do_sample=False, cache_implementation="static")
""",
}


def code(name: str) -> Markdown:
    """A piece of CODE as a block of Python."""
    return Markdown(f"```python\n{CODE[name].strip()}\n```")
