"""Pictures by name patterns: what is written is what Pillow reads, or the mistake is a line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import prepare
from data.folder import open_data
from data.png import is_turned, read_mask, read_pixels
from data.preparation import Preparation
from data.sources.pictures import find_pictures
from data.volumes import to_scan
from tests.helpers.errors import assert_clear
from utils import InputError


def save(path: Path, pixels: np.ndarray, orientation: int = 0, **options) -> Path:
    """Write a picture with Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    Image.fromarray(pixels).save(path, **options)
    return path


def blob(seed: int, value: int = 1, size=(40, 36)) -> np.ndarray:
    """A mask with a square."""
    mask = np.zeros(size, np.uint8)
    mask[5 + seed : 20, 8:30] = value
    return mask


def write_photos(folder: Path, count: int = 4, image: str = "images/{}.png", mask: str = "masks/{}_seg.png") -> Path:
    """RGB photographs a, b, ... of several sizes, and masks of 0 and 255."""
    rng = np.random.default_rng(0)
    for k, name in enumerate("abcdefgh"[:count]):
        size = (40 + k, 52 - k)
        save(folder / image.format(name), rng.integers(0, 256, (*size, 3), np.uint8))
        save(folder / mask.format(name), blob(k, 255, size))
    return folder


def make(folder: Path, *flags: str, split: str = "2,1,1", mask: str = "masks/{subject}_seg.png") -> Path:
    """python prepare.py png FOLDER with these flags; returns the data set."""
    out = folder.parent / "out"
    prepare.main(["png", str(folder), "--out", str(out), "--mask", mask, "--split", split, *flags])
    return out


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "bmp", "png"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_pillow(tmp_path, ending, mode):
    pixels = np.random.default_rng(1).integers(0, 256, (33, 47, 3), np.uint8)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(pixels).convert(mode).save(path)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(read_pixels(path), np.asarray(picture))


@pytest.mark.parametrize("orientation", range(9))
def test_a_jpeg_is_turned_upright(tmp_path, orientation):
    """Each of EXIF's eight orientations, by hand: 5 to 8 are rows and columns exchanged, then flipped as in 1 to 4."""
    stored = np.zeros((32, 48), np.uint8)
    stored[:16, :16] = 255  # blocks of JPEG, so that the values stay
    path = save(tmp_path / "a.jpg", stored, orientation, quality=95)
    transposed, flips = divmod(max(orientation, 1) - 1, 4)
    upright = stored.T if transposed else stored
    axes = ((), (1,), (0, 1), (0,))[flips]
    np.testing.assert_allclose(read_pixels(path), np.flip(upright, axes), atol=2)
    assert is_turned(path) == (orientation > 1)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_masks_as_bmp_are_those_as_png(tmp_path, mode):
    mask = Image.fromarray(blob(0, 255 if mode == "1" else 3)).convert(mode)
    for ending in ("bmp", "png"):
        mask.save(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.bmp").codes, read_mask(tmp_path / "a.png").codes)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("palette", [(0, 255), (255, 0), (0,), tuple(range(16)), (0, 9, 200)])
def test_a_bmp_with_a_palette_of_greys_is_read_right_or_refused(tmp_path, bits, palette):
    """Written by hand, as its format is defined: Pillow reads some of these as if a pixel had other bits."""
    palette = palette[: 2**bits]
    stored = np.random.default_rng(0).integers(0, len(palette), (40, 64), np.uint8)
    packed = np.unpackbits(stored[::-1, :, None], 2)[..., 8 - bits :]  # lines from the bottom; each of whole words
    pixels = np.packbits(packed.reshape(40, -1), 1).tobytes()
    colors = b"".join(bytes((grey, grey, grey, 0)) for grey in palette)
    start = 54 + len(colors)
    sizes = struct.pack("<IiiHHIIiiII", 40, 64, 40, 1, bits, 0, len(pixels), 2835, 2835, len(palette), 0)
    content = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + sizes + colors + pixels
    (tmp_path / "a.bmp").write_bytes(content)
    try:
        shown = read_pixels(tmp_path / "a.bmp")
    except InputError as error:
        assert_clear(error, "a.bmp", "palette of greys")
        assert bits > 1 or len(palette) == 1  # which older Pillow does not read
    else:
        np.testing.assert_array_equal(shown, np.array(palette, np.uint8)[stored])


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@given(st.binary(max_size=40), st.integers(0, 3000), st.sampled_from(["jpg", "bmp"]))
def test_damage_is_a_line_or_pixels(tmp_path_factory, content, position, ending):
    path = tmp_path_factory.getbasetemp() / f"damaged.{ending}"
    save(path, blob(0, 200), orientation=6 if ending == "jpg" else 0)
    good = path.read_bytes()
    position %= len(good)
    path.write_bytes(good[:position] + content + good[position + len(content) :])
    is_turned(path)
    try:
        assert read_pixels(path).size
    except InputError as error:
        assert_clear(error, path.name)


def test_a_jpeg_that_ends_early_is_a_line(tmp_path):
    path = save(tmp_path / "a.jpg", blob(0, 200))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError) as caught:
        read_pixels(path)
    assert_clear(caught.value, "a.jpg", "not a readable JPEG")


