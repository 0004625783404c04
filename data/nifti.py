"""NIfTI files, read and written with nibabel: whole or not at all, and each voxel where the header says.

The sform counts where its code is above 0, else the qform where its code is, else nibabel's guess, with a note: the
order of nibabel, FSL and SPM.
"""

from __future__ import annotations

import gzip
import math
import zlib
from itertools import product
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.spatialimages import HeaderDataError

from data.geometry import LONGEST, MAX_VOXELS
from utils import InputError, atomic_path, note

ENDINGS = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")
MAX_CHANNELS = 64  # volumes along the fourth axis; more are a film
MAX_SHEAR = 1e-2  # cosine of the angle between two axes that still counts as a right one
DENSEST = 1040  # bytes that one byte of gzip can stand for
LAST_CODE = 5  # of what a form can lead to: scanner, aligned, Talairach, MNI, another template
THICKEST = 100  # mm; a voxel beyond it has another unit than its header says
FORMS_DIFFER = 0.1  # mm at any corner
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MILLIMETRES = {1: ("metre", 1000.0), 3: ("micrometre", 0.001)}  # NIfTI's code of a unit -> its name and length
FURTHEST = 2**26  # bytes before the voxels
FIRST_BYTES = 544  # hold the header of either version


def read_nifti(path: Path) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Values (x, y, z) or (x, y, z, channel), scaled as the header says, and the header (NIfTI-1 or NIfTI-2).

    Integers that are not scaled keep their type, the others become float64. Raises InputError for a file that is
    damaged, cut, no volume of numbers, of too many voxels, or whose voxels are not finite.
    """
    head, voxels = _parts(path)
    try:
        with _opened(head) as stream:
            header = _read_header(stream, path, single=head == voxels)
        shape = _shape(header, path)
        content = _content(voxels, _first_byte(header, head == voxels, path), math.prod(shape), header)
        slope, intercept = header.get_slope_inter()
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, HeaderDataError, ValueError, KeyError, OverflowError) as error:
        raise InputError(f"{path}: not a readable NIfTI file ({_reason(error)}); copy or export it again") from None
    values = content.view(header.get_data_dtype()).reshape(shape, order="F")
    if slope is not None and (slope, intercept) != (1, 0):
        values = values * np.float64(slope) + np.float64(intercept)
    if values.dtype.kind == "f":
        bad = np.count_nonzero(~np.isfinite(values))
        if bad:
            share = f"{bad:,} of its voxels ({bad / values.size:.1%})"
            raise InputError(f"{path}: {share} are NaN or infinite; give them a value, such as that of air")
    return values.astype(values.dtype.newbyteorder("="), copy=False), header


def to_image(values: np.ndarray, header: nib.Nifti1Header, path: Path) -> sitk.Image:
    """Values (x, y, z) on the grid that the header gives, in mm; `path` is for messages.

    Raises InputError where the axes are not at right angles; what is less than MAX_SHEAR off is set right with a note.
    """
    affine = TO_LPS @ _affine(header, path)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = right_angles(affine[:3, :3] / spacing, path)
    image = sitk.GetImageFromArray(values.T)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(direction.ravel().tolist())
    return image


def right_angles(direction: np.ndarray, path: Path) -> np.ndarray:
    """The axes at right angles that are nearest to those of a volume, (3, 3), with a note where these are others.

    Raises InputError for axes that are no unit vectors, or more than MAX_SHEAR off a right angle.
    """
    cosines = direction.T @ direction
    if np.abs(np.diag(cosines) - 1).max() > MAX_SHEAR:
        raise InputError(f"{path}: its axes are no unit vectors; export it with lengths in the spacing alone")
    shear = np.abs(cosines - np.diag(np.diag(cosines))).max()
    off = f"its axes are off a right angle by {math.degrees(math.asin(min(1, shear))):.2g} degrees"
    if shear > MAX_SHEAR:
        raise InputError(f"{path}: {off}; resample it onto a grid of right angles, such as with flirt or SimpleITK")
    if shear > 1e-5:
        note(path, f"{off}; they are taken as right ones, and a segmentation of it has its own axes again")
    left, _, right = np.linalg.svd(direction)
    return left @ right


def write_nifti(path: Path, image: sitk.Image, header: nib.Nifti1Header | None = None) -> None:
    """Write an image of 3 or 4 dimensions to `path` (.nii.gz), atomically.

    With the header of the scan whose voxels these are, the file has its forms, their codes, and its unit, to the bit.
    """
    values = sitk.GetArrayViewFromImage(image).T
    if header is None:
        header = nib.Nifti1Header() if max(values.shape) < 2**15 else nib.Nifti2Header()
        header.set_data_shape(values.shape)
        affine = _affine_of(image)
        header.set_sform(affine, code="scanner")
        header.set_qform(affine, code="scanner")
        header.set_xyzt_units("mm")
    else:
        header = header.as_byteswapped("<")
        header.set_data_shape(values.shape)
        header.set_intent("none")
        header["cal_min"] = header["cal_max"] = 0
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    with atomic_path(path) as temporary:
        kind(values, None, header).to_filename(temporary)


def _affine_of(image: sitk.Image) -> np.ndarray:
    """Voxel index -> position in mm, in the axes of NIfTI (RAS), of the first three dimensions of an image."""
    dimension = image.GetDimension()
    direction = np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return TO_LPS @ affine


# ---------------------------------------------------------------- bytes


def _parts(path: Path) -> tuple[Path, Path]:
    """The file of the header and that of the voxels: the same one but for pairs of .hdr and .img."""
    for ending, other in ((".hdr", ".img"), (".img", ".hdr"), (".hdr.gz", ".img.gz"), (".img.gz", ".hdr.gz")):
        if path.name.lower().endswith(ending):
            name = path.name[: -len(ending)] + other
            pair = next((each for each in path.parent.iterdir() if each.name.lower() == name.lower()), None)
            if pair is None:
                raise InputError(f"{path}: {name} is missing; a pair must have both of its files")
            return (path, pair) if ".hdr" in ending else (pair, path)
    return path, path


def _opened(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where it is packed, whatever its name says."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def _read_header(stream: BinaryIO, path: Path, single: bool) -> nib.Nifti1Header:
    """The header of either version and byte order, as it is; of a single file or of one of a pair."""
    block = stream.read(FIRST_BYTES)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        length = kind.template_dtype.itemsize
        if len(block) < length:
            continue
        header = kind(block[:length], check=False)
        magic = header.single_magic if single else header.pair_magic
        if int(header["sizeof_hdr"]) == length and header["magic"].item() == magic:
            return header
    raise InputError(f"{path}: does not begin as a NIfTI file (its first bytes are {block[:4]!r}); export it again")


def _shape(header: nib.Nifti1Header, path: Path) -> tuple[int, ...]:
    """(x, y, z) or (x, y, z, channels), of numbers and of a size that can be."""
    count = int(header["dim"][0])
    sides = [int(side) for side in header["dim"][1 : count + 1]]
    while len(sides) > 3 and sides[-1] == 1:
        sides.pop()
    if not 3 <= count <= 7 or len(sides) not in (3, 4) or min(sides) < 1:
        raise InputError(f"{path}: is no volume but of {' x '.join(map(str, sides))} values; export volumes")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or int(header["bitpix"]) != 8 * dtype.itemsize:
        bits = int(header["bitpix"])
        raise InputError(f"{path}: holds {dtype} of {bits} bits, not one number a voxel; export plain numbers")
    if math.prod(sides[:3]) > MAX_VOXELS:
        raise InputError(f"{path}: says that it has {tuple(sides)} voxels, of at most {MAX_VOXELS:,}; crop it")
    if len(sides) == 4 and sides[3] > MAX_CHANNELS:
        raise InputError(f"{path}: says that it has {sides[3]} channels, of at most {MAX_CHANNELS}; choose some")
    return tuple(sides)


def _first_byte(header: nib.Nifti1Header, single: bool, path: Path) -> int:
    """Where the voxels begin."""
    offset = float(header["vox_offset"])
    least = header.single_vox_offset if single else 0  # behind the header are four bytes that say what follows
    if not (offset.is_integer() and least <= offset < FURTHEST):
        raise InputError(f"{path}: its header says that voxels begin at byte {offset:g}; export it again")
    return int(offset)


def _content(path: Path, first: int, count: int, header: nib.Nifti1Header) -> np.ndarray:
    """The bytes of `count` voxels, from byte `first` on; a packed file is read to its checksum."""
    size = count * header.get_data_dtype().itemsize
    stored = path.stat().st_size
    with _opened(path) as stream:
        packed = isinstance(stream, gzip.GzipFile)
        most = stored * DENSEST if packed else stored
        if first + size > most:
            raise InputError(
                f"{path}: is cut: its header says {first + size:,} bytes, and it has at most {most:,}; copy it again"
            )
        stream.read(first)
        content = np.empty(size, np.uint8)
        filled = 0
        while filled < size:
            got = stream.readinto(memoryview(content)[filled : filled + 2**24])
            if not got:
                raise InputError(f"{path}: is cut: it holds {filled:,} of {size:,} bytes of voxels; copy it again")
            filled += got
        more = 0
        while rest := stream.read(2**20):  # a packed file says at its end whether it is whole
            more += len(rest)
            if more > size + FURTHEST:
                raise InputError(f"{path}: holds far more bytes than its header says; export it again")
    if more:
        note(path, f"holds {more:,} bytes more than its header says; they are left out")
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "it ends early"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]


# ---------------------------------------------------------------- where voxels lie


def _affine(header: nib.Nifti1Header, path: Path) -> np.ndarray:
    """Voxel index -> position in mm (RAS), by the rule at the top of this file."""
    lengths = header["pixdim"][1:4].astype(float)
    if not (np.isfinite(lengths).all() and lengths.min() > 0):
        shown = " x ".join(f"{length:g}" for length in lengths)
        raise InputError(f"{path}: its header gives a voxel {shown} mm; correct pixdim, or distances would be made up")
    forms = _forms(header, path)
    if forms:
        name, affine = next(iter(forms.items()))
    else:
        affine = header.get_base_affine()
        note(
            path,
            "neither sform nor qform say how it lies (both codes are 0); it is taken as LAS about its middle, as "
            "nibabel does, and left and right may be exchanged",
        )
    if len(forms) == 2:
        apart = _apart(forms["sform"], forms["qform"], header)
        if apart > FORMS_DIFFER:
            codes = " and ".join(f"{each} (code {int(header[f'{each}_code'])})" for each in forms)
            note(path, f"its {codes} differ by up to {apart:.1f} mm; the {name} is used, as by nibabel, FSL and SPM")
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if forms and np.abs(steps / lengths - 1).max() > 0.01:
        shown = [" x ".join(f"{value:.4g}" for value in values) for values in (steps, lengths)]
        note(path, f"has voxels of {shown[0]} mm by its {name}, and of {shown[1]} mm by pixdim; the {name} is used")
    unit = int(header["xyzt_units"]) & 7
    if unit in MILLIMETRES:
        called, length = MILLIMETRES[unit]
        note(path, f"its unit is the {called}; lengths are turned into mm")
        affine = np.diag([length, length, length, 1.0]) @ affine
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if unit in MILLIMETRES and steps.max() > THICKEST:
        raise InputError(f"{path}: has voxels of {steps.max():g} mm if its unit is the {called}; correct the unit")
    if not (steps.min() > 1 / LONGEST and np.abs(affine).max() < LONGEST):
        raise InputError(f"{path}: its header gives lengths or positions that no scan has; correct it")
    return affine


def _forms(header: nib.Nifti1Header, path: Path) -> dict[str, np.ndarray]:
    """The affines of sform and qform, where their codes are above 0; beside a sform, a qform may be none."""
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # which is what 0 means here
    sform = _form(header, "sform", path)
    try:
        qform = _form(header, "qform", path)
    except InputError:
        if sform is None:
            raise
        note(path, "its qform gives no axes; the sform is used")
        qform = None
    return {name: form for name, form in (("sform", sform), ("qform", qform)) if form is not None}


def _form(header: nib.Nifti1Header, name: str, path: Path) -> np.ndarray | None:
    """The affine of a form, None where its code is 0. Raises InputError where it is no way to lie."""
    code = int(header[f"{name}_code"])
    if code == 0:
        return None
    if not 1 <= code <= LAST_CODE:
        raise InputError(f"{path}: its {name} has code {code}, of at most {LAST_CODE}; correct it")
    try:
        affine = np.asarray(header.get_sform() if name == "sform" else header.get_qform(), float)
    except (ValueError, HeaderDataError, np.linalg.LinAlgError):
        affine = np.full((4, 4), np.nan)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or steps.min() == 0 or abs(np.linalg.det(affine[:3, :3] / steps)) < 0.1:
        raise InputError(f"{path}: its {name} has code {code} and gives no axes; correct it")
    return affine


def _apart(first: np.ndarray, second: np.ndarray, header: nib.Nifti1Header) -> float:
    """The largest distance, in mm, of a corner by one affine from the same corner by another."""
    corners = np.array([(*corner, 1) for corner in product(*((0, int(side) - 1) for side in header["dim"][1:4]))])
    return float(np.linalg.norm(corners @ (first - second).T, axis=1).max())
