"""Segment new scans with a trained network, in the scans' own geometry.

python predict.py runs/001-paper/best.pt scan.nii.gz dicom_folder --out segmentations
python predict.py fold1/best.pt,fold2/best.pt DIR/test --out segmentations --tta
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
import tyro
from torch import nn

from checkpoint import load_checkpoint
from config import Config
from data.folder import list_images, read_description
from data.png import read_codes, read_image
from data.preparation import Preparation
from data.slices import Labels
from data.sources.dicom import Series, read_series, write_series
from data.sources.nifti import check_same_grid, read_channels, read_label
from data.volumes import (
    Grid,
    array_spacing,
    assemble,
    check_size,
    geometry_of_slices,
    itk_path,
    largest_components,
    to_scan,
    was_resampled,
)
from engine import segment_volume
from figures import save_montage
from metrics import format_table, score_subject, summarize
from models import build_model
from utils import InputError, atomic_path, make_folder, select_device, use_bfloat16, user_errors, write_csv


@dataclass(frozen=True)
class Options:
    """Segment scans: NIfTI files, DICOM folders, folders of PNG slices, or a split of a data set."""

    checkpoint: tyro.conf.Positional[str]
    """best.pt of a run; several, separated by commas, are averaged (the folds of one data set)."""
    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Scans. The channels of a scan in several files are separated by commas."""
    out: Path
    """Folder for the segmentations; files of the same name in it are replaced."""
    tta: bool = False
    """Average over flips of the slices."""
    batch: int = 8
    """Slices in a forward pass; changes speed and memory."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dicom: bool = False
    """Also write segmentations of DICOM folders as DICOM series."""
    probabilities: bool = False
    """Also write the probability of each class, as a 4-D NIfTI."""
    truth: tuple[Path, ...] = ()
    """Label volumes, or GT folders of PNG masks, in the order of the scans: also score."""


class Network(NamedTuple):
    """A checkpoint's network and what it needs to know of its data."""

    model: nn.Module
    config: Config
    labels: Labels
    values: np.ndarray
    """Label value of each class in segmentations."""
    preparation: Preparation | None
    """How its scans became slices; None where its data set did not say."""

    def data(self) -> tuple[Any, ...]:
        """What networks must share to be averaged."""
        options = self.config.channels, self.config.largest_component
        return *options, self.labels, self.values.tolist(), self.preparation


class Scan(NamedTuple):
    """Slices for the network, and the way back."""

    name: str
    images: np.ndarray
    """float32 (channels, D, H, W) in [0, 1]."""
    numbers: list[int]
    geometry: dict[str, Any]
    series: Series | None = None
    """The DICOM series that it was read from."""


class Segmentation(NamedTuple):
    """Class indices of a scan."""

    slices: np.ndarray
    """uint8 (D, H, W), on the grid of its slices, where main.py scores."""
    image: sitk.Image
    """On the scan's own grid; where slices were resampled, from linearly interpolated probabilities."""


