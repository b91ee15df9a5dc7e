"""Packed word, mask, register, fragment: the way of eight codes into the tensor core, in four frames."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tinygemm.report.base import style
from tinygemm.report.kernel.fragment import LANES, PAIRS, fragment, input_of, pair_of, place

COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#D68FB6")  # of the four pairs
PALE, EMPTY = "#EEF0F2", "white"
WORD, LANE = 4, 5  # what the frames follow: a word that this lane loads
SMALL = {"size": 8.5, "ha": "center", "va": "center"}


@style.figure
def word_to_fragment(lane: int = LANE, word: int = WORD) -> tuple[Figure, str]:
    """Four frames: the bits of a word, what one mask keeps, the register that it becomes, the operand it belongs to.

    lane: of a warp, the owner of the word in its row
    """
    about = f"word {word} of row {lane // 4} of a tile, which lane {lane} of a warp loads"
    fig, axes = style.canvas("From a packed word to the tensor core", about, height=4.6, nrows=2, ncols=2)
    titles = (
        "1. Eight codes in 32 bits",
        "2. Mask and OR, one lop3",
        "3. One register: two FP16",
        "4. Operand A of mma",
    )
    for ax, title, draw in zip(axes.flat, titles, (_word, _masked, _register, _operand), strict=True):
        ax.set_title(title, loc="left", size=10.5, weight="bold", pad=6)
        ax.set_axis_off()
        draw(ax, word, lane)
        ax.set(xticks=[], yticks=[])
    first = pair_of(word, 0)
    held = ", ".join(f"{name} row {row} word {of}" for name, (row, of) in fragment(lane, 0).items())
    codes = ", ".join(str(input_of(word, nibble)) for nibble in range(2 * PAIRS))
    alt = (
        f"Four frames. Word {word} holds the codes of k = {codes}, low nibble first. One mask keeps k = {first[0]} and "
        f"{first[1]}, which become the two FP16 numbers of one register. Lane {lane} holds: {held}."
    )
    return fig, alt


def _cells(ax: Axes, y: float, texts, colours, height: float = 0.8) -> None:
    """A row of equal cells from the highest bits on the left to the lowest."""
    for x, (text, colour) in enumerate(zip(texts, colours, strict=True)):
        ax.add_patch(Rectangle((x + 0.03, y), 0.94, height, facecolor=colour, edgecolor=style.FAINT, lw=0.6))
        ax.text(x + 0.5, y + height / 2, text, **SMALL)


def _word(ax: Axes, word: int, _: int) -> None:
    nibbles = range(2 * PAIRS - 1, -1, -1)
    _cells(ax, 1.2, [input_of(word, n) for n in nibbles], [COLOURS[n % PAIRS] for n in nibbles])
    ax.text(4, 2.35, "the input k of each 4-bit code", **SMALL)
    ax.text(0.03, 0.85, "bit 31", size=8.5, va="center")
    ax.text(7.97, 0.85, "bit 0", size=8.5, va="center", ha="right")
    ax.text(4, 0.25, "one colour: neighbours in k", **SMALL)
    ax.set(xlim=(0, 8), ylim=(0, 3))


def _masked(ax: Axes, word: int, _: int) -> None:
    half = ("6", "4", "0")
    _cells(ax, 1.2, [*half, input_of(word, PAIRS), *half, input_of(word, 0)], ([PALE] * 3 + [COLOURS[0]]) * 2)
    ax.text(4, 2.35, "& 0x000f000f | 0x64006400", family="monospace", **SMALL)
    ax.text(4, 0.5, "0x6400 is 1024 in FP16; the code\nbecomes its lowest mantissa bits", linespacing=1.3, **SMALL)
    ax.set(xlim=(0, 8), ylim=(0, 3))


def _register(ax: Axes, word: int, _: int) -> None:
    low, high = pair_of(word, 0)
    for x, k in ((0, high), (4, low)):
        for y, text in ((1.9, f"1024 + code[{k}]"), (0.35, f"code[{k}] − 8")):
            ax.add_patch(Rectangle((x + 0.05, y), 3.9, 0.75, facecolor=COLOURS[0], edgecolor=style.FAINT, lw=0.6))
            ax.text(x + 2, y + 0.375, text, **SMALL)
        ax.annotate("", (x + 2, 1.12), (x + 2, 1.88), arrowprops={"arrowstyle": "->", "color": style.INK})
    ax.text(4, 1.5, "− 1032", **SMALL)
    ax.set(xlim=(0, 8), ylim=(0, 3))


def _operand(ax: Axes, _: int, lane: int) -> None:
    mine = {place(lane, name): name for name in fragment(lane, 0)}
    for each in range(LANES):
        for name in fragment(each, 0):
            row, column = place(each, name)
            own = (row, column) in mine
            colour = COLOURS[0] if own else (PALE if (row + column // 2) % 2 else EMPTY)
            ax.add_patch(Rectangle((column, 15 - row), 2, 1, facecolor=colour, edgecolor="#D5D8DB", lw=0.4))
            if own:
                look = {"arrowprops": {"arrowstyle": "-", "color": style.INK, "lw": 0.8}, "size": 8.5, "va": "center"}
                ax.annotate(name, (column + 2, 15.5 - row), (17, 15.5 - row + (0.8 if column >= 8 else -1.4)), **look)
    ax.text(-0.9, 8, "16 rows", rotation=90, size=8.5, ha="center", va="center")
    ax.text(8, -1.1, f"16 inputs; blue: lane {lane}", **SMALL)
    ax.set(xlim=(-1.6, 20), ylim=(-2, 16.2))
