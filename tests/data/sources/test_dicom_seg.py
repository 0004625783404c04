"""DICOM segmentations as label volumes: the voxels that pydicom has written, where it has written them."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid
from scipy.spatial.transform import Rotation

from data.sources.dicom import read_series
from data.sources.dicom_seg import extended, is_segmentation, read_segmentation
from tests.helpers.errors import assert_clear
from tests.helpers.scans import assert_same_scan, slice_position, write_dicom
from tests.helpers.segs import item, save_seg
from utils import InputError

ARRAY = np.zeros((5, 6, 7), np.uint16)
ARRAY[1, 2:4, 1:5], ARRAY[3, 1:4, 2:6], ARRAY[3, 5, 6] = 1, 2, 1


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 999),
    size=st.tuples(*[st.integers(1, 5)] * 3),
    angles=st.tuples(*[st.integers(-40, 40)] * 3),
    empty=st.booleans(),
)
def test_voxels_lie_where_those_of_a_series_lie(tmp_path_factory, seed, size, angles, empty):
    """Against a DICOM series of the same numbers, which ITK has written."""
    folder = tmp_path_factory.mktemp("seg")
    array = np.random.default_rng(seed).choice(np.array([0, 1, 5, 300], np.uint16), size)
    array[0, 0, 0] = array[-1, -1, -1] = 5  # the outermost slices are there
    if not empty:
        array[:, 0, 0] = 5  # of three slices of which the middle one is left out, nobody knows that there are three
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    for k, pixels in enumerate(array):
        write_dicom(
            folder / "series" / f"{k}.dcm", pixels, slice_position(k, direction), direction, spacing=(1.5, 1.25)
        )
    seg = save_seg(folder / "seg.dcm", array, direction, empty_frames=empty)
    assert is_segmentation(seg)
    assert not is_segmentation(folder / "series" / "0.dcm")
    series = read_series(folder / "series").image
    if len(array) == 1:
        series.SetSpacing((1.5, 1.25, 5.5))
    assert_same_scan(read_segmentation(seg), sitk.Cast(series, sitk.sitkUInt16))


@pytest.mark.parametrize("stated", [(5.5, 9.9), (None, 3.0), (1.0, 9.9), (0, 0)])
def test_slices_without_a_segment_may_be_missing(tmp_path, stated):
    """Between others they are empty, at the ends the volume is shorter; only positions say how far they are."""

    def change(dataset):
        shared = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        shared.SpacingBetweenSlices, shared.SliceThickness = stated

    for empty in (1, 3, 4, 6):  # slices 2, 5 and 7 are 3 and 2 apart
        array = np.ones((8, 2, 3), np.uint16)
        array[[k for k in (0, 1, 3, 4, 6) if k <= empty]] = 0
        first = int(np.flatnonzero(array.any((1, 2)))[0])
        image = read_segmentation(save_seg(tmp_path / f"{empty}.dcm", array, change=change))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array[first:])
        np.testing.assert_allclose(image.GetOrigin(), slice_position(first), atol=1e-6)
        assert image.GetSpacing() == pytest.approx((1.5, 1.25, 5.5))
        whole = read_segmentation(save_seg(tmp_path / "whole.dcm", array, empty_frames=True, change=change))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(whole), array)


def test_frames_that_are_closer_than_slices_stay_apart():
    """Two frames 0.4 mm apart lie within a tenth of 5 mm at one slice; neither may take the other's place."""
    image, other = sitk.Image((3, 2, 2), sitk.sitkUInt8), sitk.Image((3, 2, 4), sitk.sitkInt16)
    image[0, 0, 0], image[2, 1, 1] = 1, 2
    image.SetSpacing((1, 1, 0.4))
    image.SetOrigin((0, 0, 5))
    other.SetSpacing((1, 1, 5))
    found = extended(image, other)
    for index in ((0, 0, 0), (2, 1, 1)):
        point = image.TransformIndexToPhysicalPoint(index)
        assert found[found.TransformPhysicalPointToIndex(point)] == image[index]
    assert np.count_nonzero(sitk.GetArrayViewFromImage(found)) == 2
    assert found.GetSize()[2] * 0.4 >= 4 * 5 - 0.4  # it reaches as far as the other image


def elements(**changed):
    """Other elements of the file; None: without."""

    def change(dataset):
        for keyword, value in changed.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return change


def frame(k, **sequences):
    """Other sequences of a frame."""
    return lambda dataset: [
        setattr(dataset.PerFrameFunctionalGroupsSequence[k], keyword, value) for keyword, value in sequences.items()
    ]


NO_SPACING = item(
    PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    PixelMeasuresSequence=item(PixelSpacing=[0, 0]),
)


def compressed(dataset):
    dataset.file_meta.TransferSyntaxUID = uid.RLELossless
    dataset["PixelData"].is_undefined_length = True
    dataset.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x02\0\0\0ab\xfe\xff\xdd\xe0\0\0\0\0"


BROKEN = {
    "fractional": (elements(SegmentationType="FRACTIONAL"), "FRACTIONAL"),
    "a label map": (elements(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.7", SegmentationType="LABELMAP"), "LABELMAP"),
    "bytes": (elements(BitsAllocated=8), "BINARY"),
    "compressed": (compressed, "compressed"),
    "cut": (elements(PixelData=b"\0\0"), "cut"),
    "no pixels": (elements(PixelData=None), "not a readable"),
    "other frames": (elements(NumberOfFrames=2), "describes 4 of its 2"),
    "no frames": (elements(PerFrameFunctionalGroupsSequence=None), "describes 0"),
    "no axes": (elements(SharedFunctionalGroupsSequence=None), "no PlaneOrientationSequence"),
    "no segments": (elements(SegmentSequence=None), "ReferencedSegmentNumber"),
    "another segment": (frame(0, SegmentIdentificationSequence=item(ReferencedSegmentNumber=9)), "ReferencedSegment"),
    "overlap": (frame(2, PlanePositionSequence=item(ImagePositionPatient=[-20.0, 10.0, 35.5])), "overlap"),
    "sideways": (frame(0, PlanePositionSequence=item(ImagePositionPatient=[-10.0, 10.0, 35.5])), "straight"),
    "between": (frame(0, PlanePositionSequence=item(ImagePositionPatient=[-20.0, 10.0, 38.0])), "no equal distances"),
    "far away": (frame(0, PlanePositionSequence=item(ImagePositionPatient=[-20.0, 10.0, 550035.5])), "slices"),
    "absurd axes": (
        frame(0, PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])),
        "right angles",
    ),
    "other axes": (
        frame(0, PlaneOrientationSequence=item(ImageOrientationPatient=[0, 1, 0, -1, 0, 0])),
        "differ in orientation",
    ),
    "no spacing": (elements(SharedFunctionalGroupsSequence=NO_SPACING), "PixelSpacing"),
    "far too large": (elements(Rows=65535, Columns=65535), "cut"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_refused(tmp_path, kind):
    change, part = BROKEN[kind]
    array = ARRAY.copy()
    array[2, 0, 0] = array[3, 2:4, 1:5] = 2  # as in slice 1, for the overlap
    save_seg(tmp_path / "a.dcm", array, change=change)
    with pytest.raises(InputError) as caught:
        read_segmentation(tmp_path / "a.dcm")
    assert_clear(caught.value, "a.dcm", part)
