"""Dequantisation: one word -> eight 16-bit numbers `code - zero`, exactly."""

import triton
import triton.language as tl

# An fp16 in [1024, 2048) has a spacing of 1, so OR-ing a code into the mantissa of 0x6400 (1024.0) makes the number
# 1024 + code: no conversion instruction. Codes one nibble higher arrive as 1024 + 16 code, which one fma brings back:
# (1024 + 16 code) / 16.
#   lo: (1024 + code) - (1024 + zero)                 = code - zero        z_lo = 1024 + zero, both halves
#   hi: (1024 + 16 code) * 0x2c00 (1/16) - (64 + zero) = code - zero        z_hi = -(64 + zero), both halves
# Every intermediate is an integer or a multiple of 1/16 below 2048: representable, hence exact. lop3 0xea is
# (a & b) | c. Word j: nibbles p and p + 4 are k = 32 p + 2 j and its neighbour, so each fp16x2 is a pair that lies side
# by side in k.
_UNPACK_WORD = """
    {
    .reg .b32 word_hi, p0, p1, p2, p3, sixteenth;
    mov.b32 sixteenth, 0x2c002c00;
    shr.u32 word_hi, $8, 8;
    lop3.b32 p0, $8, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 p1, $8, 0x00f000f0, 0x64006400, 0xea;
    lop3.b32 p2, word_hi, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 p3, word_hi, 0x00f000f0, 0x64006400, 0xea;
    sub.rn.f16x2 p0, p0, $9;
    fma.rn.f16x2 p1, p1, sixteenth, $10;
    sub.rn.f16x2 p2, p2, $11;
    fma.rn.f16x2 p3, p3, sixteenth, $12;
    mov.b32 {$0, $1}, p0;
    mov.b32 {$2, $3}, p1;
    mov.b32 {$4, $5}, p2;
    mov.b32 {$6, $7}, p3;
    }
"""
UNPACK_WORD = tl.constexpr(_UNPACK_WORD)


@triton.jit
def pair_zeros(zero):
    """uint8 zeros -> the two fp16x2 constants that UNPACK_WORD subtracts: 1024 + zero and -(64 + zero)."""
    zero = zero.to(tl.int32)
    z_lo = (0x6400 + zero) * 0x10001
    z_hi = (0xD400 + zero * 16) * 0x10001  # 0xd400 is -64, where the spacing is 1/16
    return z_lo, z_hi


# bfloat16 keeps 7 bits behind the point: 0x4300 (128.0) has a spacing of 1 up to 256, with room for one code, so every
# pair is shifted into the low bits first. (128 + code) * 1 - (128 + zero) is exact; sm_80 has no bf16x2 add.
_UNPACK_WORD_BF16 = """
    {
    .reg .b32 w1, w2, w3, p0, p1, p2, p3, one;
    mov.b32 one, 0x3f803f80;
    shr.u32 w1, $8, 4;
    shr.u32 w2, $8, 8;
    shr.u32 w3, $8, 12;
    lop3.b32 p0, $8, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 p1, w1, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 p2, w2, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 p3, w3, 0x000f000f, 0x43004300, 0xea;
    fma.rn.bf16x2 p0, p0, one, $9;
    fma.rn.bf16x2 p1, p1, one, $10;
    fma.rn.bf16x2 p2, p2, one, $11;
    fma.rn.bf16x2 p3, p3, one, $12;
    mov.b32 {$0, $1}, p0;
    mov.b32 {$2, $3}, p1;
    mov.b32 {$4, $5}, p2;
    mov.b32 {$6, $7}, p3;
    }
"""
UNPACK_WORD_BF16 = tl.constexpr(_UNPACK_WORD_BF16)


@triton.jit
def unpack_word(word, z0, z1, z2, z3, TEXT: tl.constexpr, DTYPE: tl.constexpr):
    """int32 [...] -> `code - zero` in DTYPE as four [..., 2]: the pairs p = 0..3, with the zeros that TEXT takes.

    TEXT: UNPACK_WORD for float16, with zeros from `pair_zeros`; UNPACK_WORD_BF16 for bfloat16, from `pair_zeros_bf16`
    """
    a0, b0, a1, b1, a2, b2, a3, b3 = tl.inline_asm_elementwise(
        TEXT, "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r,r,r", [word, z0, z1, z2, z3],
        dtype=(tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16),
        is_pure=True, pack=1,
    )  # fmt: skip
    # Triton takes no tuple of types from a parameter, so the 16 bits are named afterwards
    p0, p1 = tl.join(a0, b0).to(DTYPE, bitcast=True), tl.join(a1, b1).to(DTYPE, bitcast=True)
    p2, p3 = tl.join(a2, b2).to(DTYPE, bitcast=True), tl.join(a3, b3).to(DTYPE, bitcast=True)
    return p0, p1, p2, p3


