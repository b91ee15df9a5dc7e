"""The test data can see every index fault a kernel could have; otherwise a green kernel test would prove nothing."""

from dataclasses import replace

import pytest
import torch
from operands import assert_close, make_operands


def _swap_k(codes, distance):
    """Exchange codes whose k differ in the bit `distance`."""
    return codes[:, torch.arange(codes.shape[1]) ^ distance]


FAULTS = {
    "scale of the next group": lambda o: replace(o, scales=o.scales.roll(1, 0)),
    "scale of the next column": lambda o: replace(o, scales=o.scales.roll(1, 1)),
    "scale of a column 16 rows on": lambda o: replace(o, scales=o.scales.roll(16, 1)),
    "zero of the next group": lambda o: replace(o, zeros=o.zeros.roll(1, 0)),
    "zero of the next column": lambda o: replace(o, zeros=o.zeros.roll(1, 1)),
    "zero off by one": lambda o: replace(o, zeros=o.zeros + 1),
    "zeros ignored": lambda o: replace(o, zeros=None),
    "scales and zeros of one group for all": lambda o: replace(
        o, scales=o.scales[:1].expand_as(o.scales), zeros=o.zeros[:1].expand_as(o.zeros)
    ),
    "the two codes of a byte exchanged": lambda o: replace(o, codes=_swap_k(o.codes, 1)),
    "neighbouring words exchanged": lambda o: replace(o, codes=_swap_k(o.codes, 2)),
    "neighbouring nibbles of a word exchanged": lambda o: replace(o, codes=_swap_k(o.codes, 32)),
    "halves of a block exchanged": lambda o: replace(o, codes=_swap_k(o.codes, 64)),
    "next block of 128": lambda o: replace(o, codes=o.codes.roll(-128, 1)),
    "last block of 128 left out": lambda o: replace(o, x=o.x.clone().index_fill_(1, torch.arange(-128, 0) % 1024, 0)),
    "columns exchanged": lambda o: replace(o, codes=o.codes[torch.arange(len(o.codes)) ^ 1]),
    "next tile of 16 columns": lambda o: replace(o, codes=o.codes.roll(-16, 0)),
    "codes read as signed": lambda o: replace(o, codes=o.codes ^ 8),
    "code 15 read as 14": lambda o: replace(o, codes=o.codes.clamp_max(14)),
    "rows of x exchanged": lambda o: replace(o, x=o.x.roll(1, 0)),
    "x one k on": lambda o: replace(o, x=o.x.roll(1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("fault", FAULTS)
def test_operands_expose_the_fault(fault, group_size):
    operands = make_operands(2, 64, 1024, group_size, symmetric=False)
    with pytest.raises(AssertionError, match="error"):
        assert_close(FAULTS[fault](operands).reference(), operands.reference())


def test_the_reference_is_within_its_own_tolerance_and_nan_is_not():
    reference = make_operands(2, 64, 1024).reference()
    assert_close(reference.half(), reference)
    poisoned = reference.clone()
    poisoned[1, 3] = torch.nan
    with pytest.raises(AssertionError, match="max error nan"):
        assert_close(poisoned, reference)


def test_neighbouring_scales_and_zeros_differ_and_all_codes_occur():
    operands = make_operands(1, 48, 512, 64, symmetric=False)
    for tensor in (operands.scales, operands.zeros.int()):
        assert (tensor.diff(dim=0) != 0).all()
        assert (tensor.diff(dim=1) != 0).all()
    assert operands.codes.unique().tolist() == list(range(16))
