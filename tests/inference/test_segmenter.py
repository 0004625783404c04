"""Segmentation from Python: files, folders and arrays."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from inference.segmenter import Segmenter
from tests.helpers.errors import assert_clear
from tests.helpers.scans import make_scan, read_array, write_scan
from utils import InputError, OptionError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def segmenter(trained) -> Segmenter:
    """The network that knows scans."""
    return Segmenter(trained.checkpoint, device="cpu")


def test_random_numbers_of_the_program_stay_as_they_are(trained):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    Segmenter(trained.checkpoint, device="cpu")
    assert torch.rand(1) == expected


def test_a_file_gets_the_segmentation_of_training(trained, segmenter, tmp_path):
    result = segmenter(trained.test_scan)
    expected = sitk.ReadImage(trained.run / "predictions" / "s3.nii.gz")
    np.testing.assert_array_equal(result.values, sitk.GetArrayFromImage(expected))
    np.testing.assert_array_equal(result.probabilities.argmax(0), result.values)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    voxel = 1.25 * 0.8 * 7.7 / 1000
    names = segmenter.labels.names[1:]
    assert result.ml == pytest.approx({name: (result.values == k).sum() * voxel for k, name in enumerate(names, 1)})
    result.save(tmp_path / "there.nii.gz")
    np.testing.assert_array_equal(read_array(tmp_path / "there.nii.gz"), result.values)


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8, np.float16, np.float64, np.int64, np.longdouble])
def test_an_array_is_the_axial_scan_of_its_values(segmenter, tmp_path, dtype):
    image, label = make_scan(4, "LPS", size=(40, 34, 3))
    values = sitk.GetArrayFromImage(image).round().clip(0, 255)
    stored = sitk.GetImageFromArray(values)
    stored.CopyInformation(image)
    write_scan(tmp_path, "4", stored, label)
    of_file = segmenter(tmp_path / "image_4.nii.gz")
    assert len(np.unique(of_file.values)) > 1
    for array in (values.astype(dtype), values.astype(dtype)[None]):
        of_array = segmenter(array, spacing=image.GetSpacing()[::-1])
        np.testing.assert_array_equal(of_array.values, of_file.values)
        np.testing.assert_array_equal(of_array.probabilities, of_file.probabilities)
        assert of_array.ml == pytest.approx(of_file.ml)
    assert array.dtype == dtype


@pytest.mark.parametrize("dtype", [">i2", ">u4", ">f4", ">f8"])
def test_the_order_of_bytes_does_not_matter(segmenter, dtype):
    values = np.random.default_rng(0).integers(0, 300, (3, 34, 40))
    swapped = segmenter(values.astype(dtype), (7.7, 0.8, 1.25))
    np.testing.assert_array_equal(swapped.probabilities, segmenter(values, (7.7, 0.8, 1.25)).probabilities)


def test_several_networks_are_averaged(trained, segmenter):
    one, two = segmenter(trained.test_scan), Segmenter([trained.checkpoint] * 2, device="cpu")(trained.test_scan)
    np.testing.assert_allclose(two.probabilities, one.probabilities, atol=1e-6)


GOOD = np.zeros((3, 34, 40), np.float32)
ARRAYS = {
    "no spacing": (GOOD, None, ["spacing"]),
    "two lengths": (GOOD, (1, 1), ["spacing (1, 1)"]),
    "no length": (GOOD, (1, 0, 1), ["spacing (1, 0, 1)"]),
    "NaN as spacing": (GOOD, (1, np.nan, 1), ["spacing (1, nan, 1)"]),
    "one number": (GOOD, 1.25, ["spacing 1.25"]),
    "words": (GOOD, ("1", "1", "1"), ["spacing ('1', '1', '1')"]),
    "an array of nibabel": (GOOD.T, (1.25, 0.8, 7.7), ["spacing (1.25, 0.8, 7.7)", "order D, H and W"]),
    "an array of SimpleITK with its spacing as it is": (GOOD, (0.8, 0.8, 7.7), ["order D, H and W"]),
    "slices along H": (GOOD, (1.25, 7.7, 0.8), ["order D, H and W"]),
    "a slice": (GOOD[0], (1, 1, 1), ["array", "(34, 40)"]),
    "five axes": (GOOD[None, None], (1, 1, 1), ["array", "(1, 1, 3, 34, 40)"]),
    "nothing": (GOOD[:0], (1, 1, 1), ["array", "(0, 34, 40)"]),
    "complex": (GOOD.astype(complex), (1, 1, 1), ["array", "complex"]),
    "text": (GOOD.astype(str), (1, 1, 1), ["array"]),
    "infinity": (GOOD + np.inf, (1, 1, 1), ["array"]),
    "two channels": (np.stack([GOOD, GOOD]), (1, 1, 1), ["array", "2 channels"]),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_other_arrays_are_refused(segmenter, case):
    array, spacing, parts = ARRAYS[case]
    with pytest.raises(InputError) as caught:
        segmenter(array, spacing)
    for part in parts:
        assert part in str(caught.value)


def test_what_is_not_one_scan_is_refused(trained, segmenter, tmp_path):
    shutil.copytree(trained.data / "test", tmp_path / "test")
    for path in sorted((tmp_path / "test").glob("*/*.png")):
        shutil.copy(path, path.with_name(path.name.replace("s3", "s4")))
    with pytest.raises(InputError, match=r"holds several subjects; name a scan"):
        segmenter(tmp_path / "test")
    with pytest.raises(OptionError, match=r"^spacing: .* has its own; omit it"):
        segmenter(trained.test_scan, spacing=(1, 1, 1))
    with pytest.raises(InputError, match="no such file"):
        segmenter(tmp_path / "nothing.nii.gz")
    with pytest.raises(InputError) as caught:
        segmenter(trained.test_scan).save(tmp_path / "result.png")
    assert_clear(caught.value, str(tmp_path / "result.png"), "must end with .nii.gz")
    assert not list(tmp_path.glob("result*"))
    for scan in (nib.load(trained.test_scan), sitk.ReadImage(trained.test_scan), GOOD.tolist()):
        with pytest.raises(InputError, match=r"^scan: is of type (nibabel|SimpleITK|builtins)\..*; name its file"):
            segmenter(scan)
    with pytest.raises(InputError, match="holds no DICOM"):
        segmenter(Path("/").absolute())
    with pytest.raises(InputError, match="no checkpoint is given"):
        Segmenter([])
    with pytest.raises(OptionError, match=r"^batch 0: must be at least 1"):
        Segmenter(trained.checkpoint, batch=0)


def test_a_result_never_replaces_its_scan(trained, segmenter, tmp_path):
    scan = Path(shutil.copy(trained.test_scan, tmp_path / "scan.nii.gz"))
    (tmp_path / "link.nii.gz").symlink_to(scan)
    for read, written in ((scan, scan), (tmp_path / "link.nii.gz", scan), (scan, tmp_path / "link.nii.gz")):
        with pytest.raises(InputError) as caught:
            segmenter(read).save(written)
        assert_clear(caught.value, str(written), "is the scan itself")
    assert scan.read_bytes() == trained.test_scan.read_bytes()


@pytest.mark.slow
def test_the_lines_of_the_page_run_in_another_folder(trained, tmp_path):
    """docs/prediction.md, as a notebook has them; the tests' own network has to be made known first."""
    page = (ROOT / "docs" / "prediction.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    known = "import pytest\nfrom tests.helpers import networks\nnetworks.register(pytest.MonkeyPatch())\n"
    (tmp_path / "runs" / "001-paper").mkdir(parents=True)
    shutil.copy(trained.checkpoint, tmp_path / "runs" / "001-paper")
    shutil.copy(trained.test_scan, tmp_path / "scan.nii.gz")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", known + code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = read_array(trained.run / "predictions" / "s3.nii.gz")
    np.testing.assert_array_equal(read_array(tmp_path / "segmentation.nii.gz"), expected)
    name = trained.ensemble().identity.labels.names[1]
    assert f"{(expected == 1).sum() * 1.25 * 0.8 * 7.7 / 1000:.1f} ml of {name}" in done.stdout
