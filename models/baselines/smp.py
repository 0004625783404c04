"""Any architecture of segmentation_models.pytorch (https://github.com/qubvel-org/segmentation_models.pytorch)."""

from __future__ import annotations

from torch import Tensor, nn

from models.network import BatchNorm, Network, Output, only
from utils import InputError


class SegmentationModel(Network):
    """The architecture `name` (such as "UnetPlusPlus") of the library, with its own decoder and initialization.

    Raises InputError where the library is missing, or knows no such architecture or encoder.
    """

    multiple, smallest = 32, 64

    def __init__(self, name: str, channels: int, classes: int, backbone: str, pretrained: bool) -> None:
        super().__init__()
        try:
            import segmentation_models_pytorch as smp
        except ImportError:
            raise InputError(
                f"--model smp.{name} needs a library that is not installed: pip install segmentation-models-pytorch"
            ) from None
        known = smp.MODEL_ARCHITECTURES_MAPPING
        if name.lower() not in known:
            names = sorted(architecture.__name__ for architecture in known.values())
            raise InputError(f"--model smp.{name}: no such architecture; there are {', '.join(names)}")
        weights = "imagenet" if pretrained else None
        try:
            self.network = smp.create_model(name, backbone, weights, channels, classes)
        except (KeyError, ValueError) as error:
            reason = str(error).strip("\"'").splitlines()[0]
            raise InputError(f"--model smp.{name} --backbone {backbone}: {reason}") from None
        for module in self.network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = BatchNorm  # the last batch of an epoch may be a single image

    def maps(self, image: Tensor) -> Output:
        """Padded image (B, C, H, W) -> Output with one map of logits at full size."""
        return only(self.network(image))
