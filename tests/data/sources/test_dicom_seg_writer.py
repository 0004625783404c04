"""DICOM segmentations as highdicom, pydicom and our own reader open them again, and what their segments mean."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from scipy.spatial.transform import Rotation

from data.sources.dicom import Series, read_series
from data.sources.dicom_seg import extended, read_named, read_segmentation
from data.sources.dicom_seg_writer import MEANINGS, check_writable, write_segmentation
from data.sources.nifti import BRATS_CLASSES, DECATHLON_BRATS
from data.volume_files import aligned
from tests.helpers.errors import assert_clear, assert_one_line
from tests.helpers.scans import UPRIGHT, assert_same_scan, save_series
from utils import InputError

highdicom = pytest.importorskip("highdicom")
NAMES = ("background", "right kidney", "Leber, läsion", "spleen")
CHECKPOINTS = [Path("runs/001-paper/best.pt"), Path("runs/002-paper/best.pt")]
PIXELS = np.random.default_rng(0).integers(0, 4000, (6, 32, 33)).astype(np.uint16)


def classes_in(*slices: int) -> np.ndarray:
    """Class indices without class 2, of which only these slices have any."""
    array = np.zeros(PIXELS.shape, np.uint8)
    array[list(slices)] = np.random.default_rng(1).choice(np.array([0, 1, 3], np.uint8), (len(slices), 32, 33))
    return array


def write(path: Path, array: np.ndarray, folder: Path, names=NAMES, checkpoints=CHECKPOINTS) -> Series:
    """Write a segmentation of the series in a folder, which is returned."""
    series = read_series(folder)
    classes = sitk.GetImageFromArray(array)
    classes.CopyInformation(series.image)
    write_segmentation(path, classes, series, names, checkpoints)
    return series


def compress(files: list[Path], syntax: str) -> None:
    """Compress the pixels of slices, without loss."""
    for path in files:
        dataset = pydicom.dcmread(path)
        if syntax == uid.JPEG2000Lossless:
            stream = io.BytesIO()
            Image.fromarray(dataset.pixel_array).save(stream, "JPEG2000", no_jp2=True, irreversible=False)
            dataset.PixelData = encapsulate([stream.getvalue()])
            dataset["PixelData"].is_undefined_length = True
            dataset.file_meta.TransferSyntaxUID = syntax
        else:
            dataset.compress(syntax)
        dataset.save_as(path)


def by_pydicom(seg: pydicom.Dataset, files: list[Path]) -> np.ndarray:
    """The numbers of the segments in slices, from the bits, each frame in the slice that it refers to."""
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in files]
    array = np.zeros((len(files), seg.Rows, seg.Columns), np.uint8)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, mask in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True):
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        k = uids.index(source.ReferencedSOPInstanceUID)
        position = pydicom.dcmread(files[k]).ImagePositionPatient
        assert frame.PlanePositionSequence[0].ImagePositionPatient == position
        array[k][mask == 1] = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return array


@pytest.mark.parametrize(
    ("filled", "angles", "syntax"),
    [
        ((1, 2, 4), (0, 0, 0), None),
        ((1, 2, 4), (20, -30, 10), uid.RLELossless),
        ((3,), (20, -30, 10), None),
        ((3,), (0, 0, 180), uid.JPEGLSLossless),
        ((0, 5), (90, 0, 90), None),
        ((0, 5), (20, -30, 10), uid.JPEG2000Lossless),
        ((), (20, -30, 10), None),
    ],
)
def test_all_readers_find_each_voxel_where_it_was(tmp_path, capfd, filled, angles, syntax):
    """Of sources in any position and coding; frames without a voxel are left out, unless there are no others."""
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    files = save_series(tmp_path / "series", PIXELS, direction)
    if syntax:
        compress(files, syntax)
    array, path = classes_in(*filled), tmp_path / "x.seg.dcm"
    series = write(path, array, tmp_path / "series")
    assert series.files == files
    assert capfd.readouterr() == ("", "")

    seg = highdicom.seg.segread(path)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in files]
    options = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    np.testing.assert_array_equal(seg.get_pixels_by_source_instance(uids, **options), array)
    dataset = pydicom.dcmread(path)
    np.testing.assert_array_equal(by_pydicom(dataset, files), array)
    assert dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [1.25, 1.5]
    ours = extended(read_segmentation(path), series.image)
    assert ours.GetSize() == series.image.GetSize()
    expected = sitk.GetImageFromArray(array.astype(np.uint16))
    expected.CopyInformation(series.image)
    assert_same_scan(ours, expected)


ALONG = ((0, 0, 0), (180, 0, 0))
ASKEW = ((12, -20, 8), (-95, 40, 33))
STACKS = [
    ((*ALONG, *ASKEW), 0.625, 2, 120, range(50, 60)),
    (ALONG, 1.25, 1, 60, range(20, 30)),  # askew, rounding moves slices by more than 5 % of their distance
    (ALONG, 1.25, 1, 60, range(5, 59)),
    ((*ALONG, *ASKEW), 0.6992, 3, 200, range(10, 190)),
    ((*ALONG, *ASKEW), 0.9765625, 3, 100, (90,)),
    ((*ALONG, *ASKEW), 3.0, 4, 20, (3, 8, 14)),
    ((*ALONG, *ASKEW), 3.3, 1, 30, range(10, 20)),
    ((*ALONG, *ASKEW), 1.0, 4, 30, (2, 11, 21)),
]


@pytest.mark.parametrize(
    ("angles", "gap", "decimals", "count", "filled"),
    [(angles, *stack) for lies, *stack in STACKS for angles in lies],
)
def test_slices_at_rounded_positions_keep_their_place(tmp_path, angles, gap, decimals, count, filled):
    """Scanners write positions of few decimals; frames are those of the source that they refer to."""
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    pixels, array = np.zeros((2, count, 5, 6), np.uint8)
    files = save_series(tmp_path / "series", pixels.astype(np.uint16), direction, gap, decimals)
    array[list(filled)] = np.random.default_rng(count).choice(np.array([1, 3], np.uint8), (len(filled), 5, 6))
    series = write(tmp_path / "x.dcm", array, tmp_path / "series")
    np.testing.assert_array_equal(by_pydicom(pydicom.dcmread(tmp_path / "x.dcm"), files), array)
    stored = read_segmentation(tmp_path / "x.dcm")
    origin = stored.GetOrigin()
    ours = aligned(extended(stored, series.image), Path("x"), series.image, Path("y"))
    assert stored.GetOrigin() == origin  # it is not changed
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), array)


def test_it_replaces_none_of_another_study(tmp_path):
    for patient in "ab":
        save_series(tmp_path / patient, PIXELS, StudyInstanceUID=f"1.2.{ord(patient)}")
    write(tmp_path / "x.dcm", classes_in(2), tmp_path / "a")
    kept = (tmp_path / "x.dcm").read_bytes()
    with pytest.raises(InputError) as caught:
        write(tmp_path / "x.dcm", classes_in(2), tmp_path / "b")
    assert_one_line(caught.value, "x.dcm: is no segmentation of this study", "choose another folder")
    assert (tmp_path / "x.dcm").read_bytes() == kept
    write(tmp_path / "x.dcm", classes_in(1), tmp_path / "a")
    assert (tmp_path / "x.dcm").read_bytes() != kept


def test_it_belongs_to_the_study_of_its_source(tmp_path):
    details = {"PatientName": "Müller^J", "PatientID": "7", "StudyDate": "20200101", "StudyID": "S", "PatientSex": "F"}
    files = save_series(tmp_path / "series", PIXELS, SpecificCharacterSet="ISO_IR 100", **details)
    for name in "ab":
        write(tmp_path / name, classes_in(2), tmp_path / "series")
    first, second = (pydicom.dcmread(tmp_path / name) for name in "ab")
    source = pydicom.dcmread(files[0])
    for keyword in (*details, "StudyInstanceUID", "FrameOfReferenceUID"):
        assert first[keyword].value == source[keyword].value
    assert (first.SOPClassUID, first.Modality, first.SegmentationType) == (uid.SegmentationStorage, "SEG", "BINARY")
    assert first.SeriesDescription == "Segmentation"
    assert len({dataset.SeriesInstanceUID for dataset in (first, second, source)}) == 3
    assert len({dataset.SOPInstanceUID for dataset in (first, second, source)}) == 3
    referred = first.ReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == source.SeriesInstanceUID
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in files]
    assert [item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence] == uids
    assert [item.ReferencedSOPInstanceUID for item in first.SourceImageSequence] == uids


def test_a_lossy_source_is_told(tmp_path):
    lossy = {"LossyImageCompression": "01", "LossyImageCompressionRatio": 9}
    lossy["LossyImageCompressionMethod"] = "ISO_10918_1"
    save_series(tmp_path / "series", PIXELS, **lossy)
    write(tmp_path / "x.dcm", classes_in(2), tmp_path / "series")
    assert {keyword: pydicom.dcmread(tmp_path / "x.dcm")[keyword].value for keyword in lossy} == lossy


def test_segments_say_what_they_are_and_what_found_them(tmp_path):
    save_series(tmp_path / "series", PIXELS)
    write(tmp_path / "x.dcm", classes_in(2), tmp_path / "series")
    seg = highdicom.seg.segread(tmp_path / "x.dcm")
    assert seg.segment_numbers == [1, 2, 3]
    kidney, own, spleen = (seg.get_segment_description(number) for number in (1, 2, 3))
    assert [kidney.segment_label, own.segment_label, spleen.segment_label] == list(NAMES[1:])
    assert kidney.segmented_property_type == codes.SCT.Kidney and spleen.segmented_property_type == codes.SCT.Spleen
    side = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert (side.CodeValue, side.CodingSchemeDesignator, side.CodeMeaning) == tuple(codes.SCT.Right)[:3]
    assert spleen.segmented_property_category == codes.SCT.AnatomicalStructure
    concept = own.segmented_property_type
    assert (concept.value, concept.scheme_designator, concept.meaning) == (NAMES[2], "99LOCAL", NAMES[2])
    assert len({segment.tracking_uid for segment in (kidney, own, spleen)}) == 3
    assert kidney.tracking_id == "right kidney" and kidney.algorithm_type.value == "AUTOMATIC"
    algorithm = kidney.algorithm_identification
    assert algorithm.name == "Multi-scale self-guided attention"
    assert algorithm.version == "001-paper/best.pt, 002-paper/best.pt"
    orange, sky_blue, bluish_green = (230, 159, 0), (86, 180, 233), (0, 158, 115)  # as Okabe and Ito give them
    for segment, color in zip((kidney, own, spleen), (orange, sky_blue, bluish_green), strict=True):
        shown = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb()
        np.testing.assert_allclose(shown, color, atol=2)


def test_the_codes_are_those_of_the_standard():
    lesions = [code for code in (getattr(codes.cid7159, name) for name in dir(codes.cid7159)) if code]
    for name, (category, kind, side) in MEANINGS.items():
        assert category in (codes.cid7150.AnatomicalStructure, codes.cid7150.MorphologicallyAbnormalStructure)
        organ = category == codes.cid7150.AnatomicalStructure
        allowed = [codes.SCT.Liver, codes.SCT.Kidney, codes.SCT.Spleen] if organ else lesions
        assert any(tuple(kind)[:3] == tuple(code)[:3] for code in allowed), name
        expected = {"right": codes.cid244.Right, "left": codes.cid244.Left}.get(name.split()[0])
        assert (side and tuple(side)[:3]) == (expected and tuple(expected)[:3])
    tumours = {*BRATS_CLASSES.values(), *DECATHLON_BRATS} - {"background"}
    assert MEANINGS.keys() >= tumours | {"liver", "right kidney", "left kidney", "spleen"}


def test_long_names_of_classes_and_codes(tmp_path):
    """The code of a class is its name, which may be longer than the 16 characters of a short code."""
    save_series(tmp_path / "series", PIXELS)
    names = ("background", "x" * 64, "肝臓", "http://a")
    check_writable(names)
    write(tmp_path / "x.dcm", classes_in(2), tmp_path / "series", names)
    seg = highdicom.seg.segread(tmp_path / "x.dcm")
    found = [seg.get_segment_description(number) for number in (1, 2, 3)]
    assert [segment.segmented_property_type.value for segment in found] == list(names[1:])
    assert [segment.segment_label for segment in found] == list(names[1:])


def test_checkpoints_of_any_name_are_told(tmp_path):
    save_series(tmp_path / "series", PIXELS)
    name = "x\\\udcff " * 20
    write(tmp_path / "x.dcm", classes_in(2), tmp_path / "series", checkpoints=[Path("runs", name, "best.pt")])
    algorithm = highdicom.seg.segread(tmp_path / "x.dcm").get_segment_description(1).algorithm_identification
    assert algorithm.version == ("x//udcff " * 20)[:64].strip()
    assert algorithm.parameters == {"checkpoints": "x//udcff " * 20 + "/best.pt"}


@pytest.mark.parametrize("name", ["x" * 65, "a\\b", " a", "a "])
def test_names_that_dicom_cannot_hold_are_refused(name):
    with pytest.raises(InputError) as caught:
        check_writable(("background", name))
    assert_one_line(caught.value, "the class", "has a name that DICOM cannot hold", "write another format")


def test_without_highdicom_a_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError) as caught:
        check_writable(NAMES)
    assert_one_line(caught.value, "needs highdicom, which is not installed; pip install highdicom")


UNFIT = {
    "no frame of reference": ({"FrameOfReferenceUID": None}, "FrameOfReferenceUID"),
    "no study": ({"StudyInstanceUID": ""}, "StudyInstanceUID"),
    "an unknown class": ({"SOPClassUID": "1.2.3.4"}, "1.2.3.4"),
    "one name for all": ({"SOPInstanceUID": "1.2.3"}, "two slices have one SOPInstanceUID"),
    "a name in no character set": (
        {"PatientName": b"\xff\xfe^\xff", "SpecificCharacterSet": "ISO_IR 192"},
        "its PatientName is not in its SpecificCharacterSet",
    ),
}


@pytest.mark.filterwarnings("ignore:Failed to decode")
@pytest.mark.parametrize("kind", UNFIT)
def test_slices_that_cannot_be_referred_to_are_refused(tmp_path, kind):
    elements, part = UNFIT[kind]
    save_series(tmp_path / "series", PIXELS, **elements)
    (tmp_path / "x.dcm").write_text("before")
    with pytest.raises(InputError) as caught:
        write(tmp_path / "x.dcm", classes_in(2), tmp_path / "series")
    assert_clear(caught.value, "series", part)
    assert {path.name for path in tmp_path.iterdir()} == {"series", "x.dcm"}
    assert (tmp_path / "x.dcm").read_text() == "before"


def test_slices_of_two_studies_are_refused(tmp_path):
    files = save_series(tmp_path / "series", PIXELS)
    dataset = pydicom.dcmread(files[3])
    dataset.StudyInstanceUID = "1.7"
    dataset.save_as(files[3])
    with pytest.raises(InputError) as caught:
        write(tmp_path / "x.dcm", classes_in(2), tmp_path / "series")
    assert_clear(caught.value, files[3].name, f"its StudyInstanceUID is not that of {files[0].name}")


def test_rounded_axes_and_odd_dates_are_taken(tmp_path):
    """As the reader of series takes them."""
    files = save_series(tmp_path / "series", PIXELS, StudyDate="2016.1.1", PatientSex="?", PatientBirthDate="unknown")
    dataset = pydicom.dcmread(files[3])
    dataset.ImageOrientationPatient = [1, 0.0001, 0, 0, 1, 0]
    dataset.save_as(files[3])
    write(tmp_path / "x.dcm", classes_in(1, 4), tmp_path / "series")
    written = pydicom.dcmread(tmp_path / "x.dcm")
    assert (written.StudyDate, written.PatientSex, written.PatientBirthDate) == ("2016.1.1", "?", "unknown")
    np.testing.assert_array_equal(by_pydicom(written, files), classes_in(1, 4))


def test_a_single_slice(tmp_path):
    files = save_series(tmp_path / "series", PIXELS[:1], SliceThickness=4)
    write(tmp_path / "x.dcm", classes_in(0)[:1], tmp_path / "series")
    np.testing.assert_array_equal(by_pydicom(pydicom.dcmread(tmp_path / "x.dcm"), files), classes_in(0)[:1])
    image = read_segmentation(tmp_path / "x.dcm")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), classes_in(0)[:1])
    assert image.GetSpacing() == (1.5, 1.25, 4)


# ---------------------------------------------------------------- by the names of segments


def test_segments_are_the_classes_that_they_are_called_as(tmp_path):
    save_series(tmp_path / "series", PIXELS, UPRIGHT)
    array = classes_in(*range(6))
    write(tmp_path / "x.dcm", array, tmp_path / "series")
    values = {"background": 0, "spleen": 1, "liver": 2, "right kidney": 7}
    found = sitk.GetArrayFromImage(read_named(tmp_path / "x.dcm", values))
    np.testing.assert_array_equal(found, np.array([0, 7, 99, 1])[array])
    capitals = {"background": 0, "Spleen": 1, "liver": 2, "RIGHT kidney": 7}
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_named(tmp_path / "x.dcm", capitals)), found)
    for others in ({"background": 0, "a": 1}, {"background": 0, "right kidney": 1}):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read_named(tmp_path / "x.dcm", others)), array)
    with pytest.raises(InputError) as caught:
        read_named(tmp_path / "x.dcm", {"background": 0, "spleen": 1})
    assert_clear(caught.value, "x.dcm: its segment 3 is called spleen, which has the value 1", "called right kidney")