def main(options: Options) -> None:
    device = select_device(options.device)
    if options.batch < 1:
        raise InputError(f"--batch {options.batch}: must be at least 1")
    if not options.inputs:
        raise InputError("no scans to segment; name NIfTI files, DICOM folders or folders of slices")
    if options.truth and len(options.truth) != len(options.inputs):
        raise InputError(f"--truth: {len(options.truth)} for {len(options.inputs)} scans; give one for each")
    for path in options.truth:
        if not path.exists():
            raise InputError(f"--truth {path}: no such file or folder; correct the name")
    check_out(options)
    networks = [load_network(Path(path), device) for path in options.checkpoint.split(",")]
    first = networks[0]
    for network, path in zip(networks, options.checkpoint.split(","), strict=True):
        if network.data() != first.data():
            raise InputError(
                f"{path}: was trained on other data than the first checkpoint, or with another --largest_component; "
                "average folds of one data set and recipe"
            )
        if options.tta and not network.config.flip_probability:
            raise InputError(f"--tta: {path} was trained without flips, so they may exchange left and right; omit it")
    make_folder(options.out)
    volumes, scores, done = [], [], set()
    names = scan_names(options.inputs)
    for position, source in enumerate(options.inputs):
        for scan in read_scans(source, names[position], first):
            if scan.name in done:
                raise InputError(f"{source}: a second scan called {scan.name}; segment it into another --out")
            done.add(scan.name)
            probabilities = segment_volume(
                [network.model for network in networks], scan.images, options.batch, device,
                use_bfloat16(first.config.amp, device), options.tta,
            )  # fmt: skip
            segmentation = write_results(options, scan, probabilities, first)
            volumes += measure(scan, segmentation, first)
            print(f"{scan.name}: {options.out / f'{scan.name}.nii.gz'}", flush=True)
            write_csv(options.out / "volumes.csv", volumes)
            if options.truth:
                scores += score(scan, segmentation, options.truth[position], first)
                write_csv(options.out / "scores.csv", scores)
    if scores:
        print(format_table(summarize(scores)))


def check_out(options: Options) -> None:
    """Raises InputError for a folder of scans or truth: results have the scans' names and would replace them."""
    out = options.out.resolve()
    for path in (*(Path(file) for source in options.inputs for file in source.split(",")), *options.truth):
        folders = [path.resolve()] if path.is_dir() else [path.resolve().parent, path.parent.resolve()]
        if any(out in (folder, folder / "Img", folder / "GT") for folder in folders):
            raise InputError(f"--out {options.out}: holds {path}, which results could replace; choose another folder")


def load_network(path: Path, device: torch.device) -> Network:
    """Raises InputError for a file that is no checkpoint of main.py."""
    checkpoint = load_checkpoint(path, device)
    try:
        config = replace(Config.from_dict(checkpoint["config"]), pretrained=False)
        model = build_model(config)
        model.load_state_dict(checkpoint["model"])
        labels = Labels(tuple(checkpoint["labels"]), tuple(checkpoint["labels"].values()))
        values = np.array(checkpoint["values"])
        stated = checkpoint["preparation"]
        preparation = None if stated is None else Preparation.from_dict(stated)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path}: no checkpoint of main.py ({str(error).splitlines()[0]})") from None
    if preparation is None:
        print(f"{path}: its data set did not say how scans became slices; taking whole axial slices, each stretched")
    model = model.to(device, memory_format=torch.channels_last).eval()
    return Network(model, config, labels, values, preparation)


def scan_names(sources: Sequence[str]) -> list[str]:
    """The last part of each path, or as many parts as tell them apart: CHAOS calls all its DICOM folders InPhase."""
    paths = []
    for source in sources:
        path = Path(source) if Path(source).is_dir() else Path(source.split(",")[0])
        # Not resolved: a link is called as it is, not as what it leads to.
        *folders, name = Path(os.path.normpath(path.absolute())).parts
        if not path.is_dir():
            name = name.removesuffix(".gz").rsplit(".", 1)[0]
        paths.append((*folders[1:], name))
    lengths = range(1, max(map(len, paths)) + 1)
    choices = [["_".join(parts[-length:]) for parts in paths] for length in lengths]
    return next((names for names in choices if len(set(names)) == len(names)), choices[0])


def read_scans(source: str, name: str, network: Network) -> Iterator[Scan]:
    """The scans of one input, whatever kind it is; `name` is for a single one.

    Raises InputError for anything else, or other channels.
    """
    path = Path(source)
    if path.is_dir() and not ((path / "Img").is_dir() or any(path.glob("Subj_*.png"))):
        series = read_series(path)
        scan = _prepare(name, [series.image], network, path)
        scans = iter([scan._replace(series=series)])
    elif path.is_dir():
        scans = _read_slices(path, network)
    else:
        files = [Path(file) for file in source.split(",")]
        volumes = []
        for file in files:
            channels = read_channels(file)
            volumes += channels
            check_same_grid(channels[0], file, volumes[0], files[0])
        scans = iter([_prepare(name, volumes, network, files[0])])
    for scan in scans:
        if len(scan.images) != network.config.channels:
            raise InputError(
                f"{source}: has {len(scan.images)} channels, the network takes {network.config.channels}; "
                "separate the files of the channels by commas"
            )
        yield scan


