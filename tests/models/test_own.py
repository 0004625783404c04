"""Networks of one's own: what their constructors get, what may come out of them, and what is refused."""

from __future__ import annotations

import keyword
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from config import Config, NetworkConfig
from models import build_model, check_network, describe_network, own_class, unused_options
from models.own import own_file
from tests.helpers import own_code
from utils import OptionError

HERE = "tests.helpers.own_code"


def build(model: str, **options):
    return build_model(Config.of(model=f"{HERE}:{model}", classes=3, **options))


def by_hand(network: torch.nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """A map of a 33 x 47 image at its size: sides are padded to 40 and 48."""
    return F.interpolate(logits, (40, 48), mode="bilinear")[..., :33, :47]


@pytest.mark.parametrize("model", ["Logits", "Several", "Whole"])
def test_logits_of_any_resolution_come_at_the_size_of_the_image(model):
    network = build(model, channels=2)
    image = torch.rand(2, 2, 33, 47)
    padded = F.pad(image, (0, 1, 0, 7))
    for mode in (True, False):
        network.train(mode)
        torch.manual_seed(0)
        output = network(image)
        torch.manual_seed(0)  # of the dropout
        features = network.network.layers(padded)
        head, coarse = network.network.head(features), network.network.coarse(features)
        expected = {"Logits": [head], "Several": [head, coarse], "Whole": [coarse, head]}[model]
        if not mode:
            torch.testing.assert_close(output, by_hand(network, head))
            continue
        maps = [*output.raw, *output.refined]
        torch.testing.assert_close(maps, [by_hand(network, logits) for logits in expected])
        assert len(output.refined) == (2 if model == "Several" else 1)
        assert len(output.latents) == (2 if model == "Whole" else 0)


def test_a_network_of_our_base_class_is_used_as_it_is():
    assert type(build("Ours")) is own_code.Ours


def test_the_constructor_gets_what_it_names_and_keeps_its_initialization():
    torch.manual_seed(0)
    network = build("Logits(width=6, depth=[1, 2], classes=4)", channels=2, backbone="resnet18").network
    torch.manual_seed(0)
    plain = own_code.Logits(2, 4, 6)
    torch.testing.assert_close(network.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert network.others == {"depth": [1, 2]}  # and none of the options, such as the backbone


def test_options_that_the_constructor_does_not_name_are_unused():
    options = Config.of(model=f"{HERE}:Logits(classes=3)").network
    assert {"backbone", "classes", "steps"} <= unused_options(options)
    assert "channels" not in unused_options(options)


@pytest.mark.parametrize(("sides", "expected"), [((None, None), (32, 64)), ((48, None), (48, 96)), ((5, 12), (5, 15))])
def test_images_are_padded_to_its_sides(monkeypatch, sides, expected):
    for name, value in zip(("multiple", "smallest"), sides, strict=True):
        if value is None:
            monkeypatch.delattr(own_code.Logits, name)
        else:
            monkeypatch.setattr(own_code.Logits, name, value)
    network = build("Logits")
    assert (network.multiple, network.smallest) == expected
    assert network.eval()(torch.rand(1, 1, 33, 50)).shape == (1, 3, 33, 50)


def test_one_image_of_a_single_value_per_channel_trains(monkeypatch):
    network = build("Logits")
    network.network.layers[0].stride = (64, 64)
    network.multiple = network.smallest = 32
    assert network.train()(torch.rand(1, 1, 32, 32)).refined[0].isfinite().all()


def test_a_network_of_a_library():
    config = Config.of(
        model="segmentation_models_pytorch:Unet(encoder_name='resnet18', encoder_weights=None, in_channels=2)",
        channels=2,
        classes=3,
    )
    network = build_model(config).eval()
    image = torch.rand(1, 2, 64, 96)
    torch.testing.assert_close(network(image), network.network(image))
    assert describe_network(config.network) == config.network.model
    assert "segmentation_models_pytorch" in own_file(config.network.model)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)
NAMES = st.text("abcxyz_", min_size=1, max_size=5).filter(lambda text: not keyword.iskeyword(text))


@given(st.dictionaries(NAMES, PLAIN, max_size=3))
def test_any_plain_values_arrive(arguments):
    text = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    found = own_class("model", f"{HERE}:Logits({text})")
    assert found.func is own_code.Logits
    assert dict(found.keywords) == arguments


@pytest.mark.parametrize(
    "text",
    [
        f"{HERE}:", ":Logits", "..:Logits", "a b:Logits", f"{HERE}:Logits()()", f"{HERE}:Logits.x", f"{HERE}:Logits(3)",
        f"{HERE}:Logits(**{{'a': 1}})", f"{HERE}:Logits(a=1, a=2)", f"{HERE}:Logits(a=print(1))", f"{HERE}:(Logits",
        f"{HERE}:Logits(a=__import__('os'))", f"{HERE}:Logits(a={'(' * 3000})", f"{HERE}:Logits(a={'-' * 3000}1)",
        f"{HERE}:Logits(a={{[]: 1}})", f"{HERE}:Logits(a='{'x' * 5000}')", f"{HERE}:Logits(a='\0')", "::",
    ],
)  # fmt: skip
def test_what_is_no_class_with_plain_values_is_refused(text):
    with pytest.raises(OptionError, match=r"must be package.module:Class or .*\(key=value") as raised:
        check_network(NetworkConfig(model=text))
    assert str(raised.value).startswith("model ") and "\n" not in str(raised.value)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A working folder with modules that fail."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "failing_early.py").write_text("import torch\n\nwidth = 1 / 0\n")
    (tmp_path / "failing_code.py").write_text("def f(:\n")
    (tmp_path / "failing_exit.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "failing_import.py").write_text("import no_such_library_at_all\n")
    return tmp_path


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("no_such_module_at_all:Net", "no module no_such_module_at_all in {folder}, and none is installed"),
        ("models.no_such:Net", "no module models.no_such in {folder}"),
        ("failing_early:Net", "imported: ZeroDivisionError: division by zero ({folder}/failing_early.py, line 3)"),
        ("failing_code:Net", "fails while it is imported: SyntaxError: "),
        ("failing_exit:Net", "fails while it is imported: SystemExit: 3 ({folder}/failing_exit.py, line 1)"),
        ("failing_import:Net", "imported: ModuleNotFoundError: No module named 'no_such_library_at_all'"),
        (f"{HERE}:Nothing", "own_code.py has no class Nothing derived from torch.nn.Module; correct the name"),
        (f"{HERE}:NoModule", "has no class NoModule derived from torch.nn.Module"),
        (f"{HERE}:in_folder", "has no class in_folder derived from torch.nn.Module"),
        (f"{HERE}:Wrong", "Wrong(classes=3) fails: TypeError: Wrong.__init__() missing 1 required"),
        (f"{HERE}:Ours(depth=3)", "Ours does not take these arguments: got an unexpected keyword argument 'depth'"),
        (f"{HERE}:Logits(width=-1)", "Logits(channels=1, classes=3, width=-1) fails: RuntimeError: "),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_one_line(elsewhere, model, expected):
    with pytest.raises(OptionError) as raised:
        build_model(Config.of(model=model, classes=3))
    text = str(raised.value)
    assert text.startswith(f"model {model}: ") and "\n" not in text
    assert expected.format(folder=elsewhere) in text


def test_sides_that_are_none_are_refused(monkeypatch):
    monkeypatch.setattr(own_code.Logits, "multiple", 0)
    with pytest.raises(OptionError, match="its multiple and smallest must be whole numbers of pixels"):
        build("Logits")


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("dictionary", "a dict"),
        ("nothing", "nothing"),
        ("classes", r"a tensor \(2, 2, 64, 64\) of float32"),
        ("flat", r"a tensor \(2, 3, 4096\) of float32"),
        ("batch", r"a tensor \(1, 3, 64, 64\) of float32"),
        ("indices", r"a tensor \(2, 3, 64, 64\) of int64"),
        ("second", "a NoneType"),
    ],
)
def test_what_is_no_logits_is_refused(what, expected):
    network = build(f"Wrong(what={what!r})")
    with pytest.raises(OptionError, match=rf"^model .*: returned {expected}; must return logits \(batch, 3 classes"):
        network(torch.rand(2, 1, 40, 40))


def test_what_it_raises_is_one_line_with_the_place():
    network = build("Logits", channels=2)
    with pytest.raises(OptionError, match=r"^model .*: fails on images \(1, 1, 40, 40\): Runtime.*own_code.py, "):
        network(torch.rand(1, 1, 40, 40))


def test_its_backbone_is_offered():
    network = build("Logits")
    assert not hasattr(network, "backbone")
    network.network.backbone = "resnet18"
    assert not hasattr(network, "backbone")
    del network.network.backbone
    network.network.backbone = torch.nn.Identity()
    assert network.backbone is network.network.backbone
