"""One DICOM file: its header, checked before memory is taken for pixels, and its modality values.

Compressed pixels go to GDCM in a process of its own, since damaged ones can crash it, in a file of nothing but the
pixels and what was checked.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import reprlib
import struct
import subprocess
import sys
import tempfile
import textwrap
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_modality_lut

from data.geometry import LONGEST
from data.png import MAX_PIXELS
from utils import InputError

MAX_BYTES = 8 * MAX_PIXELS  # of a file
ROUNDED = 0.18  # mm: how far rounding to one decimal moves a position from another at most
PLAIN = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
DEFLATED = uid.DeflatedExplicitVRLittleEndian
JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
COMPRESSED = (*JPEG, *JPEG_LS, uid.JPEG2000Lossless, uid.JPEG2000, uid.RLELossless)
# A first element of group 2 or 8: its VR or the upper half of a short length, and as big-endian VR.
ELEMENT = re.compile(rb"[\x02\x08]\0..(?:[A-Z]{2}|..\0\0)|\0[\x02\x08]..[A-Z]{2}", re.DOTALL)
# Markers of a JPEG's frame header.
FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
UNPACK = """
import sys
import numpy as np
import SimpleITK as sitk
reader = sitk.ImageFileReader()
reader.SetImageIO("GDCMImageIO")
for path in sys.argv[1:]:
    reader.SetFileName(path)
    np.save(path, sitk.GetArrayFromImage(reader.Execute()))
"""

# pydicom warns of values that break a rule; those that matter are checked here.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom\.")


class Layout(NamedTuple):
    """How a slice is stored."""

    shape: tuple[int, int]
    """Rows and columns."""
    dtype: np.dtype
    """Of a stored value, in the file's order of bytes."""
    bits: int
    """Of a stored value that count; the highest ones may hold something else."""
    compressed: bool

    @property
    def size(self) -> int:
        """Of the pixels, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_dicom(path: Path) -> bool:
    """Whether a file's name or content says that it is DICOM, with or without the preamble of 128 bytes.

    Hidden files and indices (DICOMDIR) are none. Raises InputError for a file that cannot be read.
    """
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return False
    with explain(path), path.open("rb") as file:
        start = file.read(132)
    return path.suffix.lower() == ".dcm" or start[128:] == b"DICM" or ELEMENT.match(start) is not None


def read_file(path: Path) -> pydicom.FileDataset:
    """All elements of a file. Raises InputError for a file that cannot be read, or is larger than a slice can be."""
    with explain(path):
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: has {size:,} bytes, more than a slice can have; export one slice a file")
        content = path.read_bytes()
        if DEFLATED.encode() in content[:1024]:
            _check_deflated(content)
        return pydicom.dcmread(io.BytesIO(content), force=True)


def has_pixels(path: Path, header: pydicom.FileDataset) -> bool:
    """Whether it is an image, if a damaged one: reports, presentation states, contours and the like have no pixels."""
    if "PixelData" in header or "Rows" in header:
        return True
    with explain(path):
        kind = uid.UID(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    if not kind:
        return path.suffix.lower() == ".dcm" or header.preamble is not None
    known = kind.name != kind or not kind.startswith("1.2.840.10008")
    return "Image Storage" in kind.name or not known


def study_of(path: Path) -> tuple[str, ...]:
    """The patient and the study that a file belongs to, by their identifiers; empty texts where it names none."""
    header = read_file(path)
    with explain(path):
        return tuple(str(header.get(keyword) or "").strip() for keyword in ("PatientID", "StudyInstanceUID"))


def rounding(spacing: float) -> float:
    """How far, in mm, rounding may have moved what lies at multiples of a spacing; beyond, it lies elsewhere."""
    return min(max(ROUNDED, 0.1 * spacing), 0.4 * spacing)


@contextlib.contextmanager
def explain(path: Path) -> Iterator[None]:
    """Turn whatever reading a damaged file raises into an InputError that names the file."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); correct or remove it") from None
    except RecursionError:
        raise InputError(f"{path}: its sequences are nested too deep; copy or export it again") from None
    except Exception as error:  # pydicom raises what its parsing runs into
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        raise InputError(f"{path}: not a readable DICOM slice ({reason}); copy or export it again") from None


def numbers(
    header: pydicom.Dataset, keyword: str, count: int = 1, default: float | None = None, largest: float = 1e12
) -> np.ndarray:
    """The values of an element, float64 (count,). Raises ValueError for others, or for none without a default."""
    try:
        missing = keyword not in header or header[keyword].is_empty
        values = np.array([default] * count if missing else header[keyword].value, np.float64).ravel()
    except Exception:
        missing, values = False, np.array([np.nan])
    if missing and default is None:
        raise ValueError(f"it has no {keyword}")
    if len(values) != count or not (np.abs(values) <= largest).all():
        wanted = "a number" if count == 1 else f"{count} numbers"
        raise ValueError(
            f"its {keyword} must be {wanted} of at most {largest:,.0f}, not {reprlib.repr(values.tolist())}"
        )
    return values


