"""Encoders of timm (https://github.com/huggingface/pytorch-image-models)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType

from torch import Tensor, nn

from models.encoder_weights import Normalization, fitting
from models.network import tolerate_single_values
from utils import OptionError, is_out_of_memory


class TimmBackbone(nn.Module):
    """The encoder "timm.NAME" with its own initialization; see `models.backbone.build_backbone`.

    Its maps are at H/4 to H/32 (or the stride), with one at H/2 before them where it has one. Raises OptionError where
    it has no such maps (also in forward), or takes images of one size only.
    """

    initialized = True  # networks leave it so
    multiple = 32  # of which the image's sides must be

    def __init__(self, name: str, channels: int = 1, output_stride: int = 32) -> None:
        super().__init__()
        self.name, self.image_channels = name, channels
        options = {"features_only": True, "in_chans": channels}
        if output_stride != 32:
            options["output_stride"] = output_stride
        if import_timm(name).models.get_pretrained_cfg(_bare(name)).fixed_input_size:
            options["strict_img_size"] = False
        self.encoder = _create(name, **options)
        found = self.encoder.feature_info.reduction()
        wanted = [min(k, output_stride) for k in (4, 8, 16, 32)]
        if found[-4:] != wanted:
            raise OptionError(
                f"backbone {name}: has maps at 1/{', 1/'.join(map(str, found))} of the image; must have them at "
                f"1/{', 1/'.join(map(str, wanted))}: choose another one"
            )
        count = 5 if found[:-4][-1:] == [2] else 4
        self.reductions, self.channels = found[-count:], self.encoder.feature_info.channels()[-count:]
        self.normalize = Normalization(channels)
        tolerate_single_values(self.encoder)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, C, H, W), sides multiples of 32 -> maps at H/2, if it has one, H/4, ..., H/32 or the stride."""
        height, width = image.shape[-2:]
        maps = self.encoder(self.normalize(image))[-len(self.channels) :]
        if getattr(self.encoder, "output_fmt", "NCHW") == "NHWC":
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        if any(x.shape[2:] != (height // k, width // k) for x, k in zip(maps, self.reductions, strict=True)):
            raise OptionError(f"backbone {self.name}: its maps of slices of {height} x {width} have other sides")
        return maps

    def load_pretrained(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Take `weights`, a state dict of timm's network, or what timm downloads; see `Backbone.load_pretrained`."""
        network = _create(self.name, pretrained=weights is None)
        expected, settings = network.state_dict(), network.pretrained_cfg
        given = expected if weights is None else weights
        found = fitting(
            given, expected, _names(settings["classifier"]), _names(settings["first_conv"]), self.image_channels
        )
        # As an encoder the network has some "." as "_", and may lie in a "model" or "body".
        flat = {name.replace(".", "_"): tensor for name, tensor in found.items()}
        for name, tensor in self.encoder.state_dict().items():
            tensor.copy_(flat[re.sub(r"^(model|body)\.", "", name).replace(".", "_")])
        self.normalize.set(settings["mean"], settings["std"])


def _names(setting: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (setting,) if isinstance(setting, str) else setting or ()


def _bare(name: str) -> str:
    return name.removeprefix("timm.")


def import_timm(name: str) -> ModuleType:
    """timm. Raises OptionError where it is missing, or has no network "timm.NAME"."""
    try:
        import timm
    except ImportError:
        raise OptionError(f"backbone {name}: needs a library that is not installed: pip install timm") from None
    known = re.fullmatch(r"[\w.-]+", _bare(name))  # timm takes other names for addresses and folders to load from
    try:
        known = known and timm.is_model(_bare(name)) and timm.models.get_pretrained_cfg(_bare(name))
    except RuntimeError:  # of an unknown tag
        known = None
    if not known:
        raise OptionError(f"backbone {name}: timm has no network or weights of this name; see timm.list_models()")
    return timm


def _create(name: str, **options: object) -> nn.Module:
    """timm's network. Raises OptionError where it does not take the options, or its weights cannot be downloaded."""
    try:
        return import_timm(name).create_model(_bare(name), **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error)
        if "strict_img_size" in options:
            reason = "takes images of one size only"
        elif "output_stride" in options:
            reason = f"its maps cannot stay at 1/{options['output_stride']} of the image, as the network needs it"
        raise OptionError(f"backbone {name}: {reason}; choose another one") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: there are no weights, or no maps
        if is_out_of_memory(error) or (isinstance(error, OSError) and not options.get("pretrained")):
            raise
        reason = str(error.__cause__ or error).splitlines()[0]
        if not options.get("pretrained"):
            raise OptionError(f"backbone {name}: {reason}; choose another one") from None
        raise OptionError(
            f"pretrained: timm could not get the weights of {name} ({reason}); give their file, or train from scratch"
        ) from None
