"""The way of a word into the tensor core, as the figure draws it, against the packing and the kernel's own order."""

import numpy as np
import pytest

from tinygemm.report.kernel.fragment import LANES, PAIRS, fragment, input_of, pair_of, place

torch = pytest.importorskip("torch")


def test_nibbles_of_a_word_are_those_that_pack_fills():
    from tinygemm.kernel.quant import pack

    scales = torch.ones(1, 16).half()
    background = pack(torch.zeros(16, 128, dtype=torch.uint8), scales, None, 128).qweight
    for word in (0, 1, 7, 15):
        for nibble in range(2 * PAIRS):
            codes = torch.zeros(16, 128, dtype=torch.uint8)
            codes[0, input_of(word, nibble)] = 15
            changed = pack(codes, scales, None, 128).qweight ^ background
            assert changed.flatten().nonzero().tolist() == [[word]]
            assert changed[0, 0, 0, word].item() & 0xFFFFFFFF == 15 << 4 * nibble


def test_a_pair_is_two_neighbours_along_k_and_a_row_has_every_input_once():
    assert all(high == low + 1 for word in range(16) for low, high in [pair_of(word, 2)])
    assert sorted(input_of(word, nibble) for word in range(16) for nibble in range(8)) == list(range(128))


@pytest.mark.parametrize("step", [0, 1])
def test_registers_of_the_lanes_fill_the_operand_as_the_kernel_permutes_it(step):
    """The kernel's a_operand in NumPy: a word of 16 rows of a tile comes out where the figure puts its register."""
    words = np.array([[row * 16 + word for word in range(16)] for row in range(16)])  # a name for each word
    flat = np.repeat(words.reshape(2, 128, 1), 2, axis=2)  # octet, word of the octet, half
    pairs = flat.reshape(2, 1, 8, 4, 2, 2, 2).transpose(1, 0, 2, 5, 3, 4, 6).reshape(16, 32)
    operand = pairs[:, 16 * step : 16 * step + 16]  # of one mma: k in the order (t, d, h)
    seen = set()
    for lane in range(LANES):
        for register, (row, word) in fragment(lane, step).items():
            at, column = place(lane, register)
            t, far = column % 8 // 2, column // 8
            assert operand[at, 4 * t + 2 * far] == words[row, word]
            assert row == at
            seen.add((at, column))
    assert len(seen) == 16 * 8