def whole(header: pydicom.Dataset, keyword: str, allowed: Sequence[int], default: int | None = None) -> int:
    """The value of an element. Raises ValueError for one that is not allowed, or for none without a default."""
    value = float(numbers(header, keyword, default=default)[0])
    if value not in allowed:
        raise ValueError(f"its {keyword} cannot be {value:g}")
    return int(value)


def position(header: pydicom.Dataset) -> np.ndarray:
    """The center of the first pixel in mm, (3,). Raises ValueError where it is missing or no position."""
    return numbers(header, "ImagePositionPatient", 3, largest=LONGEST)


def orientation(header: pydicom.Dataset) -> np.ndarray:
    """The directions of columns, rows and slices, (3, 3): unit vectors at right angles, one a row.

    Raises ValueError where they are missing, or further from right angles than rounding explains.
    """
    axes = numbers(header, "ImageOrientationPatient", 6, largest=LONGEST).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-2):
        raise ValueError("its ImageOrientationPatient is no two unit vectors at right angles")
    column = axes[0] / np.linalg.norm(axes[0])
    normal = np.cross(column, axes[1])
    normal /= np.linalg.norm(normal)
    return np.array([column, np.cross(normal, column), normal])


def pixel_spacing(header: pydicom.Dataset) -> np.ndarray:
    """The distances of columns and of rows in mm, (2,). Raises ValueError where they are missing or no lengths."""
    spacing = numbers(header, "PixelSpacing", 2, largest=LONGEST)
    if spacing.min() < 1 / LONGEST:
        raise ValueError("its PixelSpacing is no two lengths")
    return spacing[::-1]  # the file has that of rows first


def layout(path: Path, header: pydicom.FileDataset) -> Layout:
    """How the pixels are stored. Raises InputError for more or less than a grey slice, and ValueError for damage."""
    samples, frames = (numbers(header, keyword, default=1)[0] for keyword in ("SamplesPerPixel", "NumberOfFrames"))
    colors = str(header.get("PhotometricInterpretation") or "MONOCHROME2").strip()
    enhanced = "PerFrameFunctionalGroupsSequence" in header
    if samples != 1 or frames != 1 or enhanced or colors not in ("MONOCHROME1", "MONOCHROME2"):
        found = f"{frames:g} frames, {samples:g} samples a pixel, {textwrap.shorten(colors, 40)}"
        raise InputError(f"{path}: is no single grey slice ({found}); export one slice a file")
    rows, columns = (whole(header, keyword, range(1, 2**16)) for keyword in ("Rows", "Columns"))
    if rows * columns > MAX_PIXELS:
        raise ValueError(f"its Rows x Columns, {rows} x {columns}, are more than a slice can have")
    allocated = whole(header, "BitsAllocated", (8, 16, 32))
    bits = whole(header, "BitsStored", range(1, allocated + 1))
    whole(header, "HighBit", (bits - 1,), bits - 1)
    kind = "ui"[whole(header, "PixelRepresentation", (0, 1))]
    order = "<" if header.original_encoding[1] else ">"
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax and syntax not in (*PLAIN, DEFLATED, *COMPRESSED):
        raise ValueError(f"its TransferSyntaxUID is {uid.UID(syntax).name}; unpack it, such as with gdcmconv")
    found = Layout((rows, columns), np.dtype(f"{order}{kind}{allocated // 8}"), bits, syntax in COMPRESSED)
    _check_pixels(header, found)
    return found


