"""Baselines: the paper's parameter counts, any size, dilation, and the networks of segmentation_models.pytorch."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch
from torch.nn import functional as F

from config import Config, NetworkConfig
from losses import GuidedLoss
from models import NETWORKS, build_model, check_network, describe_network, unused_options
from models.backbone import BACKBONES, Backbone
from models.baselines.attention_unet import AttentionGate
from utils import InputError, OptionError

MODELS = ["unet", "attention_unet", "danet", "pan", "daf", "daf_pam", "daf_cam", "daf_dual"]


def count(config: Config) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())


@pytest.mark.parametrize(
    ("options", "paper", "difference"),
    [
        ({"model": "unet"}, 31_030_853, 0),
        ({"model": "attention_unet"}, 34_877_681, 0),
        ({"model": "daf"}, 43_482_179, 0),
        ({"model": "daf_pam"}, 43_486_343, 0),
        # One digit: 43,465,543 is the sum of the blocks of the PAM row with CAM layers in place of PAM layers.
        ({"model": "daf_cam"}, 43_485_543, -20_000),
        # The paper's has the convolutions of DANet's two other outputs (2 x 4 of 64 x 64 + 64), which nothing uses.
        ({"model": "daf_dual"}, 43_980_179, -8 * 4_160),
        # The paper's has ResNet-101's classifier, 2048 x 1000 + 1000, which nothing uses.
        ({"model": "danet", "backbone": "resnet101"}, 68_475_961, -2_049_000),
        # The paper's has four outputs, one for each organ.
        ({"model": "pan", "backbone": "resnet34", "classes": 4}, 21_323_991, 0),
        ({"model": "pan", "backbone": "resnet101", "classes": 4}, 42_675_415, 0),
        ({"model": "pan", "backbone": "resnet34"}, 21_323_991, 5_107),
        ({"model": "pan", "backbone": "resnet101"}, 42_675_415, 20_275),
    ],
)
def test_parameters_equal_table_viii_or_differ_for_a_stated_reason(options, paper, difference):
    assert count(Config.of(**options)) == paper + difference


@pytest.mark.slow
@pytest.mark.parametrize("model", [*MODELS, "smp.Unet", "smp.DeepLabV3Plus"])
def test_any_size_and_batch_and_no_dead_layers(model):
    torch.manual_seed(0)
    network = build_model(Config.of(model=model, backbone="resnet18", channels=2, classes=3))
    for parameter in (p for name, p in network.named_parameters() if name.endswith("gamma")):
        torch.nn.init.constant_(parameter, 0.5)  # at 0 the attention weights have no influence yet
    for batch, height, width in ((1, 33, 47), (2, 64, 48)):
        output = network.train()(torch.rand(batch, 2, height, width))
        assert {x.shape for x in output.raw + output.refined} == {(batch, 3, height, width)}
        GuidedLoss()(output, torch.randint(0, 3, (batch, height, width))).total.backward()
        with torch.inference_mode():
            assert network.eval()(torch.rand(batch, 2, height, width)).shape == (batch, 3, height, width)
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]


@pytest.mark.slow
def test_supervised_maps():
    image = torch.rand(2, 1, 48, 48)
    expected = {"unet": (0, 1), "attention_unet": (0, 1), "pan": (0, 1), "danet": (0, 3), "daf": (4, 4)}
    for model, (raw, refined) in expected.items():
        output = build_model(Config.of(model=model, backbone="resnet18"))(image)
        assert (len(output.raw), len(output.refined)) == (raw, refined), model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_computes_the_strided_maps_and_those_between(name, stride):
    """Without a stride and with spread kernels, every second row and column is what the strided network computes."""
    torch.manual_seed(0)
    strided = Backbone(name).double().eval()
    dilated = Backbone(name, output_stride=stride).double().eval()
    dilated.load_state_dict(strided.state_dict())
    image = torch.rand(1, 1, 96, 64, dtype=torch.float64)
    with torch.inference_mode():
        for expected, maps in zip(strided(image), dilated(image), strict=True):
            step = maps.shape[-1] // expected.shape[-1]
            torch.testing.assert_close(maps[..., ::step, ::step], expected, rtol=1e-10, atol=1e-10)
        assert dilated(image)[-1].shape[-2:] == (96 // stride, 64 // stride)


def test_attention_gate_by_hand():
    torch.manual_seed(0)
    gate = AttentionGate(4).double().eval()
    g, x = torch.randn(2, 1, 4, 2, 3, dtype=torch.float64)
    expected = torch.empty_like(x)
    scale = 1 / (1 + 1e-5) ** 0.5  # of batch normalization with its initial statistics
    for i, j in ((i, j) for i in range(2) for j in range(3)):
        inner = scale * (gate.gate[0].weight[:, :, 0, 0] @ g[0, :, i, j] + gate.gate[0].bias)
        inner = inner + scale * (gate.skip[0].weight[:, :, 0, 0] @ x[0, :, i, j] + gate.skip[0].bias)
        weight = torch.sigmoid(scale * (gate.psi[0].weight[0, :, 0, 0] @ inner.relu() + gate.psi[0].bias))
        expected[0, :, i, j] = weight * x[0, :, i, j]
    torch.testing.assert_close(gate(g, x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model", ["daf", "daf_dual"])
def test_daf_by_its_formula(model):
    """Wang et al.: F''_s = refine(cat(F'_s, attention(cat(F'_s, F_MS)) * F_MS)); the prediction is the maps' mean."""
    torch.manual_seed(0)
    network = build_model(Config.of(model=model, backbone="resnet18", classes=3)).double().eval()
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.constant_(parameter, 0.5)
    image = torch.rand(2, 1, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        scales, (fused, *_), _ = network.features(image)
        maps = []
        for x, attend, refine, head in zip(
            scales, network.attention, network.refine, network.refined_heads, strict=True
        ):
            both = torch.cat([x, fused], 1)
            if model == "daf_dual":
                weights = attend.project(attend.position(both) + attend.channel(both))
            else:
                weights = attend(both)
                assert weights.min() >= 0 and weights.max() <= 1
            maps.append(F.interpolate(head(refine(torch.cat([x, weights * fused], 1))), (64, 96), mode="bilinear"))
        torch.testing.assert_close(network(image), sum(maps) / 4, rtol=1e-9, atol=1e-9)


def test_danet_predicts_by_the_sum_of_its_branches():
    torch.manual_seed(0)
    network = build_model(Config.of(model="danet", backbone="resnet18", classes=3)).double().eval()
    for branch in (network.position, network.channel):
        torch.nn.init.constant_(branch[1].gamma, 0.5)
    image = torch.rand(1, 1, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        deepest = network.backbone(image)[-1]
        x = network.channel[0](deepest)
        flat = x.flatten(2)
        energy = flat @ flat.mT
        attention = (energy.amax(-1, keepdim=True) - energy).softmax(-1)  # DANet's own code
        channel = network.channel[2](0.5 * (attention @ flat).view_as(x) + x)
        logits = network.heads[0][1](network.position(deepest) + channel)
        expected = F.interpolate(logits, (64, 96), mode="bilinear")
        torch.testing.assert_close(network(image), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_smp_is_the_library_s_network():
    smp = pytest.importorskip("segmentation_models_pytorch")
    network = build_model(Config.of(model="smp.UnetPlusPlus", backbone="resnet34", classes=3)).eval()
    theirs = smp.UnetPlusPlus("resnet34", encoder_weights=None, in_channels=1, classes=3).eval()
    theirs.load_state_dict(network.network.state_dict())
    image = torch.rand(1, 1, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), theirs(image))


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 96])
def test_smp_pan_takes_small_images(side):
    pytest.importorskip("segmentation_models_pytorch")
    network = build_model(Config.of(model="smp.PAN", backbone="resnet18"))
    assert network(torch.rand(1, 1, side, side)).refined[0].shape == (1, 5, side, side)


