"""Label volumes of subjects in files of any kind: found by their names, and read as class indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import SimpleITK as sitk

from data.description import Description, Labels, numbered, parse_groups
from data.folder import infer_labels
from data.geometry import Geometry
from data.listing import list_images
from data.masks import MaskValues, check_colors
from data.nifti import ENDINGS
from data.notes import number_notes
from data.png import PICTURES, read_mask
from data.sources.dicom import read_series
from data.sources.dicom_file import is_dicom
from data.sources.dicom_seg import is_segmentation, read_named, segmentation_in
from data.sources.nifti import begins_with_number, find_named
from data.volume_files import OTHERS, as_label, read_label
from data.volumes import assemble, like, to_scan
from utils import InputError, errors_begin, note, printable, read_json, some

Files = Path | dict[int, Path]  # of a subject: a file or a DICOM folder, or number of a slice -> PNG file
VOLUMES = (*(ending for ending in ENDINGS if ".img" not in ending), *OTHERS)
BESIDE = (".json", ".csv", ".txt", ".ctbl", ".npz", ".pkl", ".html")  # what programs write beside volumes
# Kind -> ending of what predict.py writes of a scan beside its segmentation and volumes.csv.
PREDICTED = {
    "overlay": "_overlay.png",
    "probabilities": "_probabilities.nii.gz",
    "dicom": ".seg.dcm",
    "dicom_series": "_dicom",
}
THEIRS = ("channel_names", "modality", "file_ending", "numTraining")  # keys of the Decathlon and of nnU-Net


class LabelVolume(NamedTuple):
    """Class indices of a subject, and where they lie."""

    path: Path
    image: sitk.Image
    """uint8, truth also IGNORED; of what is not known about the place, as `data.volumes.to_scan` has it."""
    geometry: Geometry
    """Of slices, the way to their scan; of volumes, their spacing."""
    numbers: tuple[int, ...] = ()
    """Of slices in PNG files; none of a volume."""
    placed: bool = True
    """Whether it is known where it lies."""
    is_sparse: bool = False
    """Whether slices without a class may be missing at its ends, as in a DICOM segmentation."""


# ---------------------------------------------------------------- by name


def find_subjects(source: Path, pattern: str = "", part: str = "GT") -> dict[str, Files]:
    """Subject -> its files. `source` is a file, a DICOM series, or a folder with a file or series for each subject.

    Or it is a folder of PNG slices in this repository's layout, or a split, of which `part` is taken. With a `pattern`,
    as those of `data.sources.nifti.find_pairs`, files and folders go by that. Raises InputError where there are none.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; correct the name")
    if source.is_file():
        return {_stem(source) or source.stem: source}
    found: dict[str, Files]
    if pattern:
        found = dict(find_named(source, pattern))
    elif (source / part).is_dir() or any(source.glob("Subj_*slice_*.png")):
        folder = source / "GT" if part == "GT" and (source / part).is_dir() else source
        slices = list_images(folder).items()
        found = {subject: {number: files[0] for number, files in of_subject} for subject, of_subject in slices}
    elif (source / "test" / part).is_dir():
        raise InputError(f"{source}: is a whole data set; name a split of it, such as {source / 'test'}")
    else:
        found = dict(_find_all(source))
    if not found:
        named = f" named {pattern}" if pattern else ""
        raise InputError(f"{source}: holds no volumes{named}: no NIfTI, .mha, .nrrd, PNG or DICOM")
    return found


