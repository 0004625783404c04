"""Read PNG slices without loss: every bit depth and color type that a slice may have, and a clear word for the rest.

The parts of a file are checked here, one by one; only the pixels go on to Pillow, which forgives missing rows, wrong
checksums and a second header, and trips over damage in parts that hold no pixels.
"""

from __future__ import annotations

import io
import stat
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils import InputError, ceil_div

MAX_PIXELS = 2**25  # 33 million, twice the largest mammogram; what unpacks to more is no slice
MAX_BYTES = 8 * MAX_PIXELS  # of a file; PNG makes nothing larger of so many pixels

GREY, RGB, PALETTE = 0, 2, 3  # color types of the PNG header
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # 4 and 6 have alpha
BEGINNING = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
# Of each pass of an interlaced picture: first row and column, and the distance of its rows and columns.
INTERLACED = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def read_image(path: Path) -> np.ndarray:
    """An image as float32 (channels, H, W) in [0, 1]: values over the largest that its bit depth can hold.

    Grey (1 to 16 bit) and grey palettes have one channel, RGB (8 bit) and other palettes three; transparency that a
    file gives to single values is left out. Raises InputError for a file that is missing, damaged, of another kind, or
    of more than MAX_PIXELS.
    """
    pixels, header, palette = _read(path)
    largest = 2**header.depth - 1
    if header.color == PALETTE:
        colors = palette[:, :1] if (palette == palette[:, :1]).all() else palette
        pixels, largest = colors[pixels], 255
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / largest


def read_codes(path: Path) -> np.ndarray:
    """A mask as stored, uint8 or uint16 (H, W): grey values as they are, palette indices, RGB only where it is grey.

    Raises InputError for a file that is missing, damaged, of another kind, or of more than MAX_PIXELS.
    """
    pixels, header, _ = _read(path)
    if header.color != RGB:
        return pixels
    if (pixels != pixels[..., :1]).any():
        raise InputError(f"{path}: a mask in colors; save it as grey values or with a palette")
    return pixels[..., 0]


def read_pair(images: Sequence[Path], mask: Path) -> tuple[np.ndarray, np.ndarray]:
    """A slice: its image files one after another as float32 (channels, H, W), and its mask as stored, (H, W).

    Raises InputError as `read_image` and `read_codes` do, and where the files differ in size.
    """
    codes = read_codes(mask)
    channels = [read_image(path) for path in images]
    for path, channel in zip(images, channels, strict=True):
        if channel.shape[1:] != codes.shape:
            raise InputError(
                f"{path}: is {channel.shape[1]} x {channel.shape[2]} pixels (rows x columns), its mask {mask} "
                f"{codes.shape[0]} x {codes.shape[1]}; export both from the same grid"
            )
    return np.concatenate(channels), codes


class _Header(NamedTuple):
    """IHDR."""

    width: int
    height: int
    depth: int
    color: int
    compression: int
    filters: int
    interlaced: int


def _read(path: Path) -> tuple[np.ndarray, _Header, np.ndarray]:
    """Stored values, uint8 or uint16 (H, W) or (H, W, 3); the header; the palette, uint8 (colors, 3)."""
    content = _content(path)
    try:
        parts = _parts(content)
        header = _Header(*struct.unpack(">IIBBBBB", parts[b"IHDR"]))
        _check_header(header, path)
        # Pillow gets the pixels unpacked (level 0 only wraps them), and of the palette's picture the indices.
        lines = zlib.compress(_unpack(parts[b"IDAT"], header), 0)
        picture = BEGINNING[:8] + _part(b"IHDR", parts[b"IHDR"]) + _part(b"IDAT", lines) + _part(b"IEND", b"")
        pixels = np.asarray(Image.open(io.BytesIO(picture), formats=["PNG"]))
        palette = np.frombuffer(parts.get(b"PLTE", b""), np.uint8).reshape(-1, 3)
        if header.color == PALETTE and int(pixels.max()) >= len(palette):
            raise ValueError(f"a pixel has color {pixels.max()} of a palette of {len(palette)}")
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error) as error:
        raise InputError(f"{path}: not a readable PNG ({error}); write the file again") from None
    if header.depth == 16:
        return pixels.astype(np.uint16), header, palette
    if header.color == GREY and header.depth in (2, 4):
        # Pillow stretches these to 0..255; a class index must come back as it was stored.
        return pixels // (255 // (2**header.depth - 1)), header, palette
    return pixels.astype(np.uint8), header, palette


