"""Names and colors of classes for the viewers of segmentations: ITK-SNAP and 3D Slicer."""

from __future__ import annotations

from pathlib import Path

from data.colors import class_colors
from data.description import Labels
from utils import InputError, printable, write_text

ITK_SNAP, SLICER = "labels_itksnap.txt", "labels_slicer.ctbl"


def write_viewer_labels(folder: Path, labels: Labels) -> None:
    """Write the label descriptions of the segmentations in `folder`, for ITK-SNAP and for 3D Slicer."""
    for path, text in _descriptions(folder, labels).items():
        write_text(path, text)


def check_viewer_labels(folder: Path, labels: Labels) -> None:
    """Raises InputError where `folder` has label descriptions of other labels."""
    for path, text in _descriptions(folder, labels).items():
        if path.exists() and path.read_bytes() != text.encode():
            raise InputError(f"{path}: is of segmentations with other labels; choose another folder, or remove it")


def _descriptions(folder: Path, labels: Labels) -> dict[Path, str]:
    return {folder / ITK_SNAP: _itk_snap(labels), folder / SLICER: _slicer(labels)}


def _itk_snap(labels: Labels) -> str:
    """A line for each label: index, red, green, blue, opacity, whether it is shown, and in 3-D, and its name."""
    lines = ["# ITK-SNAP label description: IDX R G B A VIS MSH LABEL"]
    for k, (name, value, color) in enumerate(_rows(labels)):
        shown = min(k, 1)  # background is not
        quoted = name.replace('"', "'")
        lines.append(f'{value} {color} {shown} {shown} {shown} "{quoted}"')
    return "\n".join(lines) + "\n"


def _slicer(labels: Labels) -> str:
    """A line for each label: value, name, red, green, blue, opacity."""
    lines = ["# 3D Slicer color table: value name R G B A"]
    for k, (name, value, color) in enumerate(_rows(labels)):
        joined = "_".join(name.split())  # a name ends at its first space; Slicer shows underscores as spaces
        lines.append(f"{value} {joined} {color} {255 * min(k, 1)}")
    return "\n".join(lines) + "\n"


def _rows(labels: Labels) -> list[tuple[str, int, str]]:
    """Name, value in volumes, and color of each class."""
    colors = [" ".join(map(str, color)) for color in class_colors(len(labels.names))]
    return list(zip(map(printable, labels.names), labels.values, colors, strict=True))