# ---------------------------------------------------------------- data sets


def test_photographs_become_a_data_set(tmp_path, capsys):
    source = write_photos(tmp_path / "in")
    before = {path: path.read_bytes() for path in source.rglob("*.*")}
    out = make(source, "--names", "lesion")
    assert {path: path.read_bytes() for path in source.rglob("*.*")} == before
    data = open_data(out)
    assert (data.labels.names, data.labels.codes, data.channels) == (("background", "lesion"), (0, 255), 3)
    for item in (item for slices in data.splits.values() for item in slices):
        assert item.number == 1
        for path, kind in ((item.images[0], "images/{}.png"), (item.mask, "masks/{}_seg.png")):
            with Image.open(path) as ours, Image.open(source / kind.format(item.subject)) as theirs:
                np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert "is ready" in capsys.readouterr().out
    described = json.loads((out / "dataset.json").read_text())
    assert described["preparation"]["normalize"] == "none"
    assert described["subjects"]["a"]["files"] == ["images/a.png", "masks/a_seg.png"]


def test_slices_of_several_channels_keep_their_numbers(tmp_path):
    """Numbers with and without zeros are one; RGB and 16-bit grey lie beside each other."""
    rng = np.random.default_rng(0)
    source = tmp_path / "in"
    color = {key: rng.integers(0, 256, (40, 36, 3), np.uint8) for key in [("p_1", 3), ("p_1", 12), ("q", 3), ("r", 3)]}
    deep = {key: rng.integers(0, 65536, (40, 36), np.uint16) for key in color}
    for subject, number in color:
        save(source / subject / f"{subject} rgb {number:03}.png", color[subject, number])
        save(source / subject / f"nir{number}.png", deep[subject, number])
        save(source / f"{subject}_{number}.bmp", blob(number))
    image = "{subject}/{subject} rgb {slice}.png,{subject}/nir{slice}.png"
    out = make(source, "--image", image, split="1,1,1", mask="{subject}_{slice}.bmp")
    data = open_data(out)
    assert data.channels == 4
    items = {(item.subject, item.number): item for slices in data.splits.values() for item in slices}
    assert items.keys() == color.keys()
    for key, item in items.items():
        for path, expected in zip(item.images, (color[key], deep[key]), strict=True):
            with Image.open(path) as picture:
                np.testing.assert_array_equal(np.asarray(picture), expected)


def test_grey_channels_have_names(tmp_path):
    for name in "abc":
        for kind in ("t1", "flair", "seg"):
            save(tmp_path / "in" / f"{name}_{kind}.png", blob(0))
    image = "{subject}_flair.png,{subject}_t1.png"
    out = make(tmp_path / "in", "--image", image, split="1,1,1", mask="{subject}_seg.png")
    assert open_data(out).channel_names == ("flair", "t1")


def test_size_crops_and_pads_about_the_center_and_back(tmp_path):
    source = write_photos(tmp_path / "in")
    data = open_data(make(source, "--size", "44"))
    item = next(item for slices in data.splits.values() for item in slices if item.subject == "a")
    image, mask = (read_pixels(path) for path in (item.images[0], item.mask))
    original, label = read_pixels(source / "images/a.png"), read_pixels(source / "masks/a_seg.png")
    assert image.shape == (44, 44, 3)  # of 40 x 52: two rows more at either side, four columns less
    np.testing.assert_array_equal(image[2:42], original[:, 4:48])
    assert not image[:2].any()
    assert not image[42:].any()
    back = to_scan(mask[None], data.geometry["a"])
    assert back.GetSize() == (52, 40, 1)
    assert data.geometry["a"].spacing is None
    for y, x in [(10, 10), (4, 8), (19, 29), (30, 30)]:
        assert back[x, y, 0] == label[y, x]


@given(st.tuples(st.integers(1, 80), st.integers(1, 80)), st.integers(32, 70))
def test_fitted_pictures_have_the_size_and_the_middle(shape, size):
    picture = np.arange(1, 1 + shape[0] * shape[1]).reshape(1, *shape)
    fitted = Preparation(size=size, normalize="none").fit(picture)
    assert fitted.shape == (1, size, size)
    grid = Preparation(size=size, normalize="none").geometry_of_pictures((*shape[::-1], 1))
    assert grid.size == (size, size, 1)
    x, y = (int(value) for value in grid.origin[:2])
    inside = picture[0, max(0, y) : y + size, max(0, x) : x + size]
    np.testing.assert_array_equal(fitted[fitted > 0], inside.ravel())