def _prepare(name: str, volumes: Sequence[sitk.Image], network: Network, path: Path) -> Scan:
    preparation = network.preparation or Preparation()
    try:
        images, _, geometry = preparation.apply(volumes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if min(images.shape[2:]) < 32:
        raise InputError(
            f"{path}: has slices of {images.shape[3]} x {images.shape[2]} pixels; the network needs 32 x 32"
        )
    scaled = images.astype(np.float32) / np.float32(2**preparation.bits - 1)
    return Scan(name, scaled, list(range(1, images.shape[1] + 1)), geometry)


def _read_slices(folder: Path, network: Network) -> Iterator[Scan]:
    """The subjects of a folder of slices, or of a split; the geometry is that of the data set's dataset.json.

    Raises InputError where that says that scans became slices in another way than those of the network.
    """
    described = describe(folder)
    if network.preparation and described.get("preparation"):
        ours, theirs = network.preparation.to_dict(), Preparation.from_dict(described["preparation"]).to_dict()
        changed = ", ".join(f"{name} {ours[name]} -> {theirs[name]}" for name in ours if ours[name] != theirs[name])
        if changed:
            raise InputError(
                f"{folder}: its slices were prepared in another way than those the network was trained on ({changed}); "
                "prepare them alike, or name the scans themselves"
            )
    for subject, slices in list_images(folder).items():
        arrays = [[read_image(path) for path in paths] for _, paths in slices]
        size = arrays[0][0].shape[1:]
        for (_, paths), channels in zip(slices, arrays, strict=True):
            for path, channel, first in zip(paths, channels, arrays[0], strict=True):
                if channel.shape != first.shape or channel.shape[1:] != size or min(size) < 32:
                    raise InputError(
                        f"{path}: is {channel.shape[1]} x {channel.shape[2]} pixels in {len(channel)} channels; export "
                        f"all slices of subject {subject} alike, and of at least 32 x 32"
                    )
        numbers = [number for number, _ in slices]
        geometry = described.get("subjects", {}).get(subject, {})
        check_size(geometry, size, folder, subject)
        geometry = geometry_of_slices(geometry, min(numbers), max(numbers))
        yield Scan(subject, np.stack([np.concatenate(channels) for channels in arrays], 1), numbers, geometry)


def describe(folder: Path) -> dict[str, Any]:
    """What the dataset.json says that a folder of slices belongs to: a split, or Img or GT in one."""
    split = folder.resolve()
    return read_description((split.parent if split.name in ("Img", "GT") else split).parent / "dataset.json")


def write_results(options: Options, scan: Scan, probabilities: np.ndarray, network: Network) -> Segmentation:
    """Write segmentation, montage and probabilities of a scan, `probabilities` (classes, D, H, W) being its slices'."""
    slices = classify(probabilities, network)
    save_montage(options.out / f"{scan.name}.png", scan.images, slices, network.labels.names)
    slices = assemble(scan.numbers, list(slices))
    resampled = was_resampled(scan.geometry)
    maps = on_scan(scan, probabilities) if resampled or options.probabilities else []
    image = to_scan(slices, scan.geometry)
    if resampled:
        image = _like(image, classify(np.stack([sitk.GetArrayViewFromImage(each) for each in maps]), network))
    values = network.values.astype(np.min_scalar_type(network.values.max()))
    written = _like(image, values[sitk.GetArrayViewFromImage(image)])
    with atomic_path(options.out / f"{scan.name}.nii.gz") as temporary:
        sitk.WriteImage(written, itk_path(temporary), useCompression=True)
    if options.dicom and scan.series is not None:
        write_series(options.out / f"{scan.name}_dicom", written, scan.series)
    if options.probabilities:
        with atomic_path(options.out / f"{scan.name}_probabilities.nii.gz") as temporary:
            sitk.WriteImage(sitk.JoinSeries(maps), itk_path(temporary), useCompression=True)
    return Segmentation(slices, image)


def classify(probabilities: np.ndarray, network: Network) -> np.ndarray:
    """Probabilities (classes, D, H, W) -> class indices uint8 (D, H, W)."""
    classes = probabilities.argmax(0).astype(np.uint8)
    return largest_components(classes) if network.config.largest_component else classes


def on_scan(scan: Scan, probabilities: np.ndarray) -> list[sitk.Image]:
    """Probabilities (classes, D, H, W) of slices -> each class's on the scan's own grid."""
    maps = [to_scan(assemble(scan.numbers, list(each)), scan.geometry, smooth=True) for each in probabilities]
    there = assemble(scan.numbers, list(np.ones_like(probabilities[0])))
    maps[0] += 1 - to_scan(there, scan.geometry, smooth=True)  # where no slice is, is background
    return maps


def _like(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    other = sitk.GetImageFromArray(array)
    other.CopyInformation(image)
    return other


def measure(scan: Scan, segmentation: Segmentation, network: Network) -> list[dict[str, Any]]:
    """Voxels and ml of each class in the scan's own grid."""
    image = segmentation.image
    counts = np.bincount(sitk.GetArrayViewFromImage(image).ravel(), minlength=len(network.values))
    milliliters = np.prod(image.GetSpacing()) / 1000 if "spacing" in scan.geometry else None
    return [
        {"scan": scan.name, "class": name, "voxels": int(count)}
        | ({} if milliliters is None else {"ml": round(float(count * milliliters), 3)})
        for name, count in zip(network.labels.names[1:], counts[1:], strict=True)
    ]


def score(scan: Scan, segmentation: Segmentation, truth: Path, network: Network) -> list[dict[str, Any]]:
    """Rows of scores: against a label volume on the scan's own grid, against masks in a GT folder on that of slices."""
    if truth.is_dir():
        prediction, target = segmentation.slices, assemble(scan.numbers, read_masks(scan, truth, network))
        spacing = array_spacing(scan.geometry)
    else:
        label = read_label(truth)
        check_same_grid(label, truth, segmentation.image, Path(scan.name))
        labels = Labels(network.labels.names, tuple(network.values.tolist()))
        prediction = sitk.GetArrayFromImage(segmentation.image)
        target = labels.to_classes(sitk.GetArrayFromImage(label), truth)
        spacing = Grid.of(segmentation.image).spacing[::-1] if "spacing" in scan.geometry else None
    rows = score_subject(prediction, target, network.labels.names, spacing)
    return [{"subject": scan.name} | row for row in rows]


def read_masks(scan: Scan, folder: Path, network: Network) -> list[np.ndarray]:
    """Class indices (H, W) of the scan's slices from a GT folder. Raises InputError for masks that are not theirs."""
    if describe(folder).get("labels", network.labels) != network.labels:
        raise InputError(f"{folder}: its dataset.json gives other labels than the network was trained on")
    masks = {number: paths[0] for number, paths in list_images(folder).get(scan.name, [])}
    missing = [number for number in scan.numbers if number not in masks]
    if missing:
        raise InputError(f"{folder}: has no mask of subject {scan.name}, slice {missing[0]}")
    classes = [network.labels.to_classes(read_codes(masks[number]), masks[number]) for number in scan.numbers]
    for number, mask in zip(scan.numbers, classes, strict=True):
        if mask.shape != scan.images.shape[2:]:
            height, width = scan.images.shape[2:]
            raise InputError(f"{masks[number]}: is no mask of {width} x {height} pixels, as its slice is")
    return classes


if __name__ == "__main__":
    with user_errors():
        main(tyro.cli(Options, description=Options.__doc__))
