"""Read PNG slices without loss: every bit depth and color type that a slice may have, and a clear word for the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from utils import InputError

GREY, RGB, PALETTE = 0, 2, 3  # color types of the PNG header


def read_image(path: Path) -> np.ndarray:
    """An image as float32 (channels, H, W) in [0, 1]: values over the largest that its bit depth can hold.

    Grey (1 to 16 bit) and grey palettes have one channel, RGB (8 bit) and other palettes three.
    Raises InputError for a file that is missing, damaged, or of another kind.
    """
    picture, depth, color = _open(path)
    if color == PALETTE:
        palette = np.asarray(picture.getpalette("RGB")).reshape(-1, 3)
        grey_palette = (palette == palette[:, :1]).all()
        picture, depth, color = picture.convert("RGB"), 8, RGB
        pixels = np.asarray(picture)[..., :1] if grey_palette else np.asarray(picture)
    elif color == GREY:
        pixels = _grey(picture, depth)[..., None]
    else:
        pixels = np.asarray(picture)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / (2**depth - 1)


def read_codes(path: Path) -> np.ndarray:
    """A mask as stored, uint8 or uint16 (H, W): grey values as they are, palette indices, RGB only where it is grey.

    Raises InputError for a file that is missing, damaged, or of another kind.
    """
    picture, depth, color = _open(path)
    if color == GREY:
        return _grey(picture, depth)
    pixels = np.asarray(picture)
    if color == RGB:
        if (pixels != pixels[..., :1]).any():
            raise InputError(f"{path}: a mask in colors; save it as grey values or with a palette")
        return pixels[..., 0]
    return pixels


def _open(path: Path) -> tuple[Image.Image, int, int]:
    """The decoded picture, the bit depth and the color type of its header."""
    try:
        with path.open("rb") as file:
            header = file.read(26)
            picture = Image.open(path, formats=["PNG"])
            picture.load()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable PNG ({error}); write the file again") from None
    depth, color = header[24], header[25]
    if color not in (GREY, RGB, PALETTE):
        raise InputError(f"{path}: has an alpha channel; save it as grey, RGB or palette without transparency")
    if color == RGB and depth == 16:
        raise InputError(
            f"{path}: 16-bit RGB cannot be read without loss; save each channel as 16-bit grey in Img, Img_2, Img_3"
        )
    return picture, depth, color


def _grey(picture: Image.Image, depth: int) -> np.ndarray:
    pixels = np.asarray(picture)
    if depth == 16:
        return pixels.astype(np.uint16)
    # Pillow stretches 2 and 4 bits to 0..255; a class index must come back as it was stored.
    return pixels.astype(np.uint8) // (255 // (2**depth - 1)) if depth in (2, 4) else pixels.astype(np.uint8)