def test_images_and_masks_in_one_folder(tmp_path):
    """A pattern of images that fits masks does not take them."""
    source = write_photos(tmp_path / "in", image="benign ({}).png", mask="benign ({})_mask.png")
    (source / "._benign (a).png").write_bytes(b"Apple")
    found = find_pictures(source, ["{subject}.png"], "{subject}_mask.png")
    assert found.subjects() == ["benign--a-", "benign--b-", "benign--c-", "benign--d-"]
    assert found.classes(found.subjects()) == {0: "background", 255: "foreground"}


def test_endings_in_capitals_and_files_in_hidden_folders(tmp_path):
    """Cameras write .JPG; a bin holds no subjects."""
    source = write_photos(tmp_path / "in", count=2)
    before = find_pictures(source, ["images/{subject}.png"], "masks/{subject}_seg.png").subjects()
    first = next((source / "images").iterdir())
    first.rename(first.with_suffix(".PNG"))
    write_photos(source / ".bin", count=1)
    assert find_pictures(source, ["images/{subject}.png"], "masks/{subject}_seg.png").subjects() == before
    assert len(before) == 2


def test_masks_by_the_table_of_their_folder(tmp_path):
    """Masks in colors, and palettes whose indices differ from file to file."""
    source = tmp_path / "in"
    rng = np.random.default_rng(0)
    where = blob(0).astype(bool)
    for k, name in enumerate("abc"):
        save(source / "images" / f"{name}.png", rng.integers(0, 256, (40, 36, 3), np.uint8))
        colors = np.where(where[..., None], np.array([200, 10, 30], np.uint8), np.uint8(0))
        mask = Image.fromarray(colors)
        (source / "masks").mkdir(exist_ok=True)
        if k:
            mask = Image.fromarray((where ^ (k == 2)).astype(np.uint8))
            mask.putpalette([0, 0, 0, 200, 10, 30] if k == 1 else [200, 10, 30, 0, 0, 0])
        mask.save(source / "masks" / f"{name}_seg.png")
    with pytest.raises(InputError) as caught:
        make(source, split="1,1,1")
    assert_clear(caught.value, "a_seg.png", "in colors", "200, 10, 30")
    (source / "dataset.json").write_text('{"colors": {"lesion": [200, 10, 30]}}')
    data = open_data(make(source, split="1,1,1"))
    assert data.labels.names == ("background", "lesion")
    for item in (item for slices in data.splits.values() for item in slices):
        np.testing.assert_array_equal(data.labels.to_classes(read_mask(item.mask), item.mask), where)
        shown = np.where(where[..., None], np.array([200, 10, 30]), 0)  # a prediction is shown so, too
        np.testing.assert_array_equal(np.asarray(Image.open(item.mask).convert("RGB")), shown)


def test_images_that_exif_turns_are_told(tmp_path, capsys):
    source = write_photos(tmp_path / "in")
    pixels = np.zeros((48, 40, 3), np.uint8)
    save(source / "images/a.jpg", pixels, orientation=6)
    for name in "bcd":
        save(source / f"images/{name}.jpg", read_pixels(source / f"images/{name}.png"))
    flags = ["--image", "images/{subject}.jpg"]
    with pytest.raises(InputError) as caught:
        make(source, *flags)  # 48 x 40 upright, and the mask has 52 x 40
    assert_clear(caught.value, "a.jpg", "is 48 x 40 pixels (upright, as its EXIF data says)", "a_seg.png 52 x 40")
    save(source / "masks/a_seg.png", blob(0, 255, (40, 48)))
    make(source, *flags)
    assert "note: 1 images are turned upright, as their EXIF data says" in capsys.readouterr().out


# ---------------------------------------------------------------- mistakes


def two_kinds(source: Path) -> None:
    save(source / "masks/a_seg.png", blob(0, 1, (40, 52)))


def smooth(source: Path) -> None:
    save(source / "masks/a_seg.png", np.arange(40 * 52, dtype=np.uint32).reshape(40, 52).astype(np.uint8))


