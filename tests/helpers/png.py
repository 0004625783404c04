"""A PNG writer and reader without Pillow, so that the loader is not compared with what it uses itself."""

from __future__ import annotations

import functools
import json
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Color type and depth of each kind that a slice may have.
KINDS = ((0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (3, 1), (3, 2), (3, 4), (3, 8))
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))

Chunks = list[tuple[bytes, bytes]]


def save_png(path: Path, pixels: np.ndarray) -> Path:
    """Write pixels with Pillow, in a new folder where there is none; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


# ---------------------------------------------------------------- writer


def encode(
    pixels: np.ndarray,
    depth: int = 8,
    color: int = 0,
    palette: bytes = b"",
    interlaced: bool = False,
    filters: np.random.Generator | None = None,
    cuts: int = 1,
) -> Chunks:
    """The chunks of a PNG of `pixels`, (H, W) or (H, W, 3); `filters` draws one for each row, `cuts` are IDATs."""
    parts = [pixels[r::d, c::e] for r, c, d, e in PASSES] if interlaced else [pixels]
    packed = zlib.compress(b"".join(_scanlines(part, depth, filters) for part in parts if part.size), 6)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, color, 0, 0, interlaced)
    ends = np.linspace(0, len(packed), cuts + 1).astype(int)
    data = [(b"IDAT", packed[a:b]) for a, b in pairwise(ends)]
    return [(b"IHDR", header), *([(b"PLTE", palette)] if color == 3 else []), *data, (b"IEND", b"")]


def png(chunks: Chunks) -> bytes:
    """The content of a file."""
    return SIGNATURE + b"".join(_chunk(*part) for part in chunks)


@functools.cache
def flat(value: int, rows: int = 32, columns: int = 32) -> bytes:
    """The content of a grey file of 8 bits with one value everywhere."""
    return png(encode(np.full((rows, columns), value)))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _scanlines(pixels: np.ndarray, depth: int, filters: np.random.Generator | None) -> bytes:
    step = max(1, depth * (3 if pixels.ndim == 3 else 1) // 8)
    lines, before = b"", None
    for row in pixels:
        line = _pack(row, depth)
        before = before or bytes(len(line))
        kind = 0 if filters is None else int(filters.integers(5))
        left, corner = bytes(step) + line, bytes(step) + before
        coded = line
        if kind > 0:
            coded = bytes((line[k] - _predictor(kind, left[k], before[k], corner[k])) % 256 for k in range(len(line)))
        lines, before = lines + bytes([kind]) + coded, line
    return lines


def _pack(row: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = "".join(f"{value:0{depth}b}" for value in row.ravel())
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def _predictor(kind: int, left: int, up: int, corner: int) -> int:
    """What filter `kind` of the PNG specification takes from a byte."""
    if kind == 4:
        guess = left + up - corner
        return min((left, up, corner), key=lambda value: abs(guess - value))  # the first of equals, in this order
    return (0, left, up, (left + up) // 2)[kind]


# ---------------------------------------------------------------- reader


def decode(content: bytes) -> tuple[np.ndarray, int, int, np.ndarray]:
    """Stored values, depth, color type and palette; ValueError for what the specification does not allow."""
    chunks = _read_chunks(content)
    width, height, depth, color, *methods, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if (color, depth) not in KINDS or methods != [0, 0] or interlaced > 1 or not width * height:
        raise ValueError("kind")
    lines = zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"))
    samples = 3 if color == 2 else 1
    if height * width * samples * depth > 8 * len(lines):
        raise ValueError("too few rows")
    pixels = np.zeros((height, width, samples), int)
    for r, c, d, e in PASSES if interlaced else [(0, 0, 1, 1)]:
        part = pixels[r::d, c::e]
        if part.size:
            lines = _read_rows(lines, part, depth, samples)
    if lines:
        raise ValueError("too many rows")
    palette = np.frombuffer(dict(chunks).get(b"PLTE", b""), np.uint8).reshape(-1, 3)
    return (pixels if color == 2 else pixels[..., 0]), depth, color, palette


def as_image(pixels: np.ndarray, depth: int, color: int, palette: np.ndarray) -> np.ndarray:
    """The image that the values are: each over the largest of its depth, (channels, H, W)."""
    if color == 3:
        grey = all(red == green == blue for red, green, blue in palette.tolist())
        pixels, depth = palette[pixels][..., : 1 if grey else 3], 8
    return np.atleast_3d(pixels).transpose(2, 0, 1).astype(np.float32) / (2**depth - 1)


def _read_chunks(content: bytes) -> Chunks:
    if content[:8] != SIGNATURE:
        raise ValueError("signature")
    chunks, start = [], 8
    while not chunks or chunks[-1][0] != b"IEND":
        size = int.from_bytes(content[start : start + 4], "big")
        kind, data = content[start + 4 : start + 8], content[start + 8 : start + 8 + size]
        if content[start : start + 12 + size] != _chunk(kind, data):
            raise ValueError("chunk")
        chunks.append((kind, data))
        start += 12 + size
    kinds = [kind for kind, _ in chunks]
    if kinds[0] != b"IHDR" or kinds.count(b"IHDR") > 1 or len(chunks[0][1]) != 13:
        raise ValueError("header")
    return chunks


def _read_rows(lines: bytes, part: np.ndarray, depth: int, samples: int) -> bytes:
    """Put the rows of a pass into `part`; return the bytes after them."""
    size = -(-part.shape[1] * samples * depth // 8)
    before = bytes(size)
    for row in part:
        before = _restore(lines[0], lines[1 : 1 + size], before, max(1, depth * samples // 8))
        bits = "".join(f"{byte:08b}" for byte in before)
        values = [int(bits[k : k + depth], 2) for k in range(0, row.size * depth, depth)]
        row[:] = np.reshape(values, row.shape)
        lines = lines[1 + size :]
    return lines


def _restore(kind: int, coded: bytes, before: bytes, step: int) -> bytes:
    if kind > 4 or len(coded) != len(before):
        raise ValueError("row")
    line = bytearray()
    for k, byte in enumerate(coded):
        left, corner = (line[k - step], before[k - step]) if k >= step else (0, 0)
        line.append((byte + _predictor(kind, left, before[k], corner)) % 256)
    return bytes(line)


# ---------------------------------------------------------------- a data set of three slices

GREY = np.arange(32 * 32).reshape(32, 32) % 256


def write_tree(root: Path, image: bytes, mask: bytes, codes: list[int]) -> Path:
    """Write a data set whose subject a has this image and mask; the others are flat, b of class 1, c of none.

    255, which is no class index, is the code of what is not annotated. What an earlier call has written to `root` is
    replaced.
    """
    plain, full = (flat(code) for code in codes[:2])
    for split, name, pair in (
        ("train", "a", (image, mask)),
        ("val", "b", (plain, full)),
        ("test", "c", (plain, plain)),
    ):
        for kind, content in zip(("Img", "GT"), pair, strict=True):
            folder = root / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"Subj_{name}slice_1.png").write_bytes(content)
    names = {"background": codes[0]} | {"ignore" if code == 255 else f"class {code}": code for code in codes[1:]}
    (root / "dataset.json").write_text(json.dumps({"labels": names}))
    return root
