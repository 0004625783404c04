"""Any architecture of segmentation_models.pytorch (https://github.com/qubvel-org/segmentation_models.pytorch)."""

from __future__ import annotations

from torch import Tensor, nn

from models.network import BatchNorm, Network, Output
from utils import OptionError


class SegmentationModel(Network):
    """The architecture `name` (such as "UnetPlusPlus") of the library, with its own decoder and initialization.

    Raises OptionError where the library is missing, knows no such architecture or encoder, or cannot download weights;
    also (forward) for images of another size, where an encoder takes only one.
    """

    multiple, smallest = 32, 64

    def __init__(self, name: str, channels: int, classes: int, backbone: str, pretrained: bool) -> None:
        super().__init__()
        if name.lower() == "pan":
            self.smallest = 128  # its pyramid halves the H/16 maps three times
        try:
            import segmentation_models_pytorch as smp
        except ImportError:
            raise OptionError(
                f"model smp.{name}: needs a library that is not installed: pip install segmentation-models-pytorch"
            ) from None
        known = smp.MODEL_ARCHITECTURES_MAPPING
        if name.lower() not in known:
            names = sorted(architecture.__name__ for architecture in known.values())
            raise OptionError(f"model smp.{name}: no such architecture; there are {', '.join(names)}")
        if ":" in backbone:  # timm takes it for an address, or a folder, from which it loads
            raise OptionError(f"backbone {backbone}: must be the name of an encoder of the library")
        weights = "imagenet" if pretrained else None
        try:
            self.network = smp.create_model(name, backbone, weights, channels, classes)
        except OSError as error:
            from huggingface_hub.constants import HF_HUB_CACHE

            reason = str(error.__cause__ or error).splitlines()[0]
            raise OptionError(
                f"pretrained: the weights of {backbone} could not be downloaded from huggingface.co ({reason}); copy "
                f"{HF_HUB_CACHE} from a machine that has them, or train from scratch"
            ) from None
        except (KeyError, ValueError) as error:
            reason = str(error).strip("\"'").splitlines()[0]
            raise OptionError(f"backbone {backbone} with model smp.{name}: {reason}") from None
        for module in self.network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = BatchNorm  # the last batch of an epoch may be a single image

    def maps(self, image: Tensor) -> Output:
        """Padded image (B, C, H, W) -> Output with one map of logits at full size."""
        try:
            return Output.of_logits(self.network(image))
        except AssertionError as error:  # timm's of transformers: Input height (64) doesn't match model (224).
            reason = str(error).rstrip(".")
            raise OptionError(f"backbone: takes slices of one size only ({reason}); choose another one") from None
