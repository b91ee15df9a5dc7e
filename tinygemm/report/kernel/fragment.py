"""The way of the codes of a packed word: nibble, pair, lane and register of mma.m16n8k16, in plain numbers.

`tinygemm.kernel.quant` and `tinygemm.kernel.triton.tiles` define the layout; the tests hold this copy against them.
"""

from __future__ import annotations

PAIRS = 4  # of codes in a word
LANES = 32


def input_of(word: int, nibble: int) -> int:
    """The input k, within a tile of 128, whose code lies in bits 4 nibble .. 4 nibble + 3 of word 0..15 of a row."""
    pair, half = nibble % PAIRS, nibble // PAIRS
    return 32 * pair + 2 * word + half


def pair_of(word: int, pair: int) -> tuple[int, int]:
    """The two neighbours in k that one register takes from a word: nibbles `pair` and `pair` + 4."""
    return input_of(word, pair), input_of(word, pair + PAIRS)


def fragment(lane: int, step: int) -> dict[str, tuple[int, int]]:
    """Contents of registers a0..a3 of a lane in one of the two mma of a pair, as (row of the tile, word of that row).

    step: 0 or 1
    """
    row, t = divmod(lane, 4)
    near, far = 4 * t + step, 4 * t + step + 2
    return {"a0": (row, near), "a1": (row + 8, near), "a2": (row, far), "a3": (row + 8, far)}


def place(lane: int, register: str) -> tuple[int, int]:
    """Row and first column of the 16 x 16 operand A of mma.m16n8k16 that a register of a lane stands for."""
    row, t = divmod(lane, 4)
    return row + 8 * (register in ("a1", "a3")), 2 * t + 8 * (register in ("a2", "a3"))
