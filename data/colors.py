"""The colors that classes are shown in, in pictures, pages and viewers."""

from __future__ import annotations

# Okabe and Ito's colors, told apart by color-blind eyes; after eight classes they begin again.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00", "#FFFFFF")


def class_colors(classes: int) -> list[tuple[int, int, int]]:
    """Red, green and blue of each class, 0 to 255; the background is black."""
    codes = ["#000000", *(COLORS[k % len(COLORS)] for k in range(classes - 1))]
    return [tuple(bytes.fromhex(code[1:])) for code in codes]
