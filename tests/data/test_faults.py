"""Bad files, names and descriptions: each ends in the right values or in one line that names the file and the remedy.

PNG files are written and read here without Pillow, so that the loader is not compared with what it uses itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import prepare
from checkpoint import StopSignal
from config import Config
from data.folder import open_data, read_description
from data.layout import write_data
from data.png import MAX_BYTES, MAX_PIXELS, read_codes, read_image
from data.preparation import Preparation
from data.slices import ShuffledBatches, collate, natural, read_batches
from data.sources import Case
from data.sources.nifti import find_brats, find_msd, find_pairs, read_volume
from data.splits import read_split
from data.volumes import to_scan, write_nifti
from engine import Epoch, train_one_epoch
from losses import GuidedLoss
from models import build_model
from optimization import Optimization
from utils import InputError, printable, user_errors

ROOT = Path(__file__).parents[1]
SIGNATURE = b"\x89PNG\r\n\x1a\n"
KINDS = {(0, 1): 1, (0, 2): 1, (0, 4): 1, (0, 8): 1, (0, 16): 2, (2, 8): 3, (3, 1): 1, (3, 2): 1, (3, 4): 1, (3, 8): 1}
PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
REMEDY = re.compile(
    r"write (the file|it) again|put|remove|correct|save|crop|export|keep|list|choose|rename|number|pad|prepare|leave|"
    r"add |must |such as"
)
DEADLINE = 300  # seconds; whatever hangs ends the process


@pytest.fixture(autouse=True)
def never_hangs():
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def assert_clear(error: InputError, *parts: str) -> None:
    message = str(error)
    assert message.isprintable()
    assert REMEDY.search(message), message
    assert "object at 0x" not in message
    for part in parts:
        assert part in message, message


# ---------------------------------------------------------------- a PNG writer and reader of our own


def predictor(kind: int, left: int, up: int, corner: int) -> int:
    """What filter `kind` of the PNG specification takes from a byte."""
    if kind == 4:
        guess = left + up - corner
        return min((left, up, corner), key=lambda value: abs(guess - value))  # the first of equals, in this order
    return (0, left, up, (left + up) // 2)[kind]


def pack(row: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = "".join(f"{value:0{depth}b}" for value in row.ravel())
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def scanlines(pixels: np.ndarray, depth: int, filters: np.random.Generator | None) -> bytes:
    step = max(1, depth * (3 if pixels.ndim == 3 else 1) // 8)
    lines, before = b"", None
    for row in pixels:
        line = pack(row, depth)
        before = before or bytes(len(line))
        kind = 0 if filters is None else int(filters.integers(5))
        left, corner = bytes(step) + line, bytes(step) + before
        coded = bytes((line[k] - predictor(kind, left[k], before[k], corner[k])) % 256 for k in range(len(line)))
        lines, before = lines + bytes([kind]) + coded, line
    return lines


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return SIGNATURE + b"".join(chunk(*part) for part in chunks)


def encode(
    pixels: np.ndarray, depth: int = 8, color: int = 0, palette: bytes = b"", interlaced: bool = False,
    filters: np.random.Generator | None = None, cuts: int = 1,
) -> list[tuple[bytes, bytes]]:  # fmt: skip
    """The chunks of a PNG of `pixels`, (H, W) or (H, W, 3)."""
    parts = [pixels[r::d, c::e] for r, c, d, e in PASSES] if interlaced else [pixels]
    packed = zlib.compress(b"".join(scanlines(part, depth, filters) for part in parts if part.size), 6)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, color, 0, 0, interlaced)
    places = np.linspace(0, len(packed), cuts + 1).astype(int)
    data = [(b"IDAT", packed[a:b]) for a, b in pairwise(places)]
    return [(b"IHDR", header), *([(b"PLTE", palette)] if color == 3 else []), *data, (b"IEND", b"")]


def decode(content: bytes) -> tuple[np.ndarray, int, int, np.ndarray]:
    """Stored values, depth, color type and palette; ValueError for what the specification does not allow."""
    if content[:8] != SIGNATURE:
        raise ValueError("signature")
    chunks, place = [], 8
    while not chunks or chunks[-1][0] != b"IEND":
        size = int.from_bytes(content[place : place + 4], "big")
        kind, data = content[place + 4 : place + 8], content[place + 8 : place + 8 + size]
        if content[place : place + 12 + size] != chunk(kind, data):
            raise ValueError("chunk")
        chunks.append((kind, data))
        place += 12 + size
    kinds = [kind for kind, _ in chunks]
    if kinds[0] != b"IHDR" or kinds.count(b"IHDR") > 1 or len(chunks[0][1]) != 13:
        raise ValueError("header")
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
            size = -(-part.shape[1] * samples * depth // 8)
            before = bytes(size)
            for row in part:
                before = restore(lines[0], lines[1 : 1 + size], before, max(1, depth * samples // 8))
                bits = "".join(f"{byte:08b}" for byte in before)
                values = [int(bits[k : k + depth], 2) for k in range(0, row.size * depth, depth)]
                row[:] = np.reshape(values, row.shape)
                lines = lines[1 + size :]
    if lines:
        raise ValueError("too many rows")
    palette = np.frombuffer(dict(chunks).get(b"PLTE", b""), np.uint8).reshape(-1, 3)
    return (pixels if color == 2 else pixels[..., 0]), depth, color, palette


def restore(kind: int, coded: bytes, before: bytes, step: int) -> bytes:
    if kind > 4 or len(coded) != len(before):
        raise ValueError("row")
    line = bytearray()
    for k, byte in enumerate(coded):
        left, corner = (line[k - step], before[k - step]) if k >= step else (0, 0)
        line.append((byte + predictor(kind, left, before[k], corner)) % 256)
    return bytes(line)


def as_image(pixels: np.ndarray, depth: int, color: int, palette: np.ndarray) -> np.ndarray:
    """What the README says of images: values over the largest, (channels, H, W)."""
    if color == 3:
        grey = all(red == green == blue for red, green, blue in palette.tolist())
        pixels, depth = palette[pixels][..., : 1 if grey else 3], 8
    return np.atleast_3d(pixels).transpose(2, 0, 1).astype(np.float32) / (2**depth - 1)


def test_our_own_reader_knows_filters_and_passes():
    """Values worked out by hand: Paeth after Sub, and the first pixels of an interlaced picture."""
    header = struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0)
    lines = bytes([1, 10, 5, 250]) + bytes([4, 1, 2, 3])
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    # row 1: 10, 10+5, 15+250-256; row 2: 10+1; Paeth(11, 15, 10)=15 -> 17; Paeth(17, 9, 15): 11 -> nearest 9 -> 12
    assert decode(png(chunks))[0].tolist() == [[10, 15, 9], [11, 17, 12]]
    header = struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 1)
    lines = bytes([0, 1, 0, 2, 0, 3, 4])  # pass 1: (0, 0); pass 6: (0, 1); pass 7: row 1
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    assert decode(png(chunks))[0].tolist() == [[1, 2], [3, 4]]


# ---------------------------------------------------------------- generated files

HARMLESS = [
    (b"tRNS", b"\0\1"), (b"tRNS", b"a"), (b"tEXt", b"a\0b"), (b"zTXt", b"k\0\0" + zlib.compress(bytes(10**7), 9)),
    (b"iTXt", b"\xff" * 9), (b"iCCP", b"x\0\0" + zlib.compress(bytes(10**7), 9)), (b"iCCP", b"a"), (b"pHYs", b"a"),
    (b"acTL", b"\0\0\0\2\0\0\0\0"), (b"acTL", b"a"), (b"fcTL", b"a"), (b"fdAT", b"a"), (b"eXIf", b"a"), (b"gAMA", b""),
]  # fmt: skip


@st.composite
def pictures(draw, kinds=tuple(KINDS)) -> tuple[list[tuple[bytes, bytes]], np.ndarray, int, int, np.ndarray]:
    """Chunks of a PNG of any kind, and its stored values, depth, color type and palette."""
    color, depth = draw(st.sampled_from(kinds))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(32, 35)), draw(st.integers(32, 41)))
    colors = draw(st.integers(1, 2**depth)) if color == 3 else 2**depth
    pixels = rng.integers(0, colors, (*shape, 3) if color == 2 else shape)
    palette = rng.integers(0, 256, (colors, 3 if draw(st.booleans()) else 1)).astype(np.uint8).repeat(3, 1)[:, :3]
    filters = rng if draw(st.booleans()) else None
    options = {"interlaced": draw(st.booleans()), "filters": filters, "cuts": draw(st.integers(1, 5))}
    chunks = encode(pixels, depth, color, palette.tobytes(), **options)
    for extra in draw(st.lists(st.sampled_from(HARMLESS), max_size=2)):
        chunks.insert(draw(st.integers(1, len(chunks) - 1)), extra)
    return chunks, pixels, depth, color, palette


def write_tree(root: Path, image: bytes, mask: bytes, labels: list[int]) -> Path:
    """A data set whose subject a has this image and mask; the others are plain, b of class 1, c of none."""
    plain, full = (png(encode(np.full((32, 32), code))) for code in labels[:2])
    for split, name, pair in (
        ("train", "a", (image, mask)),
        ("val", "b", (plain, full)),
        ("test", "c", (plain, plain)),
    ):
        for kind, content in zip(("Img", "GT"), pair, strict=True):
            folder = root / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"Subj_{name}slice_1.png").write_bytes(content)
    names = {"background": labels[0]} | {f"class {code}": code for code in labels[1:]}
    (root / "dataset.json").write_text(json.dumps({"labels": names}))
    return root


@settings(max_examples=70, deadline=None)
@given(pictures(), st.binary(max_size=9))
def test_whatever_is_a_slice_is_read_exactly(tmp_path_factory, picture, garbage):
    """Every kind, filter, interlacing and cut, odd parts that hold no pixels, and bytes after the end."""
    chunks, *stored = picture
    expected = as_image(*stored)
    path = tmp_path_factory.mktemp("png") / "slice.png"
    path.write_bytes(png(chunks) + garbage)
    np.testing.assert_array_equal(read_image(path), expected)
    if stored[2] != 2:
        np.testing.assert_array_equal(read_codes(path), stored[0])
        np.testing.assert_array_equal(decode(path.read_bytes())[0], stored[0])
    root = path.parent / "data"
    mask = np.arange(stored[0].shape[0] * stored[0].shape[1]).reshape(stored[0].shape[:2]) % 256
    write_tree(root, png(chunks), png(encode(mask)), list(range(256)))
    if len(expected) > 1:  # the plain pair of the other subjects has one channel
        with pytest.raises(InputError, match="channels"):
            open_data(root)
        return
    image, target = open_data(root).dataset("train")[0]
    np.testing.assert_array_equal(image.numpy(), expected)
    np.testing.assert_array_equal(target.numpy(), mask)


@st.composite
def damaged(draw) -> bytes:
    """A grey picture of 8 bits, spoiled: anywhere, or within its parts, whose checksums are then right again."""
    chunks = draw(pictures(kinds=((0, 8),)))[0]
    kind = draw(
        st.sampled_from(["random", "flip", "cut", "drop", "insert", "change", "resize", "order", "twice", "alien"])
    )
    content = bytearray(png(chunks))
    place = draw(st.integers(0, len(content) - 1))
    if kind == "random":
        return draw(st.sampled_from([b"", SIGNATURE, bytes(content[:33])])) + draw(st.binary(max_size=200))
    if kind == "flip":
        for bit in draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)):
            content[bit // 8] ^= 1 << bit % 8
    elif kind == "cut":
        del content[place:]
    elif kind == "drop":
        del content[place : place + draw(st.integers(1, 40))]
    elif kind == "insert":
        content[place:place] = draw(st.binary(min_size=1, max_size=20))
    if kind in ("flip", "cut", "drop", "insert"):
        return bytes(content)
    k = draw(st.integers(0, len(chunks) - 1))
    name, data = chunks[k]
    if kind == "change" and data:
        data = bytearray(data)
        data[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
        chunks[k] = (name, bytes(data))
    elif kind == "resize":  # rows that are missing or too many, in a stream that is whole
        lines = zlib.decompress(b"".join(data for name, data in chunks if name == b"IDAT"))
        change = draw(st.integers(-80, 80))
        lines = lines[:change] if change < 0 else lines + bytes(change)
        chunks = [chunks[0], (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    elif kind == "order":
        chunks = draw(st.permutations(chunks))
    elif kind == "twice":
        other = struct.pack(">IIBBBBB", draw(st.integers(1, 99)), 32, 8, 0, 0, 0, 0)
        chunks.insert(draw(st.integers(0, len(chunks))), draw(st.sampled_from([chunks[k], (b"IHDR", other)])))
    elif kind == "alien":
        chunks[k] = (draw(st.binary(min_size=4, max_size=4)), data)
    return png(chunks)


@settings(max_examples=200, deadline=None)
@given(damaged(), st.booleans())
def test_damage_is_noticed_or_harmless(tmp_path_factory, content, in_mask):
    """What the loader takes is what our own strict reader reads; all else is one line with the file and what to do."""
    plain = png(encode(np.zeros((32, 32), int)))
    root = tmp_path_factory.mktemp("data")
    try:
        stored = decode(content)
    except (ValueError, IndexError, zlib.error):
        stored = None
    if stored is not None:
        plain = png(encode(np.zeros(stored[0].shape[:2], int)))
    write_tree(root, *((plain, content) if in_mask else (content, plain)), labels=list(range(256)))
    try:
        image, target = open_data(root).dataset("train")[0]
    except InputError as error:
        assert_clear(error, str(root / "train" / ("GT" if in_mask else "Img") / "Subj_aslice_1.png"))
        return
    assert stored is not None, "the loader took a file that is damaged"
    if in_mask:
        np.testing.assert_array_equal(target.numpy(), stored[0])
    else:
        np.testing.assert_array_equal(image.numpy(), as_image(*stored))


# ---------------------------------------------------------------- generated names

ASCII_DIGITS = "0123456789"
WORD = ASCII_DIGITS + "_-abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Arabic digits, superscripts, a line break, an escape, a right-to-left mark, a byte that is no text, globs, quotes.
odd_text = st.text(
    st.sampled_from([*"aB7_-", "٣", "²", "é", "\n", "\x1b", "\u202e", "\udcff", " ", ".", "*", "[", "'"])
)
subject_names = st.one_of(st.sampled_from(["1", "01", "a", "slice_1", "-", "Subj_1"]), odd_text)
numbers = st.one_of(
    st.sampled_from(["1", "2", "01", "-1", "-0", "0", "٣", "²", "", "--1", "+1", "1.5", "9" * 20, "9" * 120]),
    st.integers(-20, 20).map(str),
)
endings = st.sampled_from([".png", ".png", ".png", ".png", ".PNG", ".png.png", ".jpg", ".png\n", ""])
file_names = st.builds("Subj_{}slice_{}{}".format, subject_names, numbers, endings)


def slice_of(name: str) -> tuple[str, int] | None:
    """Subject and number by the README, without a regular expression."""
    if not name.startswith("Subj_") or not name.endswith(".png"):
        return None
    subject, found, number = name[5:-4].rpartition("slice_")
    digits = number.removeprefix("-")
    if not (found and subject and digits and set(subject) <= set(WORD) and set(digits) <= set(ASCII_DIGITS)):
        return None
    value = 0
    for digit in digits:
        value = 10 * value + ASCII_DIGITS.index(digit)
    return subject, -value if number.startswith("-") else value


@settings(max_examples=120, deadline=None)
@given(st.lists(file_names, min_size=1, max_size=6, unique=True), st.data())
def test_pairs_are_of_one_subject_and_number_whatever_the_names(tmp_path_factory, names, data):
    """Image and mask of a slice hold one value of its own, so that any other pair would show."""
    root = tmp_path_factory.mktemp("data")
    write_tree(root, b"", b"", list(range(256)))
    keys = {name: slice_of(name) for name in names}
    values = {key: 7 + k for k, key in enumerate(dict.fromkeys(key for key in keys.values() if key))}
    for kind in ("Img", "GT"):
        folder = root / "train" / kind
        (folder / "Subj_aslice_1.png").unlink()
        for name in data.draw(st.permutations(names)):
            (folder / name).write_bytes(png(encode(np.full((32, 32), values.get(keys[name], 0)))))
    found = [key for key in keys.values() if key]
    spans = [abs(m - n) for s, m in found for t, n in found if s == t]
    bad = not found or len(set(found)) < len(found) or max(spans) >= 10_000 or {s for s, _ in found} & {"b", "c"}
    try:
        opened = open_data(root)
    except InputError as error:
        assert bad
        assert_clear(error, printable(str(root / "train")))
        return
    assert not bad
    assert all(note.isprintable() for note in opened.notes)
    train = opened.dataset("train")
    assert sorted((item.subject, item.number) for item in train.slices) == sorted(found)
    for item, (image, target) in zip(train.slices, train, strict=True):
        assert (
            set((image * 255).unique().tolist()) == set(target.unique().tolist()) == {values[item.subject, item.number]}
        )


@given(st.lists(st.text("019a-", max_size=5), max_size=6))
def test_natural_order_is_that_of_numbers(texts):
    def reference(text: str) -> list[tuple[int, int | str]]:
        return [(0, int(part)) if part.isdigit() else (1, part) for part in re.findall(r"\d+|\D+", text)]

    assert [reference(text) for text in sorted(texts, key=natural)] == sorted(map(reference, texts))
    assert natural("9" * 5000) < natural("1" + "0" * 5000)
    assert natural("a²٣")


# ---------------------------------------------------------------- generated dataset.json


class Raw(str):
    """JSON text that json.dumps would not write."""


plain_values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.floats(), st.text(max_size=4), st.sampled_from(["LPS", "RAI"]),
    st.sampled_from([10**9, 10**400, -(10**30), 1e300, 1e-320, Raw("1e999"), Raw("9" * 5000), Raw("[" * 5000)]),
    st.just(Raw("[" * 50_000 + "]" * 50_000)),
)  # fmt: skip
values = st.recursive(
    plain_values,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
) | st.lists(st.one_of(st.integers(-2, 2), st.floats(-3, 3)), min_size=2, max_size=9)
DESCRIBED = {
    "labels": {"background": 0, "liver": 63},
    "values": {"background": 0, "liver": 7},
    "preparation": Preparation(size=32, spacing=(1.5, 1.5), window=(40.0, 400.0)).to_dict(),
    "subjects": {
        "1": {
            "spacing": [1.5, 1.5, 4.0],
            "origin": [1.0, 2.0, 3.0],
            "direction": [1, 0, 0, 0, 0.6, -0.8, 0, 0.8, 0.6],
            "original": {"size": [36, 30, 2], "spacing": [1.5, 1.5, 4.0], "origin": [-1.0, 2.0, 3.0]},
            "orientation": "RAI",
        }
    },
}


def places(value: object, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def to_json(value: object) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {to_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_json, value)) + "]"
    return json.dumps(value)


def replace_at(value, path: tuple, new: object):
    if not path:
        return new
    if isinstance(value, dict):
        return {key: replace_at(item, path[1:], new) if key == path[0] else item for key, item in value.items()}
    return [replace_at(item, path[1:], new) if key == path[0] else item for key, item in enumerate(value)]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(places(DESCRIBED)), values)
def test_what_dataset_json_says_is_refused_or_can_be_used(tmp_path_factory, place, value):
    folder = tmp_path_factory.mktemp("json")
    path = folder / "dataset.json"
    path.write_text(to_json(replace_at(DESCRIBED, place, value)))
    try:
        described = read_description(path)
    except InputError as error:
        assert_clear(error, str(path))
        assert len(str(error)) < 1000 + len(str(path))
        return
    volume = np.ones((2, 32, 32), np.uint8)
    for geometry in described["subjects"].values():
        write_nifti(folder / "volume.nii.gz", volume, geometry)
        assert sitk.ReadImage(folder / "volume.nii.gz").GetSize() == to_scan(volume, geometry).GetSize()
    if described["preparation"] is not None:
        scan = sitk.GetImageFromArray(np.zeros((2, 40, 40), np.float32))
        preparation = Preparation.from_dict(described["preparation"])
        assert preparation.apply([scan]).images.ndim == 4
    assert np.array(described.get("values", (0,)), np.uint16).tolist() == list(described.get("values", (0,)))
    names = described["labels"].names if "labels" in described else ()
    assert all(name.isprintable() and name.encode() for name in names)


def test_the_description_itself_is_taken(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps(DESCRIBED))
    described = read_description(tmp_path / "dataset.json")
    assert described["values"] == (0, 7)
    assert described["subjects"] == DESCRIBED["subjects"]


# ---------------------------------------------------------------- named files

GREY = np.arange(32 * 32).reshape(32, 32) % 256
HEADER = struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0)


def header(*fields: int) -> bytes:
    return png([(b"IHDR", struct.pack(">IIBBBBB", *fields)), *encode(GREY)[1:]])


def bomb() -> bytes:
    """A hundred million pixels in a tenth of a megabyte."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(10**6)) for _ in range(100)) + packer.flush()
    return png([(b"IHDR", struct.pack(">IIBBBBB", 10000, 10000, 8, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")])


def hidden_bomb() -> bytes:
    """The same behind the header of a small slice."""
    content = bomb()
    return png(encode(GREY)[:1]) + content[33:]


def recolored() -> bytes:
    """A palette with a byte that changed on the disk: the picture is whole, a color is not what was saved."""
    content = png(encode(GREY, 8, 3, bytes(range(256)) * 3))
    return content[:50] + bytes([content[50] ^ 1]) + content[51:]


FILES = {
    "bomb": (bomb, f"a slice has 1 to {MAX_PIXELS:,}"),
    "bomb behind a small header": (hidden_bomb, "more than its 32 rows"),
    "just too large": (lambda: header(8192, 4097, 8, 0, 0, 0, 0), "a slice has"),
    "largest size a header can say": (lambda: header(2**32 - 1, 2**32 - 1, 8, 0, 0, 0, 0), "a slice has"),
    "no columns": (lambda: header(0, 32, 8, 0, 0, 0, 0), "a slice has 1"),
    "no rows": (lambda: header(32, 0, 8, 0, 0, 0, 0), "a slice has 1"),
    "header says more rows": (lambda: header(32, 33, 8, 0, 0, 0, 0), "less than its 33 rows"),
    "header says fewer rows": (lambda: header(32, 31, 8, 0, 0, 0, 0), "more than its 31 rows"),
    "header says another width": (lambda: header(40, 32, 8, 0, 0, 0, 0), "less than"),
    "header says another depth": (lambda: header(32, 32, 16, 0, 0, 0, 0), "less than"),
    "depth that grey has not": (lambda: header(32, 32, 3, 0, 0, 0, 0), "its header holds"),
    "color type that PNG has not": (lambda: header(32, 32, 8, 5, 0, 0, 0), "its header holds"),
    "interlacing that PNG has not": (lambda: header(32, 32, 8, 0, 0, 0, 2), "its header holds"),
    "16-bit RGB": (lambda: header(32, 32, 16, 2, 0, 0, 0), "16-bit RGB cannot be read without loss"),
    "grey with alpha": (lambda: header(32, 32, 8, 4, 0, 0, 0), "alpha channel"),
    "RGB with alpha": (lambda: header(32, 32, 8, 6, 0, 0, 0), "alpha channel"),
    "text before the header": (lambda: png([(b"tEXt", b"a\0b"), *encode(GREY)]), "does not begin as one"),
    "two headers": (lambda: png([(b"IHDR", HEADER), *encode(GREY)]), "IHDR twice"),
    "no pixels": (lambda: png([(b"IHDR", HEADER), (b"IEND", b"")]), "less than"),
    "no end": (lambda: png(encode(GREY)[:-1]), "ends early"),
    "no palette": (lambda: header(32, 32, 8, 3, 0, 0, 0), "palette of 0"),
    "palette too short": (lambda: png(encode(GREY, 8, 3, bytes(3 * 200))), "color 255 of a palette of 200"),
    "palette of a third of a color": (lambda: png(encode(GREY, 8, 3, bytes(700))), "not a readable PNG"),
    "a part that cannot be left out": (lambda: png([(b"IHDR", HEADER), (b"ABCD", b"")]), "unknown part"),
    "Apple's variety": (lambda: png([(b"CgBI", b"\0\0\0\0"), *encode(GREY)]), "does not begin as one"),
    "palette with a wrong checksum": (recolored, "the part from byte 33 to 813 is damaged"),
    "checksum alone": (lambda: png(encode(GREY))[:-1] + b"\0", "is damaged"),
    "JPEG": (lambda: b"\xff\xd8\xff\xe0" + bytes(99), "does not begin as one"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_named_files(tmp_path, case, capfd):
    make, expected = FILES[case]
    path = tmp_path / "Subj_1slice_1.png"
    path.write_bytes(make())
    tracemalloc.start()
    for read in (read_image, read_codes):
        with pytest.raises(InputError) as caught:
            read(path)
        assert_clear(caught.value, str(path), expected)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20  # a bomb holds 95 MiB
    tracemalloc.stop()
    assert capfd.readouterr() == ("", "")


def test_huge_files_are_refused_unread(tmp_path):
    path = tmp_path / "Subj_1slice_1.png"
    path.write_bytes(png(encode(GREY)))
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert_clear(caught.value, str(path), f"at most {MAX_BYTES:,}")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # addresses of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


PLACES = {
    "folder": (Path.mkdir, "is a folder, pipe or device"),
    "pipe": (fifo, "is a folder, pipe or device"),
    "socket": (unix_socket, "is a folder, pipe or device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a folder, pipe or device"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read"),
    "link to nothing": (lambda path: path.symlink_to("nowhere.png"), "no such file"),
}


@pytest.mark.parametrize("case", PLACES)
@pytest.mark.parametrize("kind", ["Img", "GT"])
def test_things_that_are_no_files(tmp_path, case, kind):
    make, expected = PLACES[case]
    plain = png(encode(GREY))
    path = write_tree(tmp_path, plain, plain, list(range(256))) / "train" / kind / "Subj_aslice_1.png"
    path.unlink()
    make(path)
    with pytest.raises(InputError) as caught:
        open_data(tmp_path)
    assert_clear(caught.value, str(path), expected)
    path.unlink() if not path.is_dir() else path.rmdir()
    path.with_name("elsewhere").write_bytes(plain)
    path.symlink_to("elsewhere")  # a good link is as good as the file
    assert len(open_data(tmp_path).dataset("train")) == 1


@pytest.mark.parametrize("case", PLACES)
def test_dataset_json_that_is_no_file(tmp_path, case):
    plain = png(encode(GREY))
    path = write_tree(tmp_path, plain, plain, list(range(256))) / "dataset.json"
    path.unlink()
    PLACES[case][0](path)
    with pytest.raises(InputError) as caught:
        open_data(tmp_path)
    assert_clear(caught.value, str(path))


def test_numbers_that_make_no_volume_are_refused_before_training(tmp_path):
    plain = png(encode(GREY))
    root = write_tree(tmp_path, plain, plain, list(range(256)))
    for kind in ("Img", "GT"):
        (root / "val" / kind / f"Subj_bslice_{'9' * 20}.png").write_bytes(png(encode(np.zeros((32, 32), int))))
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_clear(caught.value, f"Subj_bslice_{'9' * 20}.png", "number the slices one by one")


# ---------------------------------------------------------------- files that change during training


def small(rows: int, columns: int) -> bytes:
    return png(encode(np.zeros((rows, columns), int)))


CHANGES = {
    "image vanishes": (lambda image, mask: image.unlink(), "Img", "no such file"),
    "mask vanishes": (lambda image, mask: mask.unlink(), "GT", "no such file"),
    "image is cut": (lambda image, mask: os.truncate(image, 60), "Img", "not a readable PNG"),
    "image of another size": (lambda image, mask: image.write_bytes(small(40, 32)), "Img", "40 x 32"),
    "pair of another size": (
        lambda image, mask: [path.write_bytes(small(40, 32)) for path in (image, mask)], "Img", "was 1 channels of 32",
    ),
    "image in colors": (
        lambda image, mask: image.write_bytes(png(encode(np.stack([GREY] * 3, 2), 8, 2))), "Img", "is 3 channels",
    ),
    "unknown mask value": (lambda image, mask: mask.write_bytes(png(encode(np.full((32, 32), 9)))), "GT", "value 9"),
    "pipe": (lambda image, mask: [image.unlink(), os.mkfifo(image)], "Img", "pipe"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_changes_during_training_are_one_line_from_any_process(tmp_path, case):
    """The same line without loader processes and with two, and from the folder whose name has a line break."""
    change, kind, expected = CHANGES[case]
    plain = png(encode(np.zeros((32, 32), int)))
    root = write_tree(tmp_path / "a\nutils.InputError: b", plain, plain, [0, 63])
    data = open_data(root)
    paths = [root / "train" / kind / "Subj_aslice_1.png" for kind in ("Img", "GT")]
    change(*paths)
    messages = []
    for workers in (0, 2):
        loader = DataLoader(data.dataset("train"), 2, num_workers=workers, collate_fn=collate)
        with pytest.raises(InputError) as caught:
            list(read_batches(loader))
        assert_clear(caught.value, f"train/{kind}/Subj_aslice_1.png", expected)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(printable(str(root)))


def start_training(data: Path, out: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "main.py", "--data", str(data), "--out", str(out), "--workers", str(workers)]
    command += ["--backbone", "resnet18", "--steps", "1", "--device", "cpu", "--amp", "off", "--batch_size", "2"]
    pipe, threads = subprocess.PIPE, {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, encoding="utf-8", env=os.environ | threads)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 180
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert path.exists()


def test_main_ends_in_one_line_when_files_vanish_or_loader_processes_are_killed(make_data, tmp_path):
    """Real processes that have begun to train: their images vanish, or their loader processes are killed."""
    root = make_data(numbers=tuple(range(1, 13)))
    whole = shutil.copytree(root, tmp_path / "whole")
    runs = {name: tmp_path / "runs" / name for name in ("alone", "two", "killed")}
    training = {
        "alone": start_training(root, runs["alone"], 0),
        "two": start_training(root, runs["two"], 2),
        "killed": start_training(whole, runs["killed"], 2),
    }
    try:
        for name in ("alone", "two"):
            wait_for(runs[name] / "config.json", training[name])  # after the data has been checked
        for path in (root / "train" / "Img").iterdir():
            path.unlink()
        for name in ("alone", "two"):
            stderr = training[name].communicate(timeout=180)[1]
            lines = stderr.splitlines()
            assert training[name].returncode == 2, stderr
            gone = rf"error: {re.escape(str(root))}/train/Img/Subj_1slice_\d+\.png: no such file; put it back, .*"
            assert len(lines) == 1, stderr
            assert re.fullmatch(gone, lines[0])
            assert not list(runs[name].glob(".[0-9]*"))  # nothing half-written

        killed = training["killed"]
        wait_for(runs["killed"] / "config.json", killed)
        children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children")
        end = time.monotonic() + 120
        while killed.poll() is None and time.monotonic() < end:
            for child in children.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
            time.sleep(0.01)
        stderr = killed.communicate(timeout=60)[1]
        assert killed.returncode == 1, stderr
        assert len(stderr.splitlines()) == 1, stderr
        assert re.fullmatch(r"error: DataLoader worker .*use --workers 0.*", stderr.strip())
    finally:
        for process in training.values():
            process.kill()
            process.communicate()


def test_names_that_are_no_text_can_be_printed(capsys):
    with pytest.raises(SystemExit) as caught, user_errors():
        raise InputError(f"{Path(os.fsdecode(b'a' + bytes([255]) + b'b'))}\n: wrong\x1b[2J; remove it")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: a\\udcffb\\n: wrong\\x1b[2J; remove it\n"


# ---------------------------------------------------------------- images without contrast


def test_training_on_constant_images_stays_finite(tmp_path):
    """Slices alone in their batch, as small as slices may be, with one value each in image and mask."""
    blank = np.zeros((32, 32), int)
    root = write_tree(tmp_path, png(encode(blank + 255)), png(encode(blank)), [0, 63])
    for kind, value in (("Img", 0), ("GT", 63)):
        (root / "train" / kind / "Subj_aslice_2.png").write_bytes(png(encode(blank + value)))
    model = build_model(Config(backbone="resnet18", steps=1, classes=2))
    dataset = open_data(root).dataset("train")
    loader = DataLoader(dataset, batch_sampler=ShuffledBatches(dataset, 1, seed=0))
    optimization, device = Optimization(model, Config(), len(loader)), torch.device("cpu")
    for number in range(2):
        epoch = Epoch(number)
        train_one_epoch(model, loader, GuidedLoss(), optimization, device, False, epoch, 0, StopSignal(), "train")
        assert all(map(np.isfinite, epoch.losses().values()))
    assert all(weight.isfinite().all() for weight in model.state_dict().values())


@pytest.mark.parametrize(
    "options", [{}, {"normalize": "volume"}, {"bits": 16}, {"window": (5.0, 10.0)}, {"spacing": (2.0, 2.0)}]
)
@pytest.mark.parametrize("value", [0.0, 7.5, -1e30, 3e38])
def test_constant_scans_become_constant_slices(options, value):
    scan = sitk.GetImageFromArray(np.full((2, 33, 34), value, np.float32))
    with np.errstate(all="raise"):
        images = Preparation(**options).apply([scan]).images
    assert (images == images.flat[0]).all()
    if "window" not in options:
        assert not images.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scans_that_are_not_finite_are_refused(value):
    array = np.zeros((2, 33, 34), np.float32)
    array[1, 2, 3] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        Preparation().apply([sitk.GetImageFromArray(array)])


# ---------------------------------------------------------------- what sources say cannot write elsewhere


class OneScan:
    """A source whose subjects are called as the test wants."""

    def read(self, subject: str) -> Case:
        volume = sitk.GetImageFromArray(np.arange(2 * 32 * 32).reshape(2, 32, 32).astype(np.uint16) % 2)
        return Case([volume], volume, ["scan.nii.gz"])


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("subject", ["../../x", "/tmp/x", "..", "a/b", "a b", "a\nb", "", "²", "\udcff"])
def test_subjects_cannot_leave_the_output_folder(tmp_path, subject):
    split = {"train": [subject], "val": ["b"], "test": ["c"]}
    with pytest.raises(InputError) as caught:
        write_data(tmp_path / "deep" / "out", OneScan(), split, Preparation(), {0: "background", 1: "a"}, {})
    assert_clear(caught.value, "letters, digits, underscores and dashes")
    assert not tree(tmp_path)
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(InputError) as caught:
        read_split(tmp_path / "split.json")
    assert_clear(caught.value, "split.json", "letters, digits")


@pytest.mark.parametrize("others", [{1: "a", 2: "a"}, {1: "a\nb"}, {1: ""}, {10**9: "a"}, {-1: "a"}, {1: "background"}])
def test_classes_that_a_data_set_cannot_hold(tmp_path, others):
    classes = {0: "background"} | others
    split = {"train": ["a"], "val": ["b"], "test": ["c"]}
    with pytest.raises(InputError) as caught:
        write_data(tmp_path / "out", OneScan(), split, Preparation(), classes, {})
    assert_clear(caught.value, "label value")
    assert not tree(tmp_path)


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_linked_outputs_are_left_alone(tmp_path, target):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(target)
    split = {"train": ["a"], "val": ["b"], "test": ["c"]}
    with pytest.raises(InputError) as caught:
        write_data(tmp_path / "out", OneScan(), split, Preparation(), {0: "background", 1: "a"}, {})
    assert_clear(caught.value, "out: exists already")
    assert tree(tmp_path) == {"elsewhere", "out"}


def test_files_are_not_written_through_links(tmp_path):
    (tmp_path / "outside.nii.gz").write_bytes(b"kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii.gz").symlink_to("../outside.nii.gz")
    write_nifti(tmp_path / "out" / "a.nii.gz", np.zeros((2, 3, 4), np.uint8), {})
    assert (tmp_path / "outside.nii.gz").read_bytes() == b"kept"
    assert not (tmp_path / "out" / "a.nii.gz").is_symlink()


@pytest.mark.parametrize(
    "pattern", ["/etc/{subject}", "../{subject}.nii.gz", "a/../../{subject}", "{subject}{subject}"]
)
def test_patterns_stay_below_the_source(tmp_path, pattern):
    for patterns in ([pattern], "label_{subject}.nii.gz"), (["image_{subject}.nii.gz"], pattern):
        with pytest.raises(InputError) as caught:
            find_pairs(tmp_path, *patterns)
        assert_clear(caught.value, pattern)


def test_two_cases_never_become_one_subject(tmp_path):
    for name in ("a.b", "a-b"):
        (tmp_path / "msd" / "labelsTr").mkdir(parents=True, exist_ok=True)
        (tmp_path / "msd" / "labelsTr" / f"{name}.nii.gz").touch()
    with pytest.raises(InputError) as caught:
        find_msd(tmp_path / "msd")
    assert_clear(caught.value, "subject a-b", "rename")
    for grade in ("HGG", "LGG"):
        (tmp_path / "brats" / grade / "p1").mkdir(parents=True)
        (tmp_path / "brats" / grade / "p1" / "p1_seg.nii.gz").touch()
    with pytest.raises(InputError) as caught:
        find_brats(tmp_path / "brats")
    assert_clear(caught.value, "subject p1", "rename")


@pytest.mark.parametrize("labels", [
    {"background": 0, "x": -1}, {"background": 0, "x": 5.7}, {"background": 0, "x": Raw("1e999")},
    {"background": 0, "x": [1, 2]}, {"0": "background", "²": "x"}, {"background": 0, "x": None},
    {"background": 0, "x": True},
    {"a": 1, "b": 1},
    {"0": "background", "1" * 30: "x"}, {"0": "background", "00": "x"},
])  # fmt: skip
def test_labels_of_other_data_sets_are_whole_numbers(tmp_path, labels):
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "labelsTr" / "a.nii.gz").touch()
    (tmp_path / "dataset.json").write_text(to_json({"labels": labels}))
    with pytest.raises(InputError) as caught:
        find_msd(tmp_path)
    assert_clear(caught.value, str(tmp_path / "dataset.json"), "labels must be single numbers")


@pytest.mark.parametrize("name", [b"..", b"a b", b"a\nb", b"\xff", b"*", "٣".encode()])
def test_odd_names_of_scans_are_refused_before_anything_is_written(tmp_path, name):
    source = tmp_path / "scans"
    source.mkdir()
    scan = sitk.GetImageFromArray(np.arange(2 * 32 * 32).reshape(2, 32, 32).astype(np.uint16) % 2)
    for subject in (name, b"1", b"2"):
        for kind in (b"image_", b"label_"):
            sitk.WriteImage(scan, tmp_path / "scan.nii.gz")
            (tmp_path / "scan.nii.gz").rename(source / os.fsdecode(kind + subject + b".nii.gz"))
    before = tree(tmp_path)
    with pytest.raises(InputError) as caught:
        prepare.main(["nifti", str(source), "--out", str(tmp_path / "out"), "--split", "1,1,1"])
    assert_clear(caught.value)
    assert tree(tmp_path) == before


def test_volumes_that_say_too_much(tmp_path):
    """A header of 32,000 voxels a side, over a file of a few bytes."""
    path = tmp_path / "scan.nii"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)), path)
    content = bytearray(path.read_bytes())
    content[40:48] = struct.pack("<4h", 3, 32000, 32000, 32000)
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_volume(path)
    assert_clear(caught.value, str(path), "voxels, of at most")
