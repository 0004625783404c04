"""DICOM segmentations (SEG), written with pydicom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.sequence import Sequence

from tests.helpers.scans import UPRIGHT, slice_position

GAP = 5.5  # that of slice_position


def item(**elements) -> Sequence:
    """A sequence of one item."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return Sequence([dataset])


def save_seg(
    path: Path,
    array: np.ndarray,
    direction=UPRIGHT,
    empty_frames: bool = False,
    change: Callable[[Dataset], None] = lambda dataset: None,
) -> Path:
    """A SEG of an array (slices, rows, columns) with the numbers of its segments, on the grid of `slice_position`."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SegmentationStorage, "1.2.3"
    dataset.Modality, dataset.SegmentationType = "SEG", "BINARY"
    dataset.Rows, dataset.Columns = array.shape[1:]
    dataset.BitsAllocated = dataset.BitsStored = dataset.SamplesPerPixel = 1
    dataset.HighBit = dataset.PixelRepresentation = 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    numbers = [int(k) for k in np.unique(array) if k]
    dataset.SegmentSequence = Sequence([item(SegmentNumber=k, SegmentLabel=f"s{k}")[0] for k in numbers])
    axes = [round(float(x), 8) for x in np.asarray(direction)[:, :2].T.ravel()]
    dataset.SharedFunctionalGroupsSequence = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=axes),
        PixelMeasuresSequence=item(PixelSpacing=[1.25, 1.5], SliceThickness=9.9, SpacingBetweenSlices=GAP),
    )
    frames, masks = [], []
    for k in numbers:  # segment by segment, the last slice first
        for z in reversed(range(len(array))):
            if empty_frames or (array[z] == k).any():
                position = [round(float(x), 6) for x in slice_position(z, direction)]
                place = item(ImagePositionPatient=position)
                segment = item(ReferencedSegmentNumber=k)
                frames.append(item(PlanePositionSequence=place, SegmentIdentificationSequence=segment)[0])
                masks.append(array[z] == k)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = pack_bits(np.stack(masks).astype(np.uint8))
    dataset["PixelData"].VR = "OB"
    change(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path