MISTAKES = {
    "a mask is missing": (lambda s: (s / "masks/b_seg.png").unlink(), [], ["b.png", "has no mask"]),
    "an image is missing": (lambda s: (s / "images/b.png").unlink(), [], ["b_seg.png", "has no image"]),
    "sizes": (lambda s: save(s / "masks/b_seg.png", blob(1, 255)), [], ["b.png", "51 x 41", "b_seg.png 36 x 40"]),
    "a grey image": (
        lambda s: save(s / "images/b.png", blob(1, 9, (41, 51))), [], ["subject b has 1", "save all images alike"],
    ),
    "0 and 1 beside 0 and 255": (two_kinds, [], ["0, 1, 255", "a_seg.png holds 0, 1 and"]),
    "one name for two values": (two_kinds, ["--names", "x"], ["1 class names for the values 1, 255", "a_seg.png"]),
    "two names for a value": (lambda s: None, ["--names", "x,y"], ["2 class names for the values 255"]),
    "a smooth mask": (smooth, [], ["(256 in all"]),
    "two names that become one": (
        lambda s: [save(s / f"masks/a{sign}_seg.png", blob(0)) for sign in "+?"],
        [], ["a?_seg.png", "a+_seg.png", "rename"],
    ),
    "no subject in a pattern": (lambda s: None, ["--image", "images/*.png"], ["pattern images/*.png: must hold"]),
    "no sign between": (lambda s: None, ["--image", "{subject}{slice}.png"], ["must have a sign between them"]),
    "a pattern elsewhere": (lambda s: None, ["--image", "../{subject}.png"], ["must hold {subject}"]),
    "another kind": (lambda s: None, ["--image", "images/{subject}.tif"], ["must end in .png"]),
    "another image": (lambda s: None, ["--image", "x/{subject}.png"], ["holds no images named x/{subject}.png"]),
    "masks as JPEG": (
        lambda s: [save(s / f"masks/{name}.jpg", blob(0)) for name in "abcd"],
        ["--mask", "masks/{subject}.jpg"], [".jpg: a mask as JPEG", "PNG"],
    ),
    "damage": (lambda s: (s / "images/c.png").write_bytes(b"\x89PNG"), [], ["c.png: not a readable PNG"]),
}  # fmt: skip


@pytest.mark.parametrize("spoil, flags, parts", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(tmp_path, spoil, flags, parts):
    source = write_photos(tmp_path / "in")
    spoil(source)
    with pytest.raises(InputError) as caught:
        make(source, *flags)
    assert_clear(caught.value, *parts)
    assert not (tmp_path / "out").exists()


def test_bad_subjects_can_be_left_out(tmp_path, capsys):
    source = write_photos(tmp_path / "in", 5)
    (source / "masks/b_seg.png").unlink()
    data = open_data(make(source, "--skip_bad", split="3,1,1"))
    assert {item.subject for slices in data.splits.values() for item in slices} == {"a", "c", "d", "e"}
    assert "left out: subject b: " in capsys.readouterr().out


def test_slices_of_a_subject_have_one_size_and_kind(tmp_path):
    for number, pixels in ((1, blob(0)), (2, blob(0).astype(np.uint16))):
        save(tmp_path / f"i_a_{number}.png", pixels)
        save(tmp_path / f"m_a_{number}.png", blob(0))
    found = find_pictures(tmp_path, ["i_{subject}_{slice}.png"], "m_{subject}_{slice}.png")
    with pytest.raises(InputError) as caught:
        found.read("a")
    assert_clear(caught.value, "i_a_2.png", "16-bit grey", "8-bit grey")
    save(tmp_path / "m_a_01.png", blob(0))
    with pytest.raises(InputError, match=r"m_a_1.png: would be subject a, slice 1, as is .*m_a_01.png"):
        find_pictures(tmp_path, ["i_{subject}_{slice}.png"], "m_{subject}_{slice}.png")


# ---------------------------------------------------------------- folds, regions


def test_each_fold_of_pictures_has_a_lesion(tmp_path):
    folder = write_photos(tmp_path / "photos", 6)
    for name in "abd":
        save(
            folder / "masks" / f"{name}_seg.png",
            np.zeros((40 + "abcdef".index(name), 52 - "abcdef".index(name)), np.uint8),
        )
    assert find_pictures(folder, ["images/{subject}.png"], "masks/{subject}_seg.png").classes_of(list("abc")) == {
        "a": set(), "b": set(), "c": {255},
    }  # fmt: skip
    out = tmp_path / "out"
    mask = "masks/{subject}_seg.png"
    prepare.main(["png", str(folder), "--out", str(out), "--mask", mask, "--folds", "3", "--groups", "([a-z])"])
    for split in json.loads((out / "splits.json").read_text()):
        assert len(set(split["test"]) & set("cef")) == 1
        assert len(split["test"]) == 2


def test_regions_of_pictures_go_along_and_groups_are_refused(tmp_path):
    folder = write_photos(tmp_path / "photos")
    described = {"labels": {"background": 0, "spot": 255}, "regions": {"any": ["spot"]}, "tolerances": {"any": 3}}
    (folder / "dataset.json").write_text(json.dumps(described))
    labels = open_data(make(folder)).labels
    assert (labels.regions, labels.tolerances) == ({"any": ("spot",)}, {"any": 3.0})
    (folder / "dataset.json").write_text(json.dumps({"groups": {"a": "1"}}))
    with pytest.raises(InputError) as caught:
        make(folder)
    assert_clear(caught.value, "dataset.json: its groups do not count")
