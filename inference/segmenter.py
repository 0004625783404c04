"""A trained network as a function: scans in, segmentations out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from inference.networks import Ensemble, load_network
from inference.results import Segmentation, on_own_grid
from inference.scans import Scan, read_scans, scan_names, scan_of
from training.device import Machine, choose_dtype, select_device
from utils import InputError, OptionError


class Segmenter:
    """One or several networks that segment scans in the scans' own geometry.

    `checkpoint` is the best.pt of a run; several, of the folds of one data set, are averaged, and with `tta` over flips
    of the slices, too. `batch` is the number of slices in a forward pass, `device` auto, cpu, cuda or cuda:N. Raises
    InputError for a file that is no checkpoint, for networks that cannot be averaged, and for options that cannot be.
    """

    def __init__(
        self, checkpoint: str | Path | Sequence[str | Path], *, tta: bool = False, batch: int = 8, device: str = "auto"
    ) -> None:
        if batch < 1:
            raise OptionError(f"batch {batch}: must be at least 1")
        paths = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
        if not paths:
            raise InputError("no checkpoint is given; name the best.pt of a run")
        chosen = select_device(device)
        networks = [load_network(Path(path), chosen) for path in paths]
        for network in networks:
            if network.identity.preparation is None:
                print(f"note: {network.path}: does not say how scans became slices; they become whole ones of 8 bits")
            if tta and not network.config.augmentation.flip_probability:
                raise OptionError(
                    f"tta: {network.path} was trained without flips, so they may exchange left and right; omit it"
                )
        machine = Machine(chosen, choose_dtype(networks[0].config.machine.amp, chosen), workers=0)
        self.ensemble = Ensemble(networks, machine, batch, tta)
        self.labels = self.ensemble.identity.labels

    def __call__(self, scan: str | Path | np.ndarray, spacing: Sequence[float] | None = None) -> Segmentation:
        """Segment a scan: a file or folder, or its values.

        A scan in several files, one a channel, is named with commas between them. An array is (D, H, W), or
        (channels, D, H, W), with values as in the scan's file and axes towards head, back and left, as SimpleITK reads
        an axial scan; `spacing` is in mm, of D, H and W. Raises InputError for anything else.
        """
        if isinstance(scan, np.ndarray):
            if spacing is None:
                raise OptionError("spacing: an array has none; give it in mm, of its axes D, H and W")
            return self.segment(scan_of(scan, spacing, self.ensemble))
        if not isinstance(scan, str | Path):
            kind = f"{type(scan).__module__}.{type(scan).__name__}"
            raise InputError(f"scan: is of type {kind}; name its file or folder, or give a numpy array and its spacing")
        if spacing is not None:
            raise OptionError(f"spacing: {scan} has its own; omit it")
        source = str(scan)
        first, *others = itertools.islice(self.scans(source, *scan_names([source])), 2)
        if others:
            raise InputError(f"{source}: holds several subjects; name a scan, or segment the folder with predict.py")
        return self.segment(first)

    def scans(self, source: str, name: str) -> Iterator[Scan]:
        """The scans of an input, several where it is a folder of slices or pictures; `name` is for a single one."""
        return read_scans(source, name, self.ensemble)

    def segment(self, scan: Scan) -> Segmentation:
        """Segment what `scans` gives."""
        probabilities = self.ensemble.probabilities(scan.images, scan.geometry, scan.name)
        return on_own_grid(scan, probabilities, self.ensemble)