def _find_all(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    left_out, dicom = [], []
    predicted = (folder / "volumes.csv").exists()
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if predicted and path.name.endswith(tuple(PREDICTED.values())):
            continue
        is_series = path.is_dir() and any(file.is_file() and is_dicom(file) for file in path.iterdir())
        subject = path.name if is_series else _stem(path)
        if subject and subject in found:
            raise InputError(f"{path}: a second file of {subject} beside {found[subject]}; remove one of the two")
        if subject:
            found[subject] = path
        elif path.is_file() and is_dicom(path):
            dicom.append(path)
        elif path.suffix.lower() not in BESIDE:
            left_out.append(path.name)
    if left_out:
        print(printable(f"note: {folder}: {len(left_out)} others are left out: {some(left_out)}"))
    if not dicom:
        return found
    if found:
        beside = next(iter(found.values())).name
        raise InputError(f"{folder}: holds DICOM files beside {beside}; keep one kind there, or give a name pattern")
    if is_segmentation(dicom[0]):
        return {path.name.removesuffix(".dcm"): path for path in dicom}
    return {folder.resolve().name: folder}


def _stem(path: Path) -> str:
    """The name of a volume or picture without its ending; an empty text for other files, and for folders."""
    for ending in sorted((*VOLUMES, *PICTURES), key=len, reverse=True):
        if path.name.lower().endswith(ending) and path.is_file():
            return path.name[: -len(ending)]
    return ""


# ---------------------------------------------------------------- as class indices


def read_classes(files: Files, subject: str, labels: Labels, described: Description) -> LabelVolume:
    """A subject's class indices; `described` is what is known of slices.

    Raises InputError for files that are damaged or no labels, and for values that `labels` does not have.
    """
    if isinstance(files, dict):
        return _read_slices(files, subject, labels, described)
    if files.suffix.lower() in PICTURES:
        classes = labels.to_classes(read_mask(files), files)[None]
        return LabelVolume(files, to_scan(classes, Geometry()), Geometry(), placed=False)
    segmentation = segmentation_in(files)
    path = segmentation or files
    if segmentation:
        image = read_named(path, labels.to_dict()["values"])
    else:
        image = as_label(read_series(path).image, path) if path.is_dir() else read_label(path)
    classes = like(image, labels.values_to_classes(sitk.GetArrayViewFromImage(image), path))
    return LabelVolume(path, classes, Geometry(spacing=image.GetSpacing()), is_sparse=segmentation is not None)


def _read_slices(files: dict[int, Path], subject: str, labels: Labels, described: Description) -> LabelVolume:
    masks = [labels.to_classes(read_mask(path), path) for path in files.values()]
    folder = next(iter(files.values())).parent
    for path, mask in zip(files.values(), masks, strict=True):
        if mask.shape != masks[0].shape:
            raise InputError(f"{path}: has another size than the other slices of subject {subject}; export all alike")
    for text in number_notes(subject, list(files)):
        note(folder, text)
    with errors_begin(folder):
        geometry = described.geometry_of(subject, list(files), masks[0].shape)
    classes = assemble(list(files), masks)
    image = to_scan(classes, replace(geometry, original=None, orientation=None))
    return LabelVolume(folder, image, geometry, tuple(files), placed=geometry.grid is not None)


def mask_files(found: dict[str, Files]) -> list[Path]:
    """The files of PNG masks and slices among those of all subjects."""
    slices = [path for files in found.values() if isinstance(files, dict) for path in files.values()]
    return slices + [path for path in found.values() if isinstance(path, Path) and path.suffix.lower() in PICTURES]


def labels_of_masks(paths: Sequence[Path], labels: Labels | None, described: Path) -> Labels | None:
    """The table of classes of masks, where there are any; without one, what their values say.

    Raises InputError where a value does not mean one class in all masks.
    """
    if not paths or (labels and labels.colors):
        return labels
    masks = [MaskValues.of(read_mask(path), path) for path in paths]
    check_colors(masks, described)
    return labels or infer_labels(masks, described.parent)


# ---------------------------------------------------------------- tables of classes


def read_label_table(path: Path, of_volumes: bool) -> tuple[Labels | None, dict[str, str]]:
    """The classes, and subject -> group, of a dataset.json: this repository's, the Decathlon's or nnU-Net's.

    The regions of nnU-Net, lists of values, are regions here; a value without a name of its own becomes a class. Where
    `of_volumes`, labels without values are the values of volumes. Raises InputError.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f'{path}: must hold an object such as {{"labels": {{"background": 0, "liver": 1}}}}')
    with errors_begin(path):
        groups = parse_groups(content.get("groups", {}))
        labels = content.get("labels")
        if isinstance(labels, dict) and (_is_theirs(labels) or any(key in content for key in THEIRS)):
            content = content | _our_table(labels)
        elif isinstance(labels, dict) and of_volumes and "values" not in content:
            of_number = {number: name for name, number in numbered(labels).items()}
            codes = [(name, code) for name, code in labels.items() if type(code) is int]
            if any(of_number.get(code, name) != name for name, code in codes):
                raise InputError("labels could be meant by their order or by their numbers; add values to say which")
            content = content | {"values": labels}
        known = "labels" in content or "colors" in content
        return Labels.from_dict(content) if known else None, groups


def _is_theirs(labels: dict[str, Any]) -> bool:
    return any(begins_with_number(key, value) or isinstance(value, list) for key, value in labels.items())


def _our_table(labels: dict[str, Any]) -> dict[str, Any]:
    """Their labels as ours: {"1": "liver"}, {"liver": 1} or {"tumor": [1, 2]}."""
    values: dict[str, list[Any]] = {}
    for key, value in labels.items():
        name, numbers = (value, int(key)) if begins_with_number(key, value) else (key, value)
        values[name] = numbers if isinstance(numbers, list) else [numbers]
    whole = all(numbers and all(type(number) is int for number in numbers) for numbers in values.values())
    if not whole or len(values) < len(labels):
        raise InputError('labels must give each class a value, or a list of values, such as {"background": 0, "a": 1}')
    every = {number for numbers in values.values() for number in numbers}
    single = [(numbers[0], name) for name, numbers in values.items() if len(numbers) == 1]
    if len(dict(single)) < len(single):
        raise InputError("labels gives two classes the same value; each needs its own")
    of_value = {value: f"class {value}" for value in sorted(every)} | dict(single) | {0: "background"}
    table = {of_value[value]: value for value in sorted(of_value)}
    if len(table) < len(of_value):
        raise InputError("labels gives two values one name, or calls one of them as another class is called")
    regions = {name: [of_value[value] for value in numbers] for name, numbers in values.items() if len(numbers) > 1}
    return {"labels": table, "values": table, "regions": regions}