def _check_pixels(header: pydicom.FileDataset, stored: Layout) -> None:
    if "PixelData" not in header:
        raise ValueError("it has no PixelData")
    element = header.get_item("PixelData")
    if not isinstance(element.value, bytes) or (element.length == 0xFFFFFFFF) != stored.compressed:
        raise ValueError("its TransferSyntaxUID does not fit its PixelData")
    held = len(element.value)
    if not stored.compressed and held < stored.size:
        raise ValueError(f"its pixels are cut: holds {held:,} of {stored.size:,} bytes")
    if not stored.compressed and held >= stored.size + max(2, stored.size // stored.shape[0]):
        raise ValueError(f"its PixelData have {held:,} bytes, its Rows x Columns {stored.size:,}")
    if element.VR == "OW" and stored.dtype.itemsize == 1 and not header.original_encoding[1]:
        raise ValueError("its pixels are bytes in big-endian words")


def read_pixels(files: Mapping[Path, Layout]) -> list[np.ndarray]:
    """Modality values of slices, (rows, columns) each; integers unless a slope has a fraction.

    They are those of PixelData with RescaleSlope and RescaleIntercept or the table of the modality; neither windows nor
    MONOCHROME1, which say how to show them, change them. Raises InputError as `layout` does, and for damaged pixels.
    """
    unpacked = _unpack([path for path, stored in files.items() if stored.compressed])
    values = []
    for path in files:
        header = read_file(path)
        with explain(path):
            stored = layout(path, header)
            array = unpacked[path] if stored.compressed else _plain(header, stored)
            values.append(_rescale(array, stored, header))
    return values


def _plain(header: pydicom.FileDataset, stored: Layout) -> np.ndarray:
    """Stored values of pixels that are not compressed."""
    array = np.frombuffer(header.get_item("PixelData").value, stored.dtype, math.prod(stored.shape))
    spare = 8 * stored.dtype.itemsize - stored.bits
    return (array.astype(stored.dtype.newbyteorder("=")) << spare >> spare).reshape(stored.shape)


def _unpack(paths: Sequence[Path]) -> dict[Path, np.ndarray]:
    """Stored values of compressed pixels."""
    if not paths:
        return {}
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        copies = [str(Path(folder, f"{k}.dcm")) for k in range(len(paths))]
        for path, copy in zip(paths, copies, strict=True):
            header = read_file(path)
            with explain(path):
                _pixels_only(header, layout(path, header)).save_as(copy, enforce_file_format=True)
        done = subprocess.run([sys.executable, "-P", "-c", UNPACK, *copies], capture_output=True, text=True)
        for path, copy in zip(paths, copies, strict=True):
            with explain(path):
                if not Path(f"{copy}.npy").exists():
                    raise ValueError(f"its pixels are damaged: {(done.stderr.splitlines() or ['no decoder'])[-1]}")
                arrays[path] = np.load(f"{copy}.npy")
    return arrays


def _pixels_only(header: pydicom.FileDataset, stored: Layout) -> pydicom.Dataset:
    """The slice without all that GDCM need not see, and without what would change its values."""
    syntax = header.file_meta.TransferSyntaxUID
    frame = next(generate_frames(header.get_item("PixelData").value, number_of_frames=1))
    if syntax in (*JPEG, *JPEG_LS):
        _check_jpeg(frame, stored)
    return grey_slice(syntax, stored, encapsulate([frame]))


def grey_slice(syntax: str, stored: Layout, pixels: bytes) -> pydicom.Dataset:
    """A new slice of these pixels, a secondary capture, without anything else."""
    new = pydicom.Dataset()
    new.file_meta = pydicom.dataset.FileMetaDataset()
    new.file_meta.TransferSyntaxUID = syntax
    new.SOPClassUID, new.SOPInstanceUID = uid.SecondaryCaptureImageStorage, uid.generate_uid(None)
    new.SamplesPerPixel, new.PhotometricInterpretation = 1, "MONOCHROME2"
    new.Rows, new.Columns = stored.shape
    new.BitsAllocated, new.BitsStored, new.HighBit = 8 * stored.dtype.itemsize, stored.bits, stored.bits - 1
    new.PixelRepresentation = int(stored.dtype.kind == "i")
    new.PixelData = pixels
    return new


def _check_jpeg(frame: bytes, stored: Layout) -> None:
    """The size in the JPEG's own header, by which memory is taken."""
    offset = 2
    while frame[offset + 1] not in FRAMES:
        offset += 2 + int.from_bytes(frame[offset + 2 : offset + 4], "big")
    if struct.unpack_from(">HH", frame, offset + 5) != stored.shape:
        raise ValueError("its pixels are damaged: they have another size than Rows x Columns")


def _rescale(array: np.ndarray, stored: Layout, header: pydicom.FileDataset) -> np.ndarray:
    """Stored values -> modality values, in the smallest integer type that holds all that could be there."""
    if array.size != math.prod(stored.shape):
        raise ValueError(f"its pixels have the shape {array.shape}")
    array = array.reshape(stored.shape)
    if header.get("ModalityLUTSequence"):
        return apply_modality_lut(array, header)
    slope, intercept = numbers(header, "RescaleSlope", default=1)[0], numbers(header, "RescaleIntercept", default=0)[0]
    if slope == 0:
        raise ValueError("its RescaleSlope is 0")
    if (slope, intercept) == (1, 0):
        return array
    if slope % 1 or intercept % 1:
        return array * slope + intercept
    lowest = -(2 ** (stored.bits - 1)) if stored.dtype.kind == "i" else 0
    ends = sorted(int(slope) * value + int(intercept) for value in (lowest, lowest + 2**stored.bits - 1))
    for kind in map(np.iinfo, ("u1", "i1", "u2", "i2", "u4", "i4")):
        if kind.min <= ends[0] and ends[1] <= kind.max:
            return (array.astype(np.int64) * int(slope) + int(intercept)).astype(kind.dtype)
    return array * slope + intercept


def _check_deflated(content: bytes) -> None:
    """Deflated elements of a file with a preamble, which pydicom would unpack to any size."""
    start = 144 + int.from_bytes(content[140:144], "little")  # after the file's meta elements and their length
    if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[start:], MAX_BYTES)) == MAX_BYTES:
        raise ValueError("it unpacks to more than a slice can have")
