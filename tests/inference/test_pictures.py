"""From photographs to scores, and the segmentation of pictures: masks that hold the codes of the training masks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from medpy.metric import binary
from PIL import Image

import evaluate
import predict
import prepare
from config import Config
from inference.evaluation import Sources
from inference.networks import load_network
from inference.segmenter import Segmenter
from main import main
from tests.helpers import networks
from tests.helpers.errors import assert_clear, assert_one_line
from tests.helpers.runs import read_csv
from utils import InputError, read_json

CONFIG = Config.of(model="tiny", epochs=12, batch_size=1, lr=0.02, seed=1, workers=0, device="cpu", amp="off")
SIZES = {"a": (40, 52), "b": (44, 40), "c": (36, 48), "d": (38, 50)}


@dataclass(frozen=True)
class Photos:
    """Photographs in folders, a data set of 40 x 40 of them, and a run on it, whose test picture is d."""

    root: Path
    text: str
    """What the run printed."""

    @property
    def checkpoint(self) -> Path:
        return self.root / "run" / "best.pt"

    def image(self, name: str) -> Path:
        return self.root / "photos" / "images" / f"{name}.png"

    def mask(self, name: str) -> Path:
        return self.root / "photos" / "masks" / f"{name}.png"

    def argmax(self, name: str) -> np.ndarray:
        """What the network says of a picture: Pillow, crop by hand, one pass, and the way back by hand."""
        with Image.open(self.image(name)) as picture:
            pixels = np.asarray(picture)
        rows, columns = pixels.shape[:2]
        top, left = (rows - 40) // 2, (columns - 40) // 2
        fitted = np.zeros((40, 40, 3), np.float32)
        inside = np.s_[max(0, top) : top + 40, max(0, left) : left + 40]
        there = np.s_[max(0, -top) : max(0, -top) + min(rows, 40), max(0, -left) : max(0, -left) + min(columns, 40)]
        fitted[there] = pixels[inside] / 255
        model = load_network(self.checkpoint, torch.device("cpu")).model
        with torch.inference_mode():
            classes = model(torch.from_numpy(fitted).permute(2, 0, 1)[None]).argmax(1)[0].numpy()
        whole = np.zeros((rows, columns), np.uint8)
        whole[inside] = classes[there]
        return whole


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Iterator[Photos]:
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / "photos" / kind).mkdir(parents=True)
    for name, (rows, columns) in SIZES.items():
        y, x = np.mgrid[:rows, :columns]
        spot = (y - rows / 2) ** 2 + (x - columns / 2) ** 2 < 110
        pixels = rng.integers(0, 120, (rows, columns, 3), np.uint8)
        pixels[spot] += np.array([120, 0, 60], np.uint8)
        Image.fromarray(pixels).save(root / "photos" / "images" / f"{name}.png")
        Image.fromarray(np.where(spot, 7, 0).astype(np.uint8)).save(root / "photos" / "masks" / f"{name}.png")
    (root / "split.json").write_text('{"train": ["a", "b"], "val": ["c"], "test": ["d"]}')
    arguments = ["png", str(root / "photos"), "--out", str(root / "data"), "--split_file", str(root / "split.json")]
    with pytest.MonkeyPatch.context() as patch:
        networks.register(patch)
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *parts, **_: printed.append(" ".join(map(str, parts))))
        prepare.main([*arguments, "--size", "40", "--names", "spot"])
        main(CONFIG.change(data=root / "data", out=root / "run"))
        patch.delattr("builtins.print")
    with pytest.MonkeyPatch.context() as patch:
        networks.register(patch)
        yield Photos(root, "\n".join(printed))


def run(photos: Photos, *sources: object, **options) -> Path:
    """python predict.py CHECKPOINT SOURCE ...; returns the folder of results."""
    options = {"device": "cpu", "out": photos.root / "out"} | options
    shutil.rmtree(options["out"], ignore_errors=True)
    predict.main(predict.Options(str(photos.checkpoint), tuple(map(str, sources)), **options))
    return options["out"]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


# ---------------------------------------------------------------- scores


def test_scores_of_photographs_are_those_of_flat_masks(photos):
    """Against medpy on arrays of two axes; in a volume of one slice, each pixel would be surface."""
    truth, prediction = pixels(photos.mask("d")) == 7, photos.argmax("d") == 1
    assert 0 < (truth & prediction).sum() < truth.sum() + prediction.sum() - (truth & prediction).sum()
    truth, prediction = truth[:, 5:45], prediction[:, 5:45]  # main.py scores on slices: 38 x 50 became 40 x 40
    (row,) = read_csv(photos.root / "run" / "test.csv")
    pair = np.pad(prediction, 1), np.pad(truth, 1)
    assert float(row["dsc"]) == pytest.approx(binary.dc(*pair))
    assert float(row["msd"]) == pytest.approx(binary.assd(*pair))
    assert float(row["hd95_pooled"]) == pytest.approx(binary.hd95(*pair))


def test_words_are_those_of_images(photos):
    assert "1 image, mean" in photos.text
    assert "MSD pixels" in photos.text
    assert "3D" not in photos.text
    assert "voxels" not in photos.text
    assert read_json(photos.root / "run" / "test.json")["per_image"] is True


def test_masks_in_colors_are_good_for_training_and_for_scores(photos, tmp_path):
    """predict.py and evaluate.py score pictures against the very masks that the network was trained on."""
    source = shutil.copytree(photos.root / "photos", tmp_path / "photos")
    for path in (source / "masks").iterdir():
        spot = pixels(path)[..., None] == 7
        Image.fromarray(np.where(spot, [200, 10, 30], [0, 0, 9]).astype(np.uint8)).save(path)
    (source / "dataset.json").write_text('{"colors": {"background": [0, 0, 9], "spot": [200, 10, 30]}}')
    arguments = ["png", str(source), "--out", str(tmp_path / "data"), "--size", "40", "--split_file"]
    prepare.main([*arguments, str(photos.root / "split.json")])
    main(CONFIG.change(data=tmp_path / "data", out=tmp_path / "run"))
    trained = Photos(tmp_path, "")
    out = run(trained, source / "images" / "d.png", truth=(source / "masks",))
    evaluate.main(evaluate.Options(Sources(tmp_path / "out", source / "masks", partial=True), tmp_path / "again"))
    truth, prediction = (pixels(source / "masks" / "d.png") == [200, 10, 30]).all(-1), trained.argmax("d") == 1
    for scores in (out / "scores.csv", tmp_path / "again" / "test.csv"):
        (row,) = read_csv(scores)
        assert float(row["dsc"]) == pytest.approx(binary.dc(prediction, truth))
    with Image.open(out / "d.png") as picture:
        shown = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(shown, np.where(prediction[..., None], [200, 10, 30], [0, 0, 9]))


# ---------------------------------------------------------------- predictions


def test_a_mask_is_the_argmax_in_training_codes(photos, tmp_path, capsys):
    """Of a file and of a folder; with a palette that shows the class, and without NIfTI."""
    shutil.copy(photos.image("d"), tmp_path / "other name.png")
    out = run(photos, tmp_path / "other name.png", photos.root / "photos" / "images")
    names = {"other name", *SIZES}
    files = {f"{name}{end}.png" for name in names for end in ("", "_overlay")} | {"volumes.csv"}
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == files
    assert f"d: {out / 'd.png'}" in capsys.readouterr().out
    for name in SIZES:
        np.testing.assert_array_equal(pixels(out / f"{name}.png"), 7 * photos.argmax(name))
    np.testing.assert_array_equal(pixels(out / "other name.png"), pixels(out / "d.png"))
    with Image.open(out / "d.png") as picture:
        assert picture.mode == "P"
        colors = np.asarray(picture.convert("RGB"))
    assert {tuple(color) for color in colors.reshape(-1, 3).tolist()} == {(0, 0, 0), (0xE6, 0x9F, 0)}


def test_a_mask_never_replaces_its_picture(photos, tmp_path):
    """Named itself, found in a folder of pictures, or prepared in a split."""
    segmenter = Segmenter(photos.checkpoint, device="cpu")
    pictures = Path(shutil.copytree(photos.root / "photos" / "images", tmp_path / "images"))
    slices = Path(shutil.copytree(photos.root / "data" / "test", tmp_path / "test"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    for source in (pictures / "a.png", pictures, slices):
        for scan in segmenter.scans(str(source), "a"):
            path = next((slices / "Img").iterdir()) if source == slices else pictures / f"{scan.name}.png"
            with pytest.raises(InputError, match="is the scan itself"):
                segmenter.segment(scan).save(path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_the_prepared_picture_gives_the_same_mask(photos):
    out = run(photos, photos.root / "data" / "test", truth=(photos.root / "data" / "test" / "GT",))
    np.testing.assert_array_equal(pixels(out / "d.png"), 7 * photos.argmax("d"))
    (row,), (scored,) = read_csv(out / "scores.csv"), read_csv(photos.root / "run" / "test.csv")
    assert float(row["msd"]) == pytest.approx(float(scored["msd"]))


@pytest.mark.parametrize("truth", ["masks", "masks/d.png"])
def test_pictures_are_scored_with_their_masks(photos, truth, capsys):
    """On the picture's own grid, against medpy."""
    source = "images" if truth == "masks" else "images/d.png"
    out = run(photos, photos.root / "photos" / source, truth=(photos.root / "photos" / truth,))
    for row in read_csv(out / "scores.csv"):
        prediction, target = pixels(out / f"{row['subject']}.png") == 7, pixels(photos.mask(row["subject"])) == 7
        assert float(row["dsc"]) == pytest.approx(binary.dc(prediction, target))
        assert float(row["hd95_pooled"]) == pytest.approx(binary.hd95(np.pad(prediction, 1), np.pad(target, 1)))
    assert "HD95 pixels" in capsys.readouterr().out


