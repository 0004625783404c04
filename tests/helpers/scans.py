"""Scans for the tests: random volumes in any orientation, DICOM slices, and the place of the real ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import uid
from scipy.spatial.transform import Rotation

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # for volumes so small, starting threads takes longest

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.exists(), reason="the real scans are not beside the repository")
ORIENTATIONS = [
    "".join(code)
    for axes in itertools.permutations(("RL", "AP", "IS"))
    for code in itertools.product(*axes)
]  # fmt: skip
UPRIGHT = np.eye(3)


# ---------------------------------------------------------------- volumes


def make_scan(seed: int, code: str, angles=(0.0, 0.0, 0.0), size=(7, 5, 6)) -> tuple[sitk.Image, sitk.Image]:
    """A random image and label of `size` (x, y, z), turned by Euler angles in degrees, then brought to axes `code`."""
    rng = np.random.default_rng(seed)
    scans = []
    for array in (rng.normal(100, 30, size[::-1]).astype(np.float32), rng.integers(0, 4, size[::-1], np.uint8)):
        scan = sitk.GetImageFromArray(array)
        scan.SetSpacing((1.25, 0.8, 7.7))
        scan.SetOrigin((-30.5, 12.25, 100.0))
        scan.SetDirection(Rotation.from_euler("xyz", angles, degrees=True).as_matrix().ravel())
        scans.append(sitk.DICOMOrient(scan, code))
    return scans[0], scans[1]


def write_scan(folder: Path, subject: str, *scan: sitk.Image) -> None:
    """Write image and label."""
    for kind, volume in zip(("image", "label"), scan, strict=True):
        sitk.WriteImage(volume, folder / f"{kind}_{subject}.nii.gz")


def write_scans(folder: Path, size: tuple[int, int, int]) -> Path:
    """Write four subjects, s0 to s3, in four orientations to a new folder; return it."""
    folder.mkdir()
    for seed, code in enumerate(("LAS", "RPI", "ASL", "SRP")):
        write_scan(folder, f"s{seed}", *make_scan(seed, code, (5, -4, 8), size))
    return folder


def read_array(path: Path) -> np.ndarray:
    """The voxels of a volume, (D, H, W)."""
    return sitk.GetArrayFromImage(sitk.ReadImage(path))


def assert_same_scan(ours: sitk.Image, original: sitk.Image) -> None:
    """Voxels and grid are the same."""
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(ours), sitk.GetArrayViewFromImage(original))
    assert_same_grid(ours, original)


def assert_same_grid(ours: sitk.Image, original: sitk.Image, atol: float = 2e-4) -> None:
    """Size, spacing, position and axes are the same."""
    assert ours.GetSize() == original.GetSize()
    for part in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(ours, part)(), getattr(original, part)(), atol=atol)


# ---------------------------------------------------------------- DICOM


def slice_position(k: int, direction=UPRIGHT, gap: float = 5.5) -> np.ndarray:
    """Where the first pixel of a series' slice k lies, in mm."""
    return np.array([-20.0, 10.0, 30.0]) + np.asarray(direction)[:, 2] * gap * k


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    position,
    direction=UPRIGHT,
    spacing=(1.5, 1.25),
    series="1.2.3",
    charset="ISO_IR 100",
) -> None:
    """One CT or MR slice; spacing is (x, y). SliceThickness lies, as in CHAOS CT."""
    image = sitk.GetImageFromArray(pixels.astype(np.int16))
    image.SetSpacing(spacing)
    tags = {
        "0008|0060": "MR",
        "0008|0005": charset,
        "0010|0010": "X",
        "0018|0050": "9.9",
        "0020|000d": "1.2",
        "0020|000e": series,
        "0020|0032": "\\".join(f"{x:.6g}" for x in position),
        "0020|0037": "\\".join(f"{x:.8g}" for x in np.asarray(direction)[:, :2].T.ravel()),
    }
    for tag, value in tags.items():
        image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.Execute(image)


def save_slice(path: Path, pixels: np.ndarray, syntax=uid.ExplicitVRLittleEndian, **elements) -> pydicom.Dataset:
    """One CT slice by pydicom, with other elements (None: without that one), as it is."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    usual = {
        "SOPClassUID": uid.CTImageStorage,
        "SOPInstanceUID": "1.2.3.4",
        "PatientName": "X",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.4",
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1.25, 1.5],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": 8 * pixels.itemsize,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    usual["HighBit"] = elements.get("BitsStored", usual["BitsStored"]) - 1
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    usual["PixelData"] = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    for keyword, value in (usual | elements).items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def save_series(
    folder: Path, array: np.ndarray, direction=UPRIGHT, gap: float = 5.5, decimals: int = 4, **elements
) -> list[Path]:
    """A series of an array (slices, rows, columns) by pydicom, with other elements; its files in the array's order.

    They lie on the grid of `slice_position`, their positions rounded. Their names and numbers are in another order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(len(array)).permutation(len(array))
    files = [folder / f"{name}.dcm" for name in names]
    axes = [round(float(x), 8) for x in np.asarray(direction)[:, :2].T.ravel()]
    for k, path in enumerate(files):
        position = [round(float(x), decimals) for x in slice_position(k, direction, gap)]
        usual = {"SOPInstanceUID": f"1.2.3.4.{k + 1}", "FrameOfReferenceUID": "1.2.5", "InstanceNumber": names[k] + 1}
        usual |= {"ImagePositionPatient": position, "ImageOrientationPatient": axes}
        save_slice(path, array[k], **usual | elements)
    return files
