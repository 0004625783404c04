"""Segment a NIfTI scan with a network that export.py wrote: without PyTorch, and without the rest of this repository.

python segment_onnx.py network.onnx scan.nii.gz segmentation.nii.gz    (several scans: its channels, in their order)

It needs numpy, nibabel, onnxruntime, and scipy for networks that were trained with --largest_component. It does what
predict.py does, but refuses networks of resampled slices (--spacing), of pictures, and of slices of unknown origin.
"""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

AXES = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}  # of slices: where columns, rows and slices lead to


def main(model, *scans, out):
    session = onnxruntime.InferenceSession(model)
    about = json.loads(session.get_modelmeta().custom_metadata_map["segmentation"])
    how, wanted = about["preparation"], session.get_inputs()[0].shape[1]
    if how is None or how["spacing"] or how["normalize"] == "none":
        sys.exit(f"{model}: its slices were resampled, or are pictures, or of unknown origin; use predict.py")
    if Path(out).exists() or not Path(out).parent.is_dir() or not out.endswith((".nii", ".nii.gz")):
        sys.exit(f"{out}: must be NAME.nii.gz, in a folder that exists, and not replace a file; choose another name")
    files = [nib.load(scan) for scan in scans]
    affine, shape = files[0].affine, files[0].shape[:3]
    axes = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    crooked = not np.allclose(axes.T @ axes, np.eye(3), atol=1e-2) or abs(axes).max(0).min() < 0.75
    if crooked or any(each.shape[:3] != shape or not np.allclose(each.affine, affine, atol=1e-3) for each in files):
        sys.exit(f"{', '.join(scans)}: not on one grid of right angles, near the body's axes; use predict.py")
    channels = [each for file in files for each in np.moveaxis(np.asanyarray(file.dataobj).reshape(*shape, -1), -1, 0)]
    if len(channels) != wanted or not all(np.isfinite(channel).all() for channel in channels):
        sys.exit(f"{', '.join(scans)}: must hold {wanted} channels of finite values; correct them")
    steps = np.where(np.equal(shape, 1) & (shape.count(1) == 1), np.inf, nib.affines.voxel_sizes(affine))
    acquired = nib.aff2axcodes(affine)[steps.argmax()] if steps.max() >= 1.2 * sorted(steps)[1] else "S"
    plane = list(AXES)["SIAPLR".index(acquired) // 2] if how["axis"] == "acquired" else how["axis"]
    own, turned = io_orientation(affine), axcodes2ornt(AXES[plane])
    upright = [apply_orientation(channel, ornt_transform(own, turned)).T.astype(np.float64) for channel in channels]
    before, sides = upright[0].shape[1:], [how["size"] or side for side in upright[0].shape[1:]]
    if min(sides) < 32:
        sys.exit(f"{scans[0]}: has slices of {sides[1]} x {sides[0]} pixels; the network needs 32 x 32")
    first = [(old - new) // 2 for old, new in zip(before, sides, strict=True)]
    images = np.stack([grey(cut(each, first, sides, np.nan), each.min(), how) for each in upright], 1)
    classes = np.concatenate([session.run(None, {"image": image[None]})[0].argmax(1) for image in images])
    for k in np.unique(classes[classes > 0]) if about["largest_component"] else ():
        from scipy import ndimage

        pieces, _ = ndimage.label(classes == k)
        classes[(pieces > 0) & (pieces != 1 + np.bincount(pieces.ravel())[1:].argmax())] = 0
    values = np.array(about["values"], np.min_scalar_type(max(about["values"])))
    whole = apply_orientation(values[cut(classes, [-k for k in first], before, 0)].T, ornt_transform(turned, own))
    nib.save(type(files[0])(whole, affine, files[0].header, dtype=whole.dtype), out)


def cut(volume, first, sides, outside):
    """So many rows and columns of a volume from the `first` on; where it has none is the value `outside`."""
    margins = [(max(0, -k), max(0, k + s - n)) for k, s, n in zip(first, sides, volume.shape[1:], strict=True)]
    rows, columns = (slice(max(0, k), max(0, k) + side) for k, side in zip(first, sides, strict=True))
    return np.pad(volume, [(0, 0), *margins], constant_values=outside)[:, rows, columns]


def grey(volume, outside, how):
    """A volume (slices, rows, columns) or a slice, padded with NaN, which is `outside`, as float32 from 0 to 1."""
    if how["normalize"] == "slice" and not how["window"] and volume.ndim == 3:
        return np.stack([grey(pixels, outside, how) for pixels in volume])
    low, high = np.nanpercentile(volume, (0.5, 99.5) if how["normalize"] == "percentiles" else (0, 100))
    if how["window"]:  # center and width
        low, high = (how["window"][0] + sign * how["window"][1] / 2 for sign in (-1, 1))
    most, volume = 2 ** how["bits"] - 1, np.nan_to_num(volume, nan=outside)
    scale = most / (float(high) - float(low)) if high > low else 0.0
    return np.rint(((volume - low) * scale).clip(0, most)).astype(np.float32) / np.float32(most)


if __name__ == "__main__":
    sys.exit(__doc__) if len(sys.argv) < 4 else main(*sys.argv[1:-1], out=sys.argv[-1])