def test_a_jpeg_is_turned_before_it_is_segmented(photos, tmp_path):
    with Image.open(photos.image("d")) as picture:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise
        picture.transpose(Image.Transpose.ROTATE_90).save(
            tmp_path / "turned.JPG", exif=exif, quality=100, subsampling=0
        )
    mask = pixels(run(photos, tmp_path / "turned.JPG") / "turned.png")
    assert mask.shape == SIZES["d"]
    assert (mask == 7 * photos.argmax("d")).mean() > 0.97


def test_several_files_of_a_picture_are_its_channels(photos, tmp_path):
    """Three grey files are three channels, as one of RGB."""
    bands = pixels(photos.image("d")).transpose(2, 0, 1)
    files = [tmp_path / f"{name}.png" for name in ("x", "y", "z")]
    for file, band in zip(files, bands, strict=True):
        Image.fromarray(band).save(file)
    out = run(photos, ",".join(map(str, files)))
    np.testing.assert_array_equal(pixels(out / "x.png"), 7 * photos.argmax("d"))


def test_other_files_in_a_folder_are_told(photos, tmp_path, capsys):
    shutil.copy(photos.image("d"), tmp_path / "d.png")
    (tmp_path / "licence.txt").write_text("free")
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert (run(photos, tmp_path) / "d.png").exists()
    assert "1 files that are no pictures are left out, such as licence.txt" in capsys.readouterr().out


