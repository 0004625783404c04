"""A DICOM segmentation (SEG) of a series, written by highdicom, which only this needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import uid
from pydicom.sr.coding import Code

from data.colors import class_colors
from data.geometry import LONGEST
from data.sources.dicom import DESCRIPTION, Series
from data.sources.dicom_file import explain, is_dicom, numbers, read_file, study_of
from utils import InputError, atomic_path, printable

PROGRAM = "Multi-scale self-guided attention"
LONGEST_TEXT = 64  # characters of a LO, which has no backslash and no spaces around it
SERIES_NUMBER = 1000  # above those of scanners; the standard wants one
UTF_8 = "ISO_IR 192"
# What a slice must have for a segmentation to refer to it.
REFERENCES = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
# What the standard wants of patient and study, if empty.
COPIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip

STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
KIDNEY = Code("64033007", "SCT", "Kidney")
RIGHT, LEFT = Code("24028007", "SCT", "Right"), Code("7771000", "SCT", "Left")
EDEMA, NECROSIS = Code("79654002", "SCT", "Edema"), Code("6574001", "SCT", "Necrosis")
# The standard (CID 7159) takes these two from the NCI Thesaurus.
ENHANCING, NON_ENHANCING = Code("C113842", "NCIt", "Enhancing Lesion"), Code("C81175", "NCIt", "Non-Enhancing Lesion")


class Meaning(NamedTuple):
    """What a class is, in codes."""

    category: Code
    type: Code
    side: Code | None = None


MEANINGS = {
    "liver": Meaning(STRUCTURE, Code("10200004", "SCT", "Liver")),
    "right kidney": Meaning(STRUCTURE, KIDNEY, RIGHT),
    "left kidney": Meaning(STRUCTURE, KIDNEY, LEFT),
    "spleen": Meaning(STRUCTURE, Code("78961009", "SCT", "Spleen")),
    "edema": Meaning(ABNORMAL, EDEMA),
    "necrosis": Meaning(ABNORMAL, NECROSIS),
    "necrotic and non-enhancing": Meaning(ABNORMAL, NON_ENHANCING),
    "non-enhancing tumor": Meaning(ABNORMAL, NON_ENHANCING),
    "non-enhancing tumour": Meaning(ABNORMAL, NON_ENHANCING),
    "enhancing": Meaning(ABNORMAL, ENHANCING),
    "enhancing tumor": Meaning(ABNORMAL, ENHANCING),
    "enhancing tumour": Meaning(ABNORMAL, ENHANCING),
}


def check_writable(names: Sequence[str]) -> None:
    """Raises InputError where highdicom is missing, or DICOM cannot hold one of the names of the classes."""
    try:
        import highdicom  # noqa: F401 - slow, and optional
    except ImportError:
        raise InputError("needs highdicom, which is not installed; pip install highdicom") from None
    for name in names:
        if len(name) > LONGEST_TEXT or "\\" in name or name != name.strip():
            raise InputError(
                f"the class {name!r} has a name that DICOM cannot hold: over {LONGEST_TEXT} characters, with a "
                "backslash, or with spaces around it; write another format"
            )


def write_segmentation(
    path: Path,
    classes: sitk.Image,
    series: Series,
    names: Sequence[str],
    checkpoints: Sequence[Path],
) -> None:
    """Write class indices on the grid of `series` as a binary segmentation that refers to the slices of the series.

    Segment k is class k, called names[k], whether it is anywhere or not. Frames without a voxel are left out. Raises
    InputError for slices that cannot be read, or that have not what a reference needs, and where `path` holds anything
    but a DICOM file of the same study.
    """
    from highdicom.seg import Segmentation
    from highdicom.version import __version__

    sources = _read_sources(series, gap=classes.GetSpacing()[2])
    algorithm, colors = _algorithm(checkpoints), class_colors(len(names))
    segments = [_describe(k, names[k], colors[k], algorithm) for k in range(1, len(names))]
    array = sitk.GetArrayFromImage(classes).astype(np.uint8)
    with explain(series.files[0]):
        written = Segmentation(
            source_images=sources,
            pixel_array=array,
            segmentation_type="BINARY",
            segment_descriptions=segments,
            series_instance_uid=uid.generate_uid(None),
            series_number=SERIES_NUMBER,
            sop_instance_uid=uid.generate_uid(None),
            instance_number=1,
            manufacturer=PROGRAM,
            manufacturer_model_name=PROGRAM,
            software_versions=f"highdicom {__version__}",
            device_serial_number="none",
            content_label="SEGMENTATION",
            series_description=DESCRIPTION,
            omit_empty_frames=bool(array.any()),  # one frame at least
            specific_character_set=UTF_8,
        )
        _copy_patient(written, series.files[0])
    if path.exists() and not (is_dicom(path) and study_of(path) == study_of(series.files[0])):
        raise InputError(f"{path}: is no segmentation of this study, and would be lost; choose another folder")
    with atomic_path(path) as temporary:
        written.save_as(temporary, enforce_file_format=True)


def _read_sources(series: Series, gap: float) -> list[pydicom.Dataset]:
    """Of each slice, what its segmentation refers to, and where it lies; `gap` is the distance of slices in mm."""
    first, sources = read_file(series.files[0]), []
    with explain(series.files[0]):
        shared = {keyword: first[keyword].value for keyword in LOSSY if keyword in first} | dict.fromkeys(COPIED)
        for keyword, count in (("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
            shared[keyword] = numbers(first, keyword, count, largest=LONGEST).tolist()
        shared["Columns"], shared["Rows"], _ = series.image.GetSize()
    for path in series.files:
        header, source = read_file(path), pydicom.Dataset()
        with explain(path):
            for keyword in REFERENCES:
                if not str(header.get(keyword) or "").strip():
                    raise ValueError(f"it has no {keyword}, by which a segmentation refers to it")
                if keyword != "SOPInstanceUID" and header[keyword] != first[keyword]:
                    raise ValueError(f"its {keyword} is not that of {series.files[0].name}")
                setattr(source, keyword, header[keyword].value)
            source.ImagePositionPatient = numbers(header, "ImagePositionPatient", 3, largest=LONGEST).tolist()
            source.SliceThickness = source.SpacingBetweenSlices = gap
            for keyword, value in shared.items():
                setattr(source, keyword, value)
        sources.append(source)
    if len({source.SOPInstanceUID for source in sources}) < len(sources):
        raise InputError(
            f"{series.files[0].parent}: two slices have one SOPInstanceUID, which must differ; export them again"
        )
    return sources


def _copy_patient(written: pydicom.Dataset, path: Path) -> None:
    """Take patient and study from a slice, in the character set of what is written."""
    header = read_file(path)
    for keyword in COPIED:
        if keyword in header:
            value = header[keyword].value
            if "\N{REPLACEMENT CHARACTER}" in str(value):
                raise ValueError(f"its {keyword} is not in its SpecificCharacterSet")
            setattr(written, keyword, value)


def _algorithm(checkpoints: Sequence[Path]) -> pydicom.Sequence:
    """This repository, with the names of the checkpoints and of their runs."""
    from highdicom.content import AlgorithmIdentificationSequence

    names = printable(", ".join("/".join(path.parts[-2:]) for path in checkpoints)).replace("\\", "/")
    family = Code("123110", "DCM", "Artificial Intelligence")
    return AlgorithmIdentificationSequence(
        PROGRAM, family, version=names[:LONGEST_TEXT], parameters={"checkpoints": names}
    )


def _describe(number: int, name: str, color: tuple[int, int, int], algorithm: pydicom.Sequence) -> pydicom.Dataset:
    """A segment. A class that has no code of the standard gets one of its own, which is its name."""
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr.coding import CodedConcept

    own = Meaning(Code("class", "99LOCAL", "Class of a data set"), Code(name, "99LOCAL", name))
    meaning = MEANINGS.get(name.lower(), own)
    described = SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=meaning.category,
        segmented_property_type=meaning.type,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=uid.generate_uid(None),
        tracking_id=name,
        display_color=CIELabColor.from_rgb(*color),
    )
    if meaning.side:
        side = CodedConcept(*meaning.side[:3])
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    return described