# What unpacking costs is measured by leaving it out: the word's own bits stand in for all four pairs, with exponents
# cut so that none is infinite or NaN. One instruction instead of nine; everything else stays as it is.
_RAW_WORD = """
    {
    .reg .b32 pair;
    and.b32 pair, $2, 0x3fff3fff;
    mov.b32 {$0, $1}, pair;
    }
"""
RAW_WORD = tl.constexpr(_RAW_WORD)


@triton.jit
def raw_word(word):
    """int32 [...] -> float16 [..., 2]: the halves of `word & 0x3fff3fff`, read as numbers below 2."""
    low, high = tl.inline_asm_elementwise(
        RAW_WORD, "=h,=h,r", [word], dtype=(tl.float16, tl.float16), is_pure=True, pack=1
    )
    return tl.join(low, high)


@triton.jit
def naive_pair(word, zero, p: tl.constexpr, DTYPE: tl.constexpr):
    """Pair p of a word the obvious way: shift, mask, convert, subtract; int32 [...] -> [..., 2]."""
    low = ((word >> 4 * p) & 0xF).to(DTYPE) - zero
    high = ((word >> 4 * (p + 4)) & 0xF).to(DTYPE) - zero
    return tl.join(low, high)


# The zero point of symmetric weights is 8: these are pair_zeros(8) and pair_zeros_bf16(8). The last two have their
# highest bit set, so as int32 they are negative: 2**32 less.
EIGHT_LO = tl.constexpr((0x6400 + 8) * 0x10001)
EIGHT_HI = tl.constexpr((0xD400 + 8 * 16) * 0x10001 - 2**32)
EIGHT_BF16 = tl.constexpr((0xC300 + 8) * 0x10001 - 2**32)


@triton.jit
def dequantise(word, z0, z1, z2, z3, DTYPE: tl.constexpr, HAS_ZEROS: tl.constexpr, DEQUANT: tl.constexpr):
    """int32 [rows, 32, 4] -> `code - zero` in DTYPE as four [rows, 32, 4, 2].

    z0 .. z3: zeros of the four pairs, if HAS_ZEROS: [rows, 32], uint8 or int32. What is made of them is made before it
              is spread over the words: a tensor [rows, 32, 1] would be moved between lanes first.
    """
    if DEQUANT == "none":
        p0 = raw_word(word)
        p1, p2, p3 = p0, p0, p0
    elif DEQUANT == "naive":
        if HAS_ZEROS:
            z0, z1, z2, z3 = z0.to(DTYPE), z1.to(DTYPE), z2.to(DTYPE), z3.to(DTYPE)
            z0, z1, z2, z3 = z0[:, :, None], z1[:, :, None], z2[:, :, None], z3[:, :, None]
        else:
            z0 = tl.full(word.shape, 8, DTYPE)
            z1, z2, z3 = z0, z0, z0
        p0, p1 = naive_pair(word, z0, 0, DTYPE), naive_pair(word, z1, 1, DTYPE)
        p2, p3 = naive_pair(word, z2, 2, DTYPE), naive_pair(word, z3, 3, DTYPE)
    elif DTYPE == tl.bfloat16:
        if HAS_ZEROS:
            z0, z1, z2, z3 = pair_zeros_bf16(z0), pair_zeros_bf16(z1), pair_zeros_bf16(z2), pair_zeros_bf16(z3)
            z0, z1, z2, z3 = z0[:, :, None], z1[:, :, None], z2[:, :, None], z3[:, :, None]
        else:
            z0, z1, z2, z3 = EIGHT_BF16, EIGHT_BF16, EIGHT_BF16, EIGHT_BF16
        p0, p1, p2, p3 = unpack_word(word, z0, z1, z2, z3, UNPACK_WORD_BF16, tl.bfloat16)
    else:
        if HAS_ZEROS:
            z0, z1, z2, z3 = pair_zeros(z0)[0], pair_zeros(z1)[1], pair_zeros(z2)[0], pair_zeros(z3)[1]
            z0, z1, z2, z3 = z0[:, :, None], z1[:, :, None], z2[:, :, None], z3[:, :, None]
        else:
            z0, z1, z2, z3 = EIGHT_LO, EIGHT_HI, EIGHT_LO, EIGHT_HI
        p0, p1, p2, p3 = unpack_word(word, z0, z1, z2, z3, UNPACK_WORD, tl.float16)
    return p0, p1, p2, p3


@triton.jit
def pair_zeros_bf16(zero):
    """uint8 zeros -> the bf16x2 constant that UNPACK_WORD_BF16 adds: -(128 + zero); 0xc300 is -128, spacing 1."""
    return (0xC300 + zero.to(tl.int32)) * 0x10001