def test_smp_transformers_take_one_size():
    pytest.importorskip("segmentation_models_pytorch")
    network = build_model(Config.of(model="smp.DPT", backbone="tu-vit_tiny_patch16_224")).eval()
    with pytest.raises(InputError, match=r"backbone: takes slices of one size only \(.*224.*\); choose another one"):
        network(torch.rand(1, 1, 64, 64))


def test_smp_pretrained_without_a_connection(monkeypatch):
    smp = pytest.importorskip("segmentation_models_pytorch")

    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError("An error happened") from OSError("Connection refused")

    monkeypatch.setattr(smp.encoders, "hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"weights of resnet18 .*huggingface\.co \(Connection refused\); copy /"):
        build_model(Config.of(model="smp.Unet", backbone="resnet18")).load_pretrained()


def test_smp_mistakes(monkeypatch):
    config = Config.of(model="smp.Unet", backbone="resnet18")
    with pytest.raises(InputError, match=r"smp.Best: no such architecture; there are .*UnetPlusPlus"):
        build_model(config.change(model="smp.Best"))
    with pytest.raises(InputError, match="backbone wide_resnet50_2"):
        build_model(config.change(backbone="wide_resnet50_2"))
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(InputError, match="pip install segmentation-models-pytorch"):
        build_model(config)


def test_unknown_models_are_refused():
    with pytest.raises(OptionError, match=r"model best: must be ms_dual_guided, .*smp.NAME"):
        build_model(Config.of(model="best"))
    with pytest.raises(OptionError, match="backbone mit_b0: must be resnet18, "):
        build_model(Config.of(backbone="mit_b0"))
    with pytest.raises(OptionError, match="pretrained: unet has no backbone"):
        build_model(Config.of(model="unet", pretrained="imagenet"))
    with pytest.raises(OptionError, match=r"pretrained FILE: smp\.Unet takes no file"):
        build_model(Config.of(model="smp.Unet", backbone="resnet18", pretrained="FILE"))
    with pytest.raises(OptionError, match="must be the name of an encoder"):
        build_model(Config.of(model="smp.Unet", backbone="tu-hf-hub:someone/network"))
    check_network(Config.of(model="smp.Segformer", backbone="mit_b0").network)  # the library's encoders


def test_a_network_takes_the_options_that_its_constructor_names():
    unused = {
        name: unused_options(Config.of(model=name).network) for name in ("ms_dual_guided", "unet", "daf", "smp.Unet")
    }
    assert unused["ms_dual_guided"] == set()
    assert {"backbone", "pretrained", "variant", "steps", "guidance"} <= unused["unet"]
    assert {"channels", "classes", "model"}.isdisjoint(unused["unet"])
    assert unused["unet"] - unused["daf"] == {"backbone", "pretrained", "variant"}
    assert unused["unet"] - unused["smp.Unet"] == {"backbone", "pretrained"}
    assert describe_network(Config.of(model="unet").network) == "unet"
    assert describe_network(Config.of(guidance=False).network) == "ms_dual_guided without guidance, resnext101_32x4d"
    assert describe_network(Config.of(model="smp.Unet").network) == "smp.Unet, resnext101_32x4d"


def test_the_help_names_every_network():
    help_text = inspect.getsource(NetworkConfig)
    assert all(name in help_text for name in NETWORKS)
    for name in BACKBONES:
        short = name.replace("wide_resnet", "").replace("resnext101_", "").replace("resnet", "")
        assert short in help_text, name
