"""Read PNG slices without loss: every bit depth and color type that a slice may have, and a clear word for the rest.

JPEG and BMP, which pictures for `prepare.py png` and `predict.py` may be, become PNG in memory.

The parts of a file are checked here, one by one; only the pixels go on to Pillow, which forgives missing rows, wrong
checksums and a second header, and trips over damage in parts that hold no pixels.
"""

from __future__ import annotations

import functools
import io
import stat
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils import InputError, ceil_div

MAX_PIXELS = 2**25  # 33 million, twice the largest mammogram; what unpacks to more is no slice
MAX_BYTES = 8 * MAX_PIXELS  # of a file; PNG makes nothing larger of so many pixels

GREY, RGB, PALETTE = 0, 2, 3  # color types of the PNG header
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # 4 and 6 have alpha
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP"}  # ending of a file -> Pillow's format
GREY_BMP = {"1": 1, "L": 8}  # Pillow's mode -> bits; it takes a palette of greys for these, whatever the bits
ORIENTATION = 0x0112  # EXIF's tag
NO_COLOR = 2**24  # one more than white
BEGINNING = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
# Of each pass of an interlaced picture: first row and column, and the distance of its rows and columns.
INTERLACED = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def read_image(path: Path) -> np.ndarray:
    """An image as float32 (channels, H, W) in [0, 1]: values over the largest that its bit depth can hold.

    Grey (1 to 16 bit) and grey palettes have one channel, RGB (8 bit) and other palettes three; transparency that a
    file gives to single values is left out. Raises InputError for a file that is missing, damaged, of another kind, or
    of more than MAX_PIXELS.
    """
    pixels = read_pixels(path)
    channels = pixels if pixels.ndim == 3 else pixels[..., None]
    return np.ascontiguousarray(channels.transpose(2, 0, 1), np.float32) / np.iinfo(pixels.dtype).max


