"""Any architecture of segmentation_models.pytorch (https://github.com/qubvel-org/segmentation_models.pytorch)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from models.encoder_weights import Normalization
from models.network import Network, Output, tolerate_single_values
from utils import OptionError


class SegmentationModel(Network):
    """The architecture `name` (such as "UnetPlusPlus") of the library, with its own decoder and initialization.

    Raises OptionError where the library is missing, knows no such architecture or encoder, or cannot download weights;
    also (forward) for images of another size, where an encoder takes only one.
    """

    multiple, smallest = 32, 64

    def __init__(self, name: str, channels: int, classes: int, backbone: str) -> None:
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
        self.name, self.encoder = name, backbone
        self.options = {"in_channels": channels, "classes": classes}
        self.normalize = Normalization(channels)
        self.network = self._create(None)
        tolerate_single_values(self.network)

    def _create(self, weights: str | None) -> nn.Module:
        import segmentation_models_pytorch as smp

        try:
            return smp.create_model(self.name, self.encoder, weights, **self.options)
        except OSError as error:
            from huggingface_hub.constants import HF_HUB_CACHE

            reason = str(error.__cause__ or error).splitlines()[0]
            raise OptionError(
                f"pretrained: the weights of {self.encoder} could not be downloaded from huggingface.co ({reason}); "
                f"copy {HF_HUB_CACHE} from a machine that has them, or train from scratch"
            ) from None
        except (KeyError, ValueError) as error:
            reason = str(error).strip("\"'").splitlines()[0]
            raise OptionError(f"backbone {self.encoder} with model smp.{self.name}: {reason}") from None

    def load_pretrained(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Download the library's ImageNet weights. Raises OptionError where they cannot be had, or for `weights`."""
        if weights is not None:
            raise OptionError("pretrained: networks of smp take no file; choose imagenet")
        theirs = self._create("imagenet")
        self.network.encoder.load_state_dict(theirs.encoder.state_dict())
        import segmentation_models_pytorch as smp

        expected = smp.encoders.get_preprocessing_params(self.encoder)
        self.normalize.set(expected["mean"], expected["std"])

    @property
    def backbone(self) -> nn.Module:
        """The encoder."""
        return self.network.encoder

    def maps(self, image: Tensor) -> Output:
        """Padded image (B, C, H, W) -> Output with one map of logits at full size."""
        try:
            return Output.of_logits(self.network(self.normalize(image)))
        except AssertionError as error:  # timm's of transformers: Input height (64) doesn't match model (224).
            reason = str(error).rstrip(".")
            raise OptionError(f"backbone: takes slices of one size only ({reason}); choose another one") from None
