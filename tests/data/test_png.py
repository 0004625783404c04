"""PNG slices: every kind is read without loss, damage is noticed, and no file takes much memory."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.folder import open_data
from data.png import MAX_BYTES, MAX_PIXELS, read_grey, read_image, read_mask
from tests.helpers.errors import assert_clear
from tests.helpers.png import GREY, KINDS, SIGNATURE, Chunks, as_image, decode, encode, flat, png, save_png, write_tree
from utils import InputError

# ---------------------------------------------------------------- files that Pillow writes


def test_bit_depths_are_read_without_loss(tmp_path):
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 2**16, (5, 7), np.uint16)
    path = save_png(tmp_path / "wide.png", wide)
    np.testing.assert_allclose(read_image(path)[0], wide / np.float32(65535), rtol=1e-7)
    np.testing.assert_array_equal(read_mask(path).codes, wide)

    rgb = rng.integers(0, 256, (5, 7, 3), np.uint8)
    path = save_png(tmp_path / "rgb.png", rgb)
    np.testing.assert_array_equal(read_image(path) * 255, rgb.transpose(2, 0, 1).astype(np.float32))
    with pytest.raises(InputError, match=r"rgb\.png.*colors"):
        read_grey(path)
    np.testing.assert_array_equal(read_mask(path).codes, rgb.astype(int) @ [65536, 256, 1])
    np.testing.assert_array_equal(read_grey(save_png(tmp_path / "g.png", np.repeat(rgb[..., :1], 3, 2))), rgb[..., 0])

    bits = rng.integers(0, 2, (5, 7)).astype(bool)
    path = save_png(tmp_path / "bits.png", bits)
    np.testing.assert_array_equal(read_mask(path).codes, bits)
    np.testing.assert_array_equal(read_image(path)[0], bits)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_give_indices_as_masks_and_colors_as_images(tmp_path, depth):
    indices = np.random.default_rng(depth).integers(0, min(2**depth, 9), (5, 7), np.uint8)
    picture = Image.fromarray(indices, "P")
    colors = [(3 * k % 256, 5 * k % 256, 255 - k) for k in range(2**depth)]
    picture.putpalette([value for color in colors for value in color])
    picture.save(tmp_path / "palette.png", bits=depth)
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png").codes, indices)
    expected = np.array(colors)[indices].transpose(2, 0, 1)
    np.testing.assert_allclose(read_image(tmp_path / "palette.png") * 255, expected, atol=1e-4)

    picture.putpalette([value for k in range(2**depth) for value in (9 * k % 256,) * 3])
    picture.save(tmp_path / "grey.png", bits=depth)
    np.testing.assert_allclose(read_image(tmp_path / "grey.png") * 255, [9 * indices.astype(int) % 256], atol=1e-4)
    np.testing.assert_array_equal(read_grey(tmp_path / "grey.png"), 9 * indices.astype(int) % 256)


@pytest.mark.parametrize("depth", [2, 4])
def test_low_depth_grey_masks_keep_their_indices(tmp_path, depth):
    """Pillow writes no grey PNG of 2 or 4 bits."""
    indices = np.arange(8).reshape(2, 4) % 2**depth
    path = tmp_path / "low.png"
    path.write_bytes(png(encode(indices, depth)))
    np.testing.assert_array_equal(read_mask(path).codes, indices)
    np.testing.assert_allclose(read_image(path)[0], indices / (2**depth - 1), rtol=1e-6)


def test_images_with_alpha_are_refused(tmp_path):
    path = save_png(tmp_path / "alpha.png", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(InputError, match=r"alpha\.png.*alpha channel"):
        read_image(path)


# ---------------------------------------------------------------- generated files


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


HARMLESS = [
    (b"tRNS", b"\0\1"), (b"tRNS", b"a"), (b"tEXt", b"a\0b"), (b"zTXt", b"k\0\0" + zlib.compress(bytes(10**7), 9)),
    (b"iTXt", b"\xff" * 9), (b"iCCP", b"x\0\0" + zlib.compress(bytes(10**7), 9)), (b"iCCP", b"a"), (b"pHYs", b"a"),
    (b"acTL", b"\0\0\0\2\0\0\0\0"), (b"acTL", b"a"), (b"fcTL", b"a"), (b"fdAT", b"a"), (b"eXIf", b"a"), (b"gAMA", b""),
]  # fmt: skip


@st.composite
def pictures(draw, kinds=KINDS) -> tuple[Chunks, np.ndarray, int, int, np.ndarray]:
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all examples; each replaces the files of the one before."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.slow
@settings(max_examples=70, deadline=None)
@given(pictures(), st.binary(max_size=9))
def test_whatever_is_a_slice_is_read_exactly(folder, picture, garbage):
    """Every kind, filter, interlacing and cut, odd parts that hold no pixels, and bytes after the end."""
    chunks, *stored = picture
    expected = as_image(*stored)
    path = folder / "slice.png"
    path.write_bytes(png(chunks) + garbage)
    np.testing.assert_array_equal(read_image(path), expected)
    if stored[2] != 2:
        np.testing.assert_array_equal(read_mask(path).codes, stored[0])
        np.testing.assert_array_equal(decode(path.read_bytes())[0], stored[0])
    root = folder / "data"
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
    anywhere, inside = ["flip", "cut", "drop", "insert"], ["change", "resize", "order", "twice", "alien"]
    kind = draw(st.sampled_from(["random", *anywhere, *inside]))
    content = png(chunks)
    if kind == "random":
        return draw(st.sampled_from([b"", SIGNATURE, content[:33]])) + draw(st.binary(max_size=200))
    return draw(spoiled_anywhere(content, kind)) if kind in anywhere else png(draw(spoiled_inside(chunks, kind)))


@st.composite
def spoiled_anywhere(draw, content: bytes, kind: str) -> bytes:
    """The bytes of a file with some turned, cut off, left out or put in."""
    spoiled = bytearray(content)
    start = draw(st.integers(0, len(spoiled) - 1))
    if kind == "flip":
        for bit in draw(st.lists(st.integers(0, 8 * len(spoiled) - 1), min_size=1, max_size=4)):
            spoiled[bit // 8] ^= 1 << bit % 8
    elif kind == "cut":
        del spoiled[start:]
    elif kind == "drop":
        del spoiled[start : start + draw(st.integers(1, 40))]
    elif kind == "insert":
        spoiled[start:start] = draw(st.binary(min_size=1, max_size=20))
    return bytes(spoiled)


@st.composite
def spoiled_inside(draw, chunks: Chunks, kind: str) -> Chunks:
    """The chunks of a file, one of them changed, moved, doubled or renamed."""
    k = draw(st.integers(0, len(chunks) - 1))
    name, data = chunks[k]
    if kind == "change" and data:
        changed = bytearray(data)
        changed[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
        chunks[k] = (name, bytes(changed))
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
    return chunks


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(damaged(), st.booleans())
def test_damage_is_noticed_or_harmless(folder, content, in_mask):
    """What the loader takes is what our own strict reader reads; all else is one line with the file and what to do."""
    try:
        stored = decode(content)
    except (ValueError, IndexError, zlib.error):
        stored = None
    shape = (32, 32) if stored is None else stored[0].shape[:2]
    plain = flat(0, *shape)
    root = write_tree(folder / "data", *((plain, content) if in_mask else (content, plain)), codes=list(range(256)))
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


# ---------------------------------------------------------------- files that are refused

HEADER = struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0)


def header(*fields: int) -> bytes:
    """A slice of 32 x 32 behind another header."""
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
    for read in (read_image, read_mask):
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