def grey(folder: Path, name: str = "grey.png", size=(40, 40)) -> Path:
    Image.fromarray(np.zeros(size, np.uint8)).save(folder / name)
    return folder / name


def test_what_cannot_be_segmented_is_a_line(photos, tmp_path):
    with pytest.raises(InputError) as caught:
        run(photos, grey(tmp_path))
    assert_one_line(caught.value, "grey.png", "has 1 channel", "takes 3")
    with pytest.raises(InputError) as caught:
        run(photos, f"{grey(tmp_path)},{grey(tmp_path, 'b.png', (40, 41))}")
    assert_clear(caught.value, "b.png: is 41 x 40 pixels", "grey.png 40 x 40", "must have one size")
    Image.new("RGB", (40, 40)).save(tmp_path / "grey.jpg")
    with pytest.raises(InputError) as caught:
        run(photos, tmp_path)
    assert_clear(caught.value, "grey.png", "grey.jpg", "rename")
    Image.new("RGBA", (40, 40)).save(tmp_path / "clear.png")
    with pytest.raises(InputError) as caught:
        run(photos, tmp_path / "clear.png")
    assert_clear(caught.value, "clear.png", "alpha channel")
    with pytest.raises(InputError) as caught:
        run(photos, photos.image("d"), truth=(photos.mask("a"),))
    assert_clear(caught.value, "a.png: is 52 x 40 pixels, and the picture d 50 x 38", "must be of one size")
    with pytest.raises(InputError) as caught:
        run(photos, photos.image("d"), truth=(tmp_path,))
    assert_clear(caught.value, "has 0 masks called d.png")


def test_truth_whose_palettes_disagree_is_refused(photos, tmp_path):
    """One value in two colors, in the masks of two pictures."""
    files = []
    for name, palette in (("a", [0, 0, 0, 255, 0, 0, 0, 255, 0]), ("d", [0, 0, 0, 0, 255, 0, 255, 0, 0])):
        indices = (np.asarray(Image.open(photos.mask(name))) > 0).astype(np.uint8)
        mask = Image.fromarray(indices).convert("P")
        mask.putdata(indices.ravel().tolist())
        mask.putpalette(palette)
        files.append(tmp_path / f"{name}.png")
        mask.save(files[-1])
    with pytest.raises(InputError) as caught:
        run(photos, photos.image("a"), photos.image("d"), truth=tuple(files))
    assert_clear(caught.value, "a.png", "d.png")


def test_a_scan_is_no_picture(photos, tmp_path):
    sitk.WriteImage(sitk.Image(40, 40, 3, sitk.sitkInt16), tmp_path / "scan.nii.gz")
    with pytest.raises(InputError) as caught:
        run(photos, tmp_path / "scan.nii.gz")
    assert_clear(caught.value, "scan.nii.gz: is a scan", "export its slices as PNG")
