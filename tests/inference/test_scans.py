"""Scans for the network: what they are called, and that they are what the network was trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data.png import read_image
from inference.networks import Ensemble
from inference.scans import read_scans, scan_names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["MR/1/InPhase"], ["InPhase"]),
        (["MR/1/InPhase", "MR/12/InPhase"], ["1_InPhase", "12_InPhase"]),
        (["MR/1/T1/InPhase", "MR/2/T1/InPhase", "CT/7"], ["1_T1_InPhase", "2_T1_InPhase", "MR_CT_7"]),
        (["a/x.nii.gz,a/y.nii.gz", "a/z.1.nii"], ["x", "z.1"]),
        (["a/x.nii", "b/x.nii.gz"], ["a_x", "b_x"]),
        (["a/x.nii", "a/x.nii"], ["x", "x"]),
    ],
)
def test_results_are_called_by_what_tells_scans_apart(tmp_path, paths, names):
    for path in paths:
        if "." not in path:
            (tmp_path / "MR" / path).mkdir(parents=True)
    sources = [",".join(f"{tmp_path}/MR/{part}" for part in path.split(",")) for path in paths]
    assert scan_names(sources) == names


def test_prepared_slices_are_what_the_network_gets(trained):
    """A scan becomes the very numbers that the loader reads from the PNGs."""
    (scan,) = read_scans(str(trained.test_scan), "s3", trained.ensemble())
    for number, images in zip(scan.numbers, scan.images.swapaxes(0, 1), strict=True):
        stored = read_image(trained.data / "test" / "Img" / f"Subj_s3slice_{number}.png")
        np.testing.assert_array_equal(images, stored)


def prepared_with(ensemble: Ensemble, **options) -> Ensemble:
    """The same network, as if its scans had become slices with other options."""
    (network,) = ensemble.networks
    identity = replace(network.identity, preparation=replace(network.preparation, **options))
    return replace(ensemble, networks=[replace(network, identity=identity)])


def test_sixteen_bits_are_a_finer_grey(trained):
    """The same scan in 8 and 16 bits: the same image up to half a grey value of the coarser."""
    ensemble = trained.ensemble()
    (coarse,) = read_scans(str(trained.image(0)), "s0", ensemble)
    (finer,) = read_scans(str(trained.image(0)), "s0", prepared_with(ensemble, bits=16))
    difference = np.abs(coarse.images - finer.images)
    assert 0.3 / 255 < difference.max() < 0.501 / 255
