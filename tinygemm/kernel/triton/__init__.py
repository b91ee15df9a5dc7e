"""The Triton kernels, one idea a file.

dequant:   one word becomes eight numbers
smem:      shared memory and asynchronous copies
tiles:     which lane holds which weights, the operands of the tensor core, and the store of a split K
splitk:    the tuned kernel that requests weights into registers
pipelined: the tuned kernel that copies weights into shared memory; launch configs and tables call it `ring`
simple:    the obvious kernel, and the one that writes the weight out
reference: kernels that the product is measured against

Every kernel reads the packed format of quant.py. A tile is BLOCK_N output features; `qweight` holds them as
BLOCK_N / 16 rows of [K / 128] blocks of 16 x 16 words. `kb` counts blocks of 128 k; KB is how many there are; GROUP is
the group size, and 128 where one group is the whole K. DEQUANT says how a word becomes numbers: `fast` is meant to be
used; `naive` (shift, mask, convert) and `none` (the words' own bits stand in) measure what dequantisation costs.
"""
