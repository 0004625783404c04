"""Encoders of timm beside torchvision's, and what they start from. Nothing here uses the network."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision

from config import Config
from models import backbone as backbone_module
from models import build_model
from models.backbone import build_backbone
from models.encoder_weights import spread_over
from utils import OptionError

timm = pytest.importorskip("timm")
CONVNEXT = "timm.test_convnext"  # tiny; its finest map is at H/4


def randomized(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict with other values everywhere, also in batch normalization."""
    torch.manual_seed(1)
    return {k: torch.rand_like(v) * 0.2 + 0.05 if v.is_floating_point() else v for k, v in network.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "channels"), [*(("resnet18", channels) for channels in (1, 2, 3, 4)), ("resnext101_32x4d", 1)]
)
def test_an_encoder_of_timm_is_torchvision_s_with_the_same_tensors(name, channels):
    weights = timm.create_model(name).state_dict()
    ours, theirs = build_backbone(name, channels).eval(), build_backbone(f"timm.{name}", channels).eval()
    ours.load_pretrained(weights)
    theirs.load_pretrained(weights)
    theirs.normalize = ours.normalize  # timm's default weights of these may have been trained with others
    image = torch.rand(1, channels, 64, 96)
    with torch.inference_mode():
        for before, after in zip(ours(image), theirs(image), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)


def test_torchvision_s_own_network_has_these_maps():
    """The last map, normalized image included, from torchvision's network and the formula of its documentation."""
    network = torchvision.models.resnet18()
    network.load_state_dict(randomized(network))
    backbone = build_backbone("resnet18", 3).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        backbone.load_pretrained(network.state_dict())
        normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        expected = torch.nn.Sequential(*list(network.eval().children())[:-2])(normalize(image))
        torch.testing.assert_close(backbone(image)[-1], expected)


def test_without_pretrained_weights_the_image_stays_as_it_is():
    image = torch.randn(1, 3, 40, 33)
    assert torch.equal(build_backbone("resnet18", 3).normalize(image), image)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_first_convolutions_are_spread_as_timm_does(channels):
    weight = torch.rand(8, 3, 5, 5)
    torch.testing.assert_close(spread_over(weight, channels), timm.models.adapt_input_conv(channels, weight))
    assert spread_over(weight, channels).shape[1] == channels


@pytest.mark.parametrize("scales", ["quarter", "native"])
@pytest.mark.parametrize("model", ["ms_dual_guided", "daf"])
def test_networks_take_encoders_without_a_map_at_half_the_size(model, scales):
    options = {"scales": scales, "fine_decoder": True, "steps": 1} if model == "ms_dual_guided" else {}
    network = build_model(Config.of(model=model, backbone=CONVNEXT, channels=2, classes=3, **options))
    assert network.backbone.reductions == [4, 8, 16, 32]
    image = torch.rand(1, 2, 40, 70)
    output = network(image)
    sum(logits.mean() for logits in output.refined).backward()
    assert all(p.grad is not None for p in network.backbone.encoder.parameters() if p.requires_grad)
    assert network.eval()(image).shape == (1, 3, 40, 70)


@pytest.mark.parametrize(("model", "stride"), [("danet", 8), ("pan", 16)])
def test_networks_take_dilated_encoders(model, stride):
    network = build_model(Config.of(model=model, backbone="timm.test_resnet", classes=3)).eval()
    assert network.backbone(torch.rand(1, 1, 128, 128))[-1].shape[-1] == 128 // stride
    assert network(torch.rand(1, 1, 50, 60)).shape == (1, 3, 50, 60)
    with pytest.raises(OptionError, match=rf"backbone timm\.densenet121: its maps cannot stay at 1/{stride}"):
        build_model(Config.of(model=model, backbone="timm.densenet121"))


def test_channels_last_encoders_take_any_size():
    backbone = build_backbone("timm.swin_tiny_patch4_window7_224", 1)
    maps = backbone(torch.rand(1, 1, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]


def test_encoders_keep_their_own_initialization():
    torch.manual_seed(3)
    expected = timm.create_model("test_resnet", features_only=True, in_chans=1).state_dict()
    torch.manual_seed(3)
    encoder = build_model(Config.of(backbone="timm.test_resnet", steps=1)).backbone.encoder
    torch.testing.assert_close(encoder.state_dict(), expected, rtol=0, atol=0)


def test_encoders_that_do_not_fit_are_refused(monkeypatch):
    for name, reason in (
        ("timm.resnet19", "timm has no network or weights of this name"),
        ("timm.resnet18.nobody", "timm has no network or weights of this name"),
        ("timm.hf-hub:someone/network", "timm has no network or weights of this name"),
        ("timm.local-dir:/tmp", "timm has no network or weights of this name"),
        ("timm.someone/resnet18", "timm has no network or weights of this name"),
        ("timm.coat_lite_tiny", "takes images of one size only"),
        ("timm.convmixer_768_32", "has maps at 1/7, 1/7, 1/7 of the image; must have them at 1/4, "),
    ):
        with pytest.raises(OptionError, match=f"backbone {name}: {reason}"):
            build_model(Config.of(backbone=name))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(OptionError, match="pip install timm"):
        build_model(Config.of(backbone="timm.resnet18"))


def test_tensors_that_do_not_fit_are_named():
    for name in ("timm.test_resnet", "resnet18"):
        library = timm.create_model(name.removeprefix("timm."))
        weights, backbone = randomized(library), build_backbone(name, 1)
        before = {k: v.clone() for k, v in backbone.state_dict().items()}
        first = weights.pop("conv1.weight" if "conv1.weight" in weights else next(iter(weights)))
        for other, reason in (
            ({}, "1 tensors do not fit, such as: .* is missing"),
            ({next(iter(library.state_dict())): first, "extra": first}, "extra is unknown"),
            ({next(iter(library.state_dict())): first[:, :1]}, r"is \(.*, 1, .*\), and should be"),
            ({next(iter(library.state_dict())): first * float("nan")}, "holds values that are not finite"),
            ({next(iter(library.state_dict())): "text"}, r"is \(\), and should be"),
        ):
            with pytest.raises(ValueError, match=reason):
                backbone.load_pretrained(weights | other)
        torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)  # nothing of them was taken


def test_timm_s_weights_come_from_its_hub(monkeypatch):
    """A hub of this test: the network that timm returns with pretrained=True; then none that can be reached."""
    library = timm.create_model("test_resnet")
    library.load_state_dict(randomized(library))
    backbone, create = build_backbone("timm.test_resnet", 3), timm.create_model
    asked = []

    def hub(name: str, **options: object) -> torch.nn.Module:
        asked.append((name, options))
        return library

    monkeypatch.setattr(timm, "create_model", hub)
    backbone.load_pretrained()
    assert asked == [("test_resnet", {"pretrained": True})]
    expected = library.state_dict()
    for name, tensor in backbone.encoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert backbone.normalize.mean.flatten().tolist() == pytest.approx(create("test_resnet").pretrained_cfg["mean"])

    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError("An error happened") from OSError("Connection refused")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(OptionError, match=r"pretrained: timm could not get the weights of .*\(Connection refused\)"):
        backbone.load_pretrained()
    assert backbone_module.IMAGENET_MEAN == timm.data.IMAGENET_DEFAULT_MEAN
    assert backbone_module.IMAGENET_STD == timm.data.IMAGENET_DEFAULT_STD