def _content(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for someone to write
            raise InputError(f"{path}: is a folder, pipe or device; put the slice's file there, or remove it")
        if status.st_size > MAX_BYTES:
            raise InputError(f"{path}: has {status.st_size:,} bytes, a slice at most {MAX_BYTES:,}; write it again")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; put it back, or remove the rest of its slice") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the file or link, or remove it") from None


def _parts(content: bytes) -> dict[bytes, bytes]:
    """The parts that hold pixels, as they are called, with those of IDAT joined; all checksums are right."""
    if not content.startswith(BEGINNING):
        raise ValueError("it does not begin as one")
    parts: dict[bytes, bytes] = {}
    pixels, offset, kind = [], 8, b""
    while kind != b"IEND":
        if offset + 12 > len(content):
            raise ValueError("it ends early")
        size, kind = struct.unpack_from(">I4s", content, offset)
        end = offset + 8 + size
        if content[end : end + 4] != struct.pack(">I", zlib.crc32(memoryview(content)[offset + 4 : end])):
            raise ValueError(f"the part from byte {offset} to {end + 4} is damaged or cut")
        if kind == b"IDAT":
            pixels.append(content[offset + 8 : end])
        elif kind in parts:
            raise ValueError(f"it has {kind.decode()} twice")
        elif kind in (b"IHDR", b"PLTE"):
            parts[kind] = content[offset + 8 : end]
        elif kind[0] & 32 == 0 and kind != b"IEND":  # a capital: what it changes cannot be left out
            raise ValueError(f"it has an unknown part {kind!r}")
        offset = end + 4
    return parts | {b"IDAT": b"".join(pixels)}


def _part(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _check_header(header: _Header, path: Path) -> None:
    width, height, depth, color = header[:4]
    if depth not in DEPTHS.get(color, ()) or max(header.compression, header.filters, header.interlaced - 1) > 0:
        raise ValueError(f"its header holds {tuple(header)}")
    if not 0 < width * height <= MAX_PIXELS:
        raise InputError(f"{path}: says that it is {height} x {width} pixels, a slice has 1 to {MAX_PIXELS:,}; crop it")
    if color in (4, 6):
        raise InputError(f"{path}: has an alpha channel; save it as grey, RGB or palette without transparency")
    if color == RGB and depth == 16:
        raise InputError(
            f"{path}: 16-bit RGB cannot be read without loss; save each channel as 16-bit grey in Img, Img_2, Img_3"
        )


def _unpack(packed: bytes, header: _Header) -> bytes:
    """The lines of pixels, of exactly the size that the header says; unpacking more is not even begun."""
    bits = header.depth * (3 if header.color == RGB else 1)
    passes = INTERLACED if header.interlaced else ((0, 0, 1, 1),)
    sizes = [
        (ceil_div(header.height - row, down), ceil_div(header.width - column, right))
        for row, column, down, right in passes
    ]
    size = sum(rows * (1 + ceil_div(columns * bits, 8)) for rows, columns in sizes if rows > 0 and columns > 0)
    unpacker = zlib.decompressobj()
    lines = unpacker.decompress(packed, size + 1)
    if len(lines) != size or not unpacker.eof:
        raise ValueError(f"it holds {'less' if len(lines) < size else 'more'} than its {header.height} rows of pixels")
    return lines