def read_pixels(path: Path) -> np.ndarray:
    """An image as `read_image` does, of (H, W) or (H, W, 3), with its values as uint8 or uint16 of full range."""
    pixels, header, palette = _read(path)
    if header.color == PALETTE:
        grey = (palette == palette[:, :1]).all()
        return palette[pixels, 0] if grey else palette[pixels]
    if header.depth < 8:
        return pixels * np.uint8(255 // (2**header.depth - 1))
    return pixels


def is_turned(path: Path) -> bool:
    """Whether the EXIF data of a JPEG says that it is shown turned or mirrored; not of what cannot be read."""
    if PICTURES.get(path.suffix.lower()) != "JPEG":
        return False
    try:
        with Image.open(path, formats=["JPEG"]) as picture:
            return picture.getexif().get(ORIENTATION, 1) in range(2, 9)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        return False


class Mask(NamedTuple):
    """A mask as stored. Colors are numbers 0xRRGGBB."""

    codes: np.ndarray
    """(H, W): grey values or indices of a palette, uint8 or uint16; of a mask in colors its colors, uint32."""
    kind: int
    """GREY, PALETTE or RGB; RGB that is grey everywhere is GREY."""
    palette: np.ndarray
    """The color of each grey value or index, uint32; a grey value between those of 8 bits has NO_COLOR."""

    def colors_of(self, codes: np.ndarray) -> np.ndarray:
        """The colors that values of the mask are shown in."""
        return codes if self.kind == RGB else self.palette[codes]


def read_mask(path: Path) -> Mask:
    """A mask.

    Raises InputError for a file that is missing, damaged, of another kind (JPEG, too), or of more than MAX_PIXELS.
    """
    if PICTURES.get(path.suffix.lower()) == "JPEG":
        raise InputError(f"{path}: a mask as JPEG, which changes values along edges; export the mask as PNG")
    pixels, header, palette = _read(path)
    if header.color == PALETTE:
        return Mask(pixels, PALETTE, pack_colors(palette))
    if header.color == GREY:
        return Mask(pixels, GREY, _grey_colors(header.depth))
    if (pixels != pixels[..., :1]).any():
        return Mask(pack_colors(pixels), RGB, np.zeros(0, np.uint32))
    return Mask(pixels[..., 0], GREY, _grey_colors(8))


def read_grey(path: Path) -> np.ndarray:
    """The grey values of a mask, uint8 or uint16 (H, W); of a palette those that its indices are shown in.

    Raises InputError as `read_mask` does, and for a mask in colors.
    """
    mask = read_mask(path)
    if mask.kind == GREY:
        return mask.codes
    colors = mask.colors_of(mask.codes)
    levels = colors & 255
    if (colors != levels * 0x010101).any():
        raise InputError(f"{path}: a mask in colors; save it as grey values")
    return levels.astype(np.uint8)


def read_pair(images: Sequence[Path], mask: Path) -> tuple[np.ndarray, Mask]:
    """A slice: its image files one after another as float32 (channels, H, W), and its mask.

    Raises InputError as `read_image` and `read_mask` do, and where the files differ in size.
    """
    stored = read_mask(mask)
    rows, columns = stored.codes.shape
    channels = [read_image(path) for path in images]
    for path, channel in zip(images, channels, strict=True):
        if channel.shape[1:] != (rows, columns):
            raise InputError(
                f"{path}: is {channel.shape[1]} x {channel.shape[2]} pixels (rows x columns), its mask {mask} "
                f"{rows} x {columns}; export both from the same grid"
            )
    return np.concatenate(channels), stored


def bit_depth(path: Path) -> int:
    """The bits of a value in a PNG that has been read before."""
    with path.open("rb") as file:
        return file.read(25)[24]


def pack_colors(colors: np.ndarray) -> np.ndarray:
    """Red, green and blue, (..., 3), as numbers 0xRRGGBB, uint32 (...)."""
    red, green, blue = np.moveaxis(colors.astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def unpack_color(color: int) -> list[int]:
    """Red, green and blue of 0xRRGGBB."""
    return [int(color) >> 16, int(color) >> 8 & 255, int(color) & 255]


@functools.cache
def _grey_colors(depth: int) -> np.ndarray:
    """The color of each grey value of so many bits, uint32."""
    levels, between = np.divmod(np.arange(2**depth) * 255, 2**depth - 1)
    return np.where(between == 0, levels * 0x010101, NO_COLOR).astype(np.uint32)


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
    kind = PICTURES.get(path.suffix.lower(), "PNG")
    try:
        parts = _parts(_as_png(content, kind, path))
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
        raise InputError(f"{path}: not a readable {kind} ({error}); write the file again") from None
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


def _as_png(content: bytes, kind: str, path: Path) -> bytes:
    """A JPEG or BMP as the PNG of its pixels, a JPEG turned upright as its EXIF data says; a PNG as it is."""
    if kind == "PNG" or content.startswith(BEGINNING[:8]):
        return content
    try:
        picture = Image.open(io.BytesIO(content), formats=[kind])
    except UnidentifiedImageError:
        raise ValueError("it does not begin as one") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {error}; crop it") from None
    _check_size(picture.width, picture.height, path)
    if picture.mode not in ("1", "L", "P", "RGB"):
        raise InputError(f"{path}: holds pixels of the mode {picture.mode}; save it as grey or RGB")
    if kind == "BMP" and picture.mode in GREY_BMP and _bits_of_bmp(content) != GREY_BMP[picture.mode]:
        raise InputError(f"{path}: has a palette of greys, which is not read in a BMP of its depth; save it as PNG")
    file = io.BytesIO()
    ImageOps.exif_transpose(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _bits_of_bmp(content: bytes) -> int:
    """The bits of a pixel, as the first or the later kind of header says them."""
    offset = 24 if content[14] == 12 else 28
    return int.from_bytes(content[offset : offset + 2], "little")


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
    _check_size(width, height, path)
    if color in (4, 6):
        raise InputError(f"{path}: has an alpha channel; save it as grey, RGB or palette without transparency")
    if color == RGB and depth == 16:
        raise InputError(
            f"{path}: 16-bit RGB cannot be read without loss; save each channel as 16-bit grey in Img, Img_2, Img_3"
        )


def _check_size(width: int, height: int, path: Path) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise InputError(f"{path}: says that it is {height} x {width} pixels, a slice has 1 to {MAX_PIXELS:,}; crop it")


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
