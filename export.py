"""Write a trained network to an ONNX file, which needs no PyTorch, and compare the two.

python export.py runs/001-paper/best.pt --out network.onnx
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

import cli
from inference.networks import TrainedNetwork, load_network
from models import describe_network
from models.kernels.onnx import translations
from training.checkpoint import content_of
from utils import InputError, atomic_path, make_folder, user_errors

OPSET = 18  # onnxruntime 1.14 and later run it
VERSION = 1  # of the description in the file
CLOSE = 1e-3  # the most that a probability may differ from PyTorch's; rounding in float32 makes 1e-7 to 1e-4
TRANSLATED = f"network that PyTorch {torch.__version__} can write as ONNX for slices of any size"


@dataclass(frozen=True)
class Options:
    """Write the network of a checkpoint to an ONNX file, compared with PyTorch."""

    checkpoint: tyro.conf.Positional[Path]
    """best.pt of a run."""
    out: Path
    """The file, NAME.onnx; one of this name is replaced."""


class Probabilities(nn.Module):
    """A network and the softmax over its classes."""

    def __init__(self, trained: TrainedNetwork) -> None:
        super().__init__()
        self.network = trained.model
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, C, H, W), any H, W >= 32 -> probabilities (B, classes, H, W)."""
        return self.network(image).softmax(1)


def main(options: Options) -> None:
    """Translate the network, compare the file with it, and put the file in its place where they agree."""
    check(options)
    trained = load_network(options.checkpoint, torch.device("cpu"))
    images = random_images(trained)
    make_folder(options.out.parent)
    with atomic_path(options.out) as temporary:
        with content_of(options.checkpoint, TRANSLATED), torch.no_grad():
            network = Probabilities(trained)
            expected = [network(torch.from_numpy(image)).numpy() for image in images]
            print(f"{options.checkpoint}: translating its network, which may take minutes", flush=True)
            write(temporary, network, trained)
            found = run(temporary, images)
        differences = [largest_difference(*pair) for pair in zip(found, expected, strict=True)]
        if not np.max(differences) <= CLOSE:  # NaN, too
            shape = images[int(np.argmax(differences))].shape
            raise InputError(
                f"{options.checkpoint}: as ONNX, its network would give probabilities that differ from PyTorch's by "
                f"{np.max(differences):.1e}, more than {CLOSE:g}, for an image {shape}; so use predict.py"
            )
    shapes = ", ".join(" x ".join(map(str, image.shape)) for image in images)
    print(f"{options.out}: probabilities differ from PyTorch's by at most {max(differences):.1e} in images {shapes}")


def check(options: Options) -> None:
    """Raises InputError where a library is missing, or for a name that the file cannot have."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"export.py needs libraries that are not installed: pip install {' '.join(missing)}")
    if options.out.suffix != ".onnx" or options.out.is_dir() or options.out.resolve() == options.checkpoint.resolve():
        raise InputError(f"--out {options.out}: must be a file NAME.onnx, and not the checkpoint")


def random_images(trained: TrainedNetwork) -> list[np.ndarray]:
    """Images float32 (B, C, H, W) in [0, 1]: the smallest, one as in the training, and some of random sizes."""
    rng, model = np.random.default_rng(0), trained.model
    columns, rows, _ = trained.identity.typical.size
    shapes = [(1, 32, 32), (1, max(rows, 32), max(columns, 32))]
    largest = model.smallest + 6 * model.multiple
    shapes += [(int(rng.integers(1, 4)), *rng.integers(32, largest, 2).tolist()) for _ in range(4)]
    return [rng.random((batch, trained.config.network.channels, *sides), np.float32) for batch, *sides in shapes]


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two arrays; infinite where their shapes differ."""
    return float(np.abs(a - b).max()) if a.shape == b.shape else np.inf


def write(path: Path, network: Probabilities, trained: TrainedNetwork) -> None:
    """Write the network as ONNX, with its `description`. Raises ValueError with the reason where PyTorch cannot.

    It is traced with an image that is padded to more than the smallest, to odd multiples of what its layers take, so
    that inner maps are padded, too: what is computed for one of the sizes only must be computed for this one.
    """
    import onnx

    model = trained.model
    first = model.smallest // model.multiple + 1 | 1
    sides = [k * model.multiple - min(3, model.multiple - 1) for k in (first, first + 2)]
    image = torch.rand(2, trained.config.network.channels, *sides)
    dynamic = torch.export.Dim.DYNAMIC
    try:
        with silence():
            program = torch.onnx.export(
                network,
                (image,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["probabilities"],
                dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
                custom_translation_table=translations(),
            )
    except torch.onnx.OnnxExporterError as error:
        while error.__cause__ is not None:
            error = error.__cause__
        raise ValueError(str(error)) from None
    file = program.model_proto
    for value in (*file.graph.input, *file.graph.output):
        for axis, name in ((0, "batch"), (2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    del file.graph.value_info[:]  # which has other names for these axes
    for node in file.graph.node:
        del node.metadata_props[:]  # lines of code, with the paths of files
    onnx.helper.set_model_props(file, {"segmentation": json.dumps(description(trained))})
    onnx.checker.check_model(file)
    path.write_bytes(file.SerializeToString())


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep PyTorch from printing pages about what it translates, and what it cannot."""
    logging.disable()
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def description(trained: TrainedNetwork) -> dict[str, Any]:
    """What a program must know to use the network; docs/export.md explains it."""
    identity, labels = trained.identity, trained.identity.labels
    return {
        "version": VERSION,
        "network": describe_network(trained.config.network),
        "classes": labels.names,
        "values": labels.values,
        "codes": labels.codes,
        "mirror": labels.mirror,
        "mirror_axis": labels.mirror_axis,
        "channels": identity.channels,
        "preparation": identity.preparation and identity.preparation.to_dict(),
        "typical": identity.typical.to_dict(),
        "largest_component": trained.config.evaluation.largest_component,
    }


def run(path: Path, images: list[np.ndarray]) -> list[np.ndarray]:
    """The probabilities of images by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it reports is raised, too
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(None, {"image": image})[0] for image in images]


if __name__ == "__main__":
    with user_errors():
        main(cli.parse(Options, __doc__))
