"""The description of each backend, once: key, name, what it computes, and how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass

FP16 = "fp16"  # the product with FP16 weights
OURS = "ours"  # the product by our kernels, as a user could call them
ABLATION = "ablation"  # our kernels with one thing changed, to see what it is worth
BOUND = "bound"  # reads the weights as our kernels do, and computes nothing
PEER = "peer"  # the product by somebody else's 4-bit kernel
PART = "part"  # one step of a product
CEILING = "ceiling"  # what the memory or a launch alone costs


@dataclass(frozen=True)
class Description:
    """The description of a backend for the reader, and its look in figures.

    key:    its name in recorded runs and on the command line
    name:   its name in legends and tables
    what:   what it is, in a few words
    family: one of FP16, OURS, ABLATION, BOUND, PEER, PART, CEILING
    colour: of Okabe and Ito's kind, told apart with the common colour-vision deficiencies: FP16 is grey, our kernels
            are orange and blue
    marker: of matplotlib
    short:  a name for where there is little room
    serial: key of the same kernel whose calls do not overlap, if that is a backend of its own
    """

    key: str
    name: str
    what: str
    family: str
    colour: str
    marker: str = "o"
    short: str = ""
    serial: str = ""


# in the order in which legends and tables list them
BACKENDS = {
    each.key: each
    for each in (
        Description(
            "fp16-cublas",
            "FP16 (cuBLAS)",
            "FP16 weights, the faster of two layouts of cuBLAS",
            FP16,
            "#5F6368",
            marker="s",
            short="FP16",
        ),
        Description(
            "fp16-triton",
            "FP16 (our kernel)",
            "our kernel structure with FP16 weights",
            FP16,
            "#A8ADB3",
            marker="D",
            serial="fp16-triton-serial",
        ),
        Description(
            "fp16-triton-serial",
            "FP16 (our kernel), no overlap",
            "our FP16 kernel, started only when the kernel before it has finished",
            ABLATION,
            "#C9CCD1",
        ),
        Description("dequant-only", "dequantise only", "only writes the weight back in FP16", PART, "#E3A8C8"),
        Description(
            "dequant-fp16", "dequantise, then FP16", "writes the weight back in FP16, then multiplies", OURS, "#B5568F"
        ),
        Description(
            "int4-static",
            "INT4, simple kernel",
            "the simple fused kernel",
            OURS,
            "#E69F00",
            marker="^",
            short="INT4 simple",
        ),
        Description(
            "int4",
            "INT4, tuned kernel",
            "the tuned kernel: the one that the library selects",
            OURS,
            "#0072B2",
            short="INT4 tuned",
            serial="int4-serial",
        ),
        Description(
            "int4-serial",
            "INT4, tuned, no overlap",
            "the tuned kernel, started only when the kernel before it has finished",
            ABLATION,
            "#7FB2DC",
        ),
        Description(
            "int4-no-dequant",
            "INT4, not dequantised",
            "the tuned kernel with its dequantisation left out: it multiplies with the raw bits",
            ABLATION,
            "#56B4E9",
        ),
        Description(
            "int4-ring",
            "INT4, pipelined kernel",
            "the tensor-core kernel whose weights wait in shared memory, for up to 8 tokens",
            OURS,
            "#3F8FC4",
            marker="v",
        ),
        Description(
            "int4-splitk",
            "INT4, split-K kernel",
            "the tensor-core kernel whose weights wait in registers",
            OURS,
            "#003E66",
            marker="P",
        ),
        Description(
            "int4-load-only",
            "INT4, weight-read bound",
            "reads the INT4 bytes, computes nothing",
            BOUND,
            "#009E73",
            marker="d",
            serial="int4-load-only-serial",
        ),
        Description("aten-int4mm", "INT4, PyTorch (aten)", "PyTorch's own INT4 kernel", PEER, "#D55E00", marker="X"),
        Description("gemlite", "INT4, GemLite", "GemLite, a Triton library", PEER, "#8C6D00"),
        Description("marlin", "INT4, Marlin", "Marlin, a CUDA kernel", PEER, "#7A4FBF"),
        Description(
            "humming",
            "INT4, Humming",
            "Humming, CUDA kernels compiled for each shape, with their own overlap",
            PEER,
            "#A83232",
            marker="p",
            serial="humming-serial",
        ),
        Description(
            "humming-serial",
            "INT4, Humming, no overlap",
            "Humming, started only when the kernel before it has finished",
            PEER,
            "#D98880",
            marker="p",
        ),
        Description(
            "bitsandbytes-nf4", "NF4, bitsandbytes", "bitsandbytes, 4-bit NF4 instead of INT4", PEER, "#44796B"
        ),
        Description(
            "int4-fused",
            "INT4, always fused",
            "the tuned kernel at any number of tokens, also where the library would dequantise first",
            ABLATION,
            "#9AD0F5",
        ),
        Description(
            "int4-naive-dequant",
            "INT4, naive dequantisation",
            "the tuned kernel that dequantises by shift, mask and convert",
            ABLATION,
            "#C77C3A",
        ),
        Description(
            "int4-no-split",
            "INT4, K not split",
            "the tuned kernel in which one warp walks all of K",
            ABLATION,
            "#8AA4C8",
        ),
        Description(
            "int4-more-split",
            "INT4, K split twice as often",
            "the tuned kernel with K split over twice the programs",
            ABLATION,
            "#2C5F8A",
        ),
        Description(
            "int4-step-naive",
            "INT4, K split, flat loads",
            "K split over warps and programs, words loaded as tensor-core operands, naive dequantisation",
            ABLATION,
            "#F0B95A",
        ),
        Description(
            "int4-step-lop3", "… and lop3 dequantisation", "the same, dequantised by lop3", ABLATION, "#B9C96A"
        ),
        Description(
            "int4-step-early",
            "… and overlap",
            "the same, weights requested before the kernel before it has finished",
            ABLATION,
            "#5FB7A8",
        ),
        Description(
            "int4-bf16", "INT4, bfloat16 activations", "the tuned kernel with bfloat16 activations", OURS, "#4B5FA6"
        ),
        Description(
            "int4-asymmetric",
            "INT4, with zero points",
            "the tuned kernel with a zero point for every group",
            OURS,
            "#86A9D9",
        ),
        Description(
            "int4-one-row",
            "INT4, one row of activations",
            "the tuned kernel on as many tokens that share one row of activations: the traffic of one",
            ABLATION,
            "#5C9BD1",
        ),
        Description(
            "int4-searched",
            "INT4, best config raced",
            "the fastest of the selected config and those that a rough model ranks first for this shape",
            ABLATION,
            "#14476B",
        ),
        Description(
            "int4-load-only-serial",
            "weight-read bound, no overlap",
            "reads the INT4 bytes, computes nothing, started only when the kernel before has finished",
            BOUND,
            "#7CC7A9",
        ),
        Description("copy", "copy", "device-to-device copy: the bandwidth to compare with", CEILING, "#999999"),
        Description(
            "empty-node", "empty-node", "a kernel that does nothing: the least a graph node costs", CEILING, "#999999"
        ),
    )
}


def of_family(*families: str) -> tuple[str, ...]:
    """Keys of the backends of these families, in the order of BACKENDS."""
    return tuple(each.key for each in BACKENDS.values() if each.family in families)


def with_serial() -> dict[str, str]:
    """Key of each backend whose calls overlap, and of the same kernel whose calls do not."""
    return {each.key: each.serial for each in BACKENDS.values() if each.serial}
