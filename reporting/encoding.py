"""Pictures and masks as text inside a page."""

from __future__ import annotations

import base64
import functools
import io
import zlib
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from data.colors import class_colors
from data.dataset import SubjectSlices
from reporting.figures import NOT_ANNOTATED, hatched
from utils import IGNORED

JPEG = {"format": "JPEG", "quality": 92}  # of CHAOS's slices: 0.6 grey values off in the mean, 10 of PNG's 24 KB


@functools.lru_cache(maxsize=4096)  # the page is written after every epoch, and images do not change
def encode_image(pictures: SubjectSlices, index: int) -> str:
    """The picture of a slice as a JPEG in base64, grey or RGB as it is."""
    pixels = np.rint(255 * pictures.picture(index)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, **JPEG)
    return base64.b64encode(file.getvalue()).decode()


def encode_classes(classes: np.ndarray) -> str:
    """Class indices uint8 (H, W) -> base64 of a PNG in the colors of the classes, transparent where background.

    What nobody annotated is hatched.
    """
    colors = [*class_colors(IGNORED), tuple(bytes.fromhex(NOT_ANNOTATED[1:]))]
    return _encode_indexed(hatched(classes), colors, transparency=0)


def _encode_indexed(indices: np.ndarray, colors: Sequence[Sequence[int]], **options: int) -> str:
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette([value for color in colors for value in color])
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return base64.b64encode(file.getvalue()).decode()


def encode_mask(classes: np.ndarray) -> str:
    """uint8 of any shape -> base64 of a zlib stream, which browsers unpack by themselves, to the bit.

    Level 1: three times as fast as the default, for a page that is written after each epoch.
    """
    return base64.b64encode(zlib.compress(classes.tobytes(), 1)).decode()


def encode_heat(values: np.ndarray) -> str:
    """(H, W) -> base64 of a PNG in matplotlib's viridis, from the least to the largest value."""
    stretched = (values - values.min()) * (255 / (np.ptp(values) or 1))
    colors = np.rint(255 * np.array(plt.get_cmap("viridis").colors)).astype(int).tolist()
    return _encode_indexed(stretched.round().astype(np.uint8), colors)
