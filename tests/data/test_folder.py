"""The layout on disk: what is read, what is refused and how, and the augmentation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.augment import Augmentation
from data.folder import open_data
from data.png import read_codes, read_image
from data.slices import Labels, Slice, SliceDataset, SubjectBatches, collate
from utils import InputError

SAMPLE_PAIR = Path(__file__).parents[2] / "shared" / "data" / "chaos_sample_pair"


def test_slices_are_paired_by_name_and_sorted_by_number(make_data):
    root = make_data({"train": ["10", "2", "pat-a_1"], "val": ["7"], "test": ["8"]}, numbers=(10, 9, 100, -3))
    (root / "train" / "Img" / ".DS_Store").write_bytes(b"hidden")
    (root / "train" / "GT" / "Thumbs.db").write_bytes(b"foreign")
    (root / "train" / "GT" / "notes.png").write_bytes(b"foreign")
    data = open_data(root)
    train = data.dataset("train")
    assert list(train.subjects()) == ["2", "10", "pat-a_1"]
    assert [item.number for item in train.slices] == [-3, 9, 10, 100] * 3
    assert all(item.mask.name == item.images[0].name for item in train.slices)
    assert any("notes.png" in note for note in data.notes)
    assert sum("slice numbers are missing" in note for note in data.notes) == 5
    assert data.labels.names == ("background", "liver", "right kidney", "left kidney", "spleen")
    image, target = train[1]
    stored = np.asarray(Image.open(root / "train" / "Img" / "Subj_2slice_9.png"))
    codes = np.asarray(Image.open(root / "train" / "GT" / "Subj_2slice_9.png"))
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image[0].numpy() * 255, stored.astype(np.float32))
    assert target.dtype == torch.int64
    np.testing.assert_array_equal(target.numpy() * 63, codes)


def save_png(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    Image.fromarray(pixels, mode).save(path)
    return path


def test_bit_depths_are_read_without_loss(tmp_path):
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 2**16, (5, 7), np.uint16)
    path = save_png(tmp_path / "wide.png", wide)
    np.testing.assert_allclose(read_image(path)[0], wide / np.float32(65535), rtol=1e-7)
    np.testing.assert_array_equal(read_codes(path), wide)

    rgb = rng.integers(0, 256, (5, 7, 3), np.uint8)
    path = save_png(tmp_path / "rgb.png", rgb)
    np.testing.assert_array_equal(read_image(path) * 255, rgb.transpose(2, 0, 1).astype(np.float32))
    with pytest.raises(InputError, match=r"rgb\.png.*colors"):
        read_codes(path)
    np.testing.assert_array_equal(read_codes(save_png(tmp_path / "g.png", np.repeat(rgb[..., :1], 3, 2))), rgb[..., 0])

    bits = rng.integers(0, 2, (5, 7)).astype(bool)
    path = save_png(tmp_path / "bits.png", bits)
    np.testing.assert_array_equal(read_codes(path), bits)
    np.testing.assert_array_equal(read_image(path)[0], bits)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_give_indices_as_masks_and_colors_as_images(tmp_path, depth):
    indices = np.random.default_rng(depth).integers(0, min(2**depth, 9), (5, 7), np.uint8)
    picture = Image.fromarray(indices, "P")
    colors = [(3 * k % 256, 5 * k % 256, 255 - k) for k in range(2**depth)]
    picture.putpalette([value for color in colors for value in color])
    picture.save(tmp_path / "palette.png", bits=depth)
    np.testing.assert_array_equal(read_codes(tmp_path / "palette.png"), indices)
    expected = np.array(colors)[indices].transpose(2, 0, 1)
    np.testing.assert_allclose(read_image(tmp_path / "palette.png") * 255, expected, atol=1e-4)

    picture.putpalette([value for k in range(2**depth) for value in (9 * k % 256,) * 3])
    picture.save(tmp_path / "grey.png", bits=depth)
    np.testing.assert_allclose(read_image(tmp_path / "grey.png") * 255, [9 * indices.astype(int) % 256], atol=1e-4)


@pytest.mark.parametrize("depth", [2, 4])
def test_low_depth_grey_masks_keep_their_indices(tmp_path, depth):
    """Pillow writes no grey PNG of 2 or 4 bits, so this one is put together by hand."""
    import struct
    import zlib

    indices = np.arange(8).reshape(2, 4) % 2**depth
    bits = ["".join(f"{value:0{depth}b}" for value in row) for row in indices]
    lines = b"".join(b"\0" + int(row, 2).to_bytes(len(row) // 8, "big") for row in bits)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 4, 2, depth, 0, 0, 0, 0)
    path = tmp_path / "low.png"
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    np.testing.assert_array_equal(read_codes(path), indices)
    np.testing.assert_allclose(read_image(path)[0], indices / (2**depth - 1), rtol=1e-6)


def test_images_with_alpha_are_refused(tmp_path):
    path = save_png(tmp_path / "alpha.png", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(InputError, match=r"alpha\.png.*alpha channel"):
        read_image(path)


def test_several_channels(make_data):
    root = make_data()
    for split in ("train", "val", "test"):
        shutil.copytree(root / split / "Img", root / split / "Img_2")
        for path in (root / split / "Img_2").iterdir():
            save_png(path, 255 - np.asarray(Image.open(path)))
    data = open_data(root)
    image, _ = data.dataset("val")[0]
    assert data.channels == 2
    torch.testing.assert_close(image[0] + image[1], torch.ones(40, 48))


def write_masks(root: Path, values: list[int]) -> None:
    for path in root.glob("*/GT/*.png"):
        mask = np.zeros((40, 48), np.uint8)
        mask.flat[: len(values)] = values
        save_png(path, mask)


@pytest.mark.parametrize(
    ("values", "names", "codes"),
    [
        ([0, 1, 2], ("background", "class 1", "class 2"), (0, 1, 2)),
        ([0, 255], ("background", "foreground"), (0, 255)),
        ([0, 63], ("background", "liver", "right kidney", "left kidney", "spleen"), (0, 63, 126, 189, 252)),
    ],
)
def test_labels_that_need_no_table(make_data, values, names, codes):
    root = make_data()
    write_masks(root, values)
    assert open_data(root).labels == Labels(names, codes)


def test_table_in_dataset_json(make_data):
    root = make_data()
    write_masks(root, [0, 4, 200])
    described = {"labels": {"background": 0, "b": 200, "a": 4}, "subjects": {"1": {"spacing": [1, 2, 3.5]}}}
    (root / "dataset.json").write_text(json.dumps(described))
    data = open_data(root)
    assert data.labels == Labels(("background", "b", "a"), (0, 200, 4))
    assert data.dataset("train")[0][1].flatten()[:3].tolist() == [0, 2, 1]
    assert data.geometry["1"]["spacing"] == [1, 2, 3.5]


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def describe(root: Path, content: object) -> None:
    (root / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))


IMG, GT = "train/Img/Subj_1slice_1.png", "train/GT/Subj_1slice_1.png"
BAD = {
    "no split folder": (lambda r: remove(r / "val"), ["val", "no such folder"]),
    "no Img": (lambda r: remove(r / "test/Img"), ["test/Img", "no such folder"]),
    "no GT": (lambda r: remove(r / "test/GT"), ["test/GT", "no such folder"]),
    "empty split": (lambda r: [remove(p) for p in r.glob("val/*/*")], ["val", "holds no slices"]),
    "image without mask": (lambda r: remove(r / GT), [IMG, "has no mask"]),
    "mask without image": (lambda r: remove(r / IMG), [GT, "has no image"]),
    "second channel lacks one": (lambda r: (r / "train/Img_2").mkdir(), [GT, "has no image", "Img_2"]),
    "channel left out": (lambda r: (r / "train/Img_3").mkdir(), ["train/Img_2", "is missing", "Img_3"]),
    "channels differ": (lambda r: save_png(r / IMG, np.zeros((40, 48, 3), np.uint8)), ["channels", "alike"]),
    "image of another size": (lambda r: save_png(r / IMG, np.zeros((40, 40), np.uint8)), [IMG, "40 x 40", "40 x 48"]),
    "subject of two sizes": (
        lambda r: [save_png(r / p, np.zeros((64, 48), np.uint8)) for p in (IMG, GT)],
        ["Subj_1", "64 x 48", "40 x 48", "one size"],
    ),
    "too small": (
        lambda r: [save_png(p, np.zeros((31, 48), np.uint8)) for p in r.glob("*/*/*")], ["31 x 48", "at least 32"],
    ),
    "no PNG": (lambda r: (r / IMG).write_bytes(b"GIF89a"), [IMG, "not a readable PNG"]),
    "truncated": (lambda r: (r / IMG).write_bytes((r / IMG).read_bytes()[:500]), [IMG, "not a readable PNG"]),
    "empty file": (lambda r: (r / GT).write_bytes(b""), [GT, "not a readable PNG"]),
    "padded duplicate": (
        lambda r: [shutil.copy(r / p, r / p.replace("slice_1", "slice_01")) for p in (IMG, GT)],
        ["slice_1.png", "slice_01.png", "the same slice"],
    ),
    "subject in two splits": (
        lambda r: [shutil.copy(r / p, r / p.replace("train", "test")) for p in (IMG, GT)],
        ["subject 1", "train", "test"],
    ),
    "masks that explain nothing": (lambda r: write_masks(r, [0, 3, 7]), ["0, 3, 7", "dataset.json"]),
    "empty masks": (lambda r: write_masks(r, [0]), ["every mask is empty"]),
    "nothing to validate on": (
        lambda r: [save_png(p, np.zeros((40, 48), np.uint8)) for p in r.glob("val/GT/*")],
        ["all masks of the validation subjects are background"],
    ),
    "json": (lambda r: describe(r, "{labels:"), ["dataset.json", "JSON"]),
    "json list": (lambda r: describe(r, []), ["dataset.json", "object"]),
    "labels list": (lambda r: describe(r, {"labels": ["background", "liver"]}), ["labels", "value in the masks"]),
    "labels without background": (lambda r: describe(r, {"labels": {"liver": 1, "spleen": 2}}), ["background"]),
    "labels twice": (lambda r: describe(r, {"labels": {"background": 0, "a": 1, "b": 1}}), ["same value"]),
    "spacing": (lambda r: describe(r, {"subjects": {"1": {"spacing": [1, 0, 2]}}}), ["spacing of subject 1"]),
    "geometry of other slices": (
        lambda r: describe(r, {"subjects": {"1": {"size": [40, 48, 2]}}}),
        ["subject 1 have 48 x 40 pixels, and 40 x 48 in dataset.json"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(make_data, case):
    root = make_data()
    spoil, expected = BAD[case]
    spoil(root)
    with pytest.raises(InputError) as caught:
        open_data(root)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_unknown_mask_value_says_which_where_and_how_many(make_data):
    root = make_data()
    described = {"labels": {"background": 0, "liver": 63}}
    describe(root, described)
    write_masks(root, [0, 63])
    mask = np.zeros((40, 48), np.uint8)
    mask[20, 30:33] = 64
    save_png(root / "val/GT/Subj_2slice_2.png", mask)
    with pytest.raises(InputError) as caught:
        open_data(root)
    message = str(caught.value)
    for part in ("val/GT/Subj_2slice_2.png", "value 64", "row 20, column 30", "3 pixels", "[0, 63]"):
        assert part in message


def test_batches_hold_one_subject_in_order(make_data):
    data = open_data(make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3, 4, 5)))
    train = data.dataset("train")
    assert list(SubjectBatches(train, ["1", "2"], 3)) == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]
    assert list(SubjectBatches(train, ["2"], 4)) == [[5, 6, 7, 8], [9]]


def test_collate_pads_slices_of_other_sizes():
    items = [(torch.rand(1, 4, 6), torch.ones(4, 6).long()), (torch.rand(1, 5, 3), torch.ones(5, 3).long())]
    images, targets = collate(items)
    assert images.shape == (2, 1, 5, 6)
    assert torch.equal(images[0, :, :4], items[0][0])
    assert targets[0, 4].tolist() == [-100] * 6
    assert targets[1, :, 3:].unique().tolist() == [-100]
    assert (targets == 1).sum() == 4 * 6 + 5 * 3
    assert images[1, :, :, 3:].abs().sum() == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(33, 64), st.integers(33, 64))
def test_augmentation_moves_image_and_mask_together(seed, height, width):
    """A bright disk far from the border stays on its own mask, whatever was drawn."""
    rows, columns = np.mgrid[:height, :width]
    disk = (rows - height * 0.45) ** 2 + (columns - width * 0.55) ** 2 < 49
    image, target = Augmentation()(disk[None].astype(np.float32), disk.astype(np.uint8), np.random.default_rng(seed))
    assert image.dtype == np.float32
    assert target.dtype == np.uint8
    assert image.shape == (1, height, width)
    assert set(np.unique(target)) <= {0, 1}
    assert abs(int(target.sum()) - int(disk.sum())) <= 12
    assert ((image[0] > 0.5) != target.astype(bool)).sum() <= 8


def test_flips_and_rotations_come_as_often_as_they_should():
    """Each of the four flips appears in a quarter of the draws, a rotation in half, with angles up to the limit."""
    corner = np.zeros((33, 33), np.uint8)
    corner[4:8, 12:15] = 1
    flips = Augmentation(rotation_probability=0)
    counts: dict[bytes, int] = {}
    for seed in range(1000):
        target = flips(corner[None].astype(np.float32), corner, np.random.default_rng(seed))[1].tobytes()
        counts[target] = counts.get(target, 0) + 1
    assert len(counts) == 4
    assert all(200 < count < 300 for count in counts.values())

    line = np.zeros((65, 65), np.uint8)
    line[32, 40:60] = 1
    rotate = Augmentation(flip_probability=0, rotation_degrees=30)
    angles = []
    for seed in range(1000):
        rows, columns = np.nonzero(rotate(line[None].astype(np.float32), line, np.random.default_rng(seed))[1])
        angles.append(np.degrees(np.arctan2((rows - 32).mean(), (columns - 32).mean())))
    turned = np.abs(angles) > 1
    assert 430 < turned.sum() < 520
    assert 25 < max(angles) < 31
    assert -31 < min(angles) < -25


def test_augmentation_is_a_function_of_seed_epoch_and_index(make_data):
    data = open_data(make_data(numbers=tuple(range(1, 9))))

    def batches(seed: int, epoch: int, workers: int) -> torch.Tensor:
        dataset = data.dataset("train", Augmentation(), seed)
        dataset.epoch = epoch
        loader = torch.utils.data.DataLoader(dataset, 3, num_workers=workers)
        return torch.cat([image for image, _ in loader])

    first = batches(0, 1, 0)
    assert torch.equal(first, batches(0, 1, 2))
    assert not torch.equal(first, batches(0, 2, 0))
    assert not torch.equal(first, batches(1, 1, 0))


@pytest.mark.skipif(not SAMPLE_PAIR.exists(), reason="the CHAOS sample pair is not beside the repository")
def test_real_pair():
    name = "Subj_21slice_22.png"
    item = Slice("21", 22, (SAMPLE_PAIR / "train" / "Img" / name,), SAMPLE_PAIR / "train" / "GT" / name)
    image, target = SliceDataset([item], Labels(tuple("abcde"), (0, 63, 126, 189, 252)))[0]
    assert image.shape[-2:] == target.shape
    assert target.unique().tolist() == [0, 1, 2, 3]
