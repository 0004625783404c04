"""Probabilities of slices on the scan's own grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from medpy.metric import binary
from PIL import Image
from scipy.ndimage import map_coordinates

from data.preparation import Preparation
from data.volumes import largest_components, to_scan
from inference.results import Segmentation, on_own_grid, write_probabilities
from inference.scans import read_scans
from inference.truth import read_truth, score
from tests.helpers.errors import assert_clear
from tests.helpers.scans import read_array
from utils import InputError


@pytest.mark.parametrize("largest", [False, True])
def test_probabilities_of_resampled_slices_are_interpolated(trained, tmp_path, largest):
    """Against SciPy at the positions of the scan's voxels; around the slices is background."""
    (network,) = trained.ensemble().networks
    identity = replace(network.identity, preparation=Preparation(spacing=(0.7, 1.9), size=44))
    network = replace(network, identity=identity, config=network.config.change(largest_component=largest))
    ensemble = replace(trained.ensemble(), networks=[network])
    (scan,) = read_scans(str(trained.image(2)), "s2", ensemble)
    probabilities = np.random.default_rng(0).dirichlet(np.full(4, 0.3), scan.images.shape[1:]).transpose(3, 0, 1, 2)
    probabilities = probabilities.astype(np.float32)
    result = on_own_grid(scan, probabilities, ensemble)
    result.save(tmp_path / "s2.nii.gz")
    write_probabilities(tmp_path, result)

    image = sitk.ReadImage(trained.image(2))
    spacing, direction = np.array(scan.geometry.spacing), np.reshape(scan.geometry.direction, (3, 3))
    voxels = list(np.ndindex(image.GetSize()))
    points = np.array([image.TransformIndexToPhysicalPoint(voxel) for voxel in voxels])
    positions = (points - scan.geometry.origin) @ direction / spacing
    inside = ((positions > -0.5) & (positions < np.array(probabilities.shape[:0:-1]) - 0.5)).all(1)
    assert 0.2 < inside.mean() < 1
    expected = np.stack([map_coordinates(each, positions.T[::-1], order=1, mode="nearest") for each in probabilities])
    expected = np.where(inside, expected, np.eye(4)[0][:, None]).reshape(4, *image.GetSize()).transpose(0, 3, 2, 1)
    found = read_array(tmp_path / "s2_probabilities.nii.gz")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(result.probabilities, found)
    classes = found.argmax(0).astype(np.uint8)
    written = read_array(tmp_path / "s2.nii.gz")
    np.testing.assert_array_equal(written, largest_components(classes) if largest else classes)
    assert (written != sitk.GetArrayFromImage(to_scan(result.slices, scan.geometry))).any()


def test_masks_of_a_truth_whose_palettes_differ_are_refused(trained, tmp_path):
    ensemble = trained.ensemble()
    (scan,) = read_scans(str(trained.data / "test"), "", ensemble)
    identity = ensemble.identity
    expected = read_truth(trained.data / "test" / "GT", scan, identity.labels, identity.preparation)
    for turn in (0, 1):
        for path in sorted((trained.data / "test" / "GT").iterdir()):
            picture = Image.open(path)
            picture.putpalette(np.roll(np.arange(256), turn * int(path.stem[-1])).astype(np.uint8).repeat(3).tobytes())
            picture.save(tmp_path / path.name)
        if not turn:
            truth = read_truth(tmp_path, scan, identity.labels, identity.preparation)
            np.testing.assert_array_equal(truth.target, expected.target)
    with pytest.raises(InputError) as caught:
        read_truth(tmp_path, scan, identity.labels, identity.preparation)
    assert_clear(caught.value, str(tmp_path), "the color of each class")


def test_regions_and_tolerances_of_the_labels_are_scored(trained):
    """The truth moved by a column, against medpy on masks joined by hand."""
    ensemble = trained.ensemble()
    (scan,) = read_scans(str(trained.data / "test"), "", ensemble)
    first, second, *_ = ensemble.identity.labels.names[1:]
    labels = replace(ensemble.identity.labels, regions={"pair": (first, second)}, tolerances={"pair": 1.3})
    truth = read_truth(trained.data / "test" / "GT", scan, labels, ensemble.identity.preparation)
    target = truth.target
    segmentation = Segmentation(scan, labels, np.roll(target, 1, axis=2), sitk.Image())
    rows = score(segmentation, truth)
    assert [row["class"] for row in rows] == [*labels.names[1:], "pair"]
    assert [row["region"] for row in rows] == [False] * (len(rows) - 1) + [True]
    a, b = (np.isin(volume, (1, 2)) for volume in (segmentation.slices, target))
    assert rows[-1]["dsc"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    spacing = scan.geometry.array_spacing
    distances = np.concatenate([binary.__surface_distances(*pair, spacing, 1) for pair in ((a, b), (b, a))])
    assert rows[-1]["nsd_mm"] == pytest.approx((distances <= 1.3).mean())
    assert (distances <= 1.3).mean() > (distances <= 1).mean()
