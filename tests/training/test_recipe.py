"""The ingredients that the paper's recipe has not, each against a computation of its own."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import nn

from checkpoint import StopSignal, load_checkpoint, save_checkpoint
from config import PRESETS, Config, parse_config
from data.augment import Augmentation, change_intensities
from data.folder import open_data
from data.volumes import largest_components
from engine import segment_subjects
from losses import GuidedLoss, dice_loss
from main import main
from models.network import Output, only
from optimization import Optimization
from tests.test_reliability import same_result
from utils import InputError


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).double()


def gradients(network: nn.Module, number: int) -> None:
    """The gradients of one batch, which follows from its number."""
    network.zero_grad()
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
    network(x).square().sum().backward()


# ---------------------------------------------------------------- loss


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_dice_loss_equals_the_formula_pixel_by_pixel(batch, classes, height, width, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (batch, classes, height, width))
    target = rng.choice([-100, *range(classes)], (batch, height, width))
    scores = []
    for k in range(1, classes):
        both = predicted = true = 0.0
        for b, row, column in zip(*np.nonzero(target >= 0), strict=True):
            weights = [math.exp(value) for value in logits[b, :, row, column]]
            p = weights[k] / sum(weights)
            t = float(target[b, row, column] == k)
            both, predicted, true = both + p * t, predicted + p, true + t
        scores.append((2 * both + 1) / (predicted + true + 1))
    ours = dice_loss(torch.from_numpy(logits), torch.from_numpy(target))
    assert float(ours) == pytest.approx(1 - sum(scores) / len(scores), rel=1e-12)


def test_dice_enters_the_segmentation_term():
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in range(4)]
    target = torch.randint(0, 3, (2, 8, 8))
    output = Output(maps[:2], maps[2:], [], [])
    parts = [nn.functional.cross_entropy(x, target) + 0.7 * dice_loss(x, target) for x in maps]
    torch.testing.assert_close(GuidedLoss(dice=0.7)(output, target).segmentation, sum(parts))


# ---------------------------------------------------------------- optimization


def test_the_optimizer_is_adam_by_hand():
    """Kingma & Ba (2015), Algorithm 1, with the paper's rate and moments; no decay of weights, no clipping."""
    network = small_network()
    optimization = Optimization(network, Config(), steps=4)
    weights = [p.detach().numpy().copy() for p in network.parameters()]
    first, second = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for number in range(4):
        gradients(network, number)
        grads = [p.grad.numpy().copy() for p in network.parameters()]
        norm = math.sqrt(sum((g**2).sum() for g in grads))
        assert float(optimization.norm()) == pytest.approx(norm, rel=1e-12)
        for k, g in enumerate(grads):
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.99 * second[k] + 0.01 * g**2
            m, v = first[k] / (1 - 0.9 ** (number + 1)), second[k] / (1 - 0.99 ** (number + 1))
            weights[k] = weights[k] - 1e-3 * m / (np.sqrt(v) + 1e-8)
        optimization.step(skip=False)
        for ours, expected in zip(network.parameters(), weights, strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=1e-6, atol=1e-7)


def test_one_cycle_follows_its_cosines_also_over_skipped_steps():
    network = small_network()
    config = Config(lr=0.02, schedule="one_cycle", epochs=4)
    optimization = Optimization(network, config, steps=5)
    peak, last = 0.3 * 20 - 1, 20 - 1
    for number in range(20):
        if number <= peak:
            low, high, share = 0.02 / 25, 0.02, number / peak
        else:
            low, high, share = 0.02, 0.02 / 25 / 1e4, (number - peak) / (last - peak)
        expected = low + (high - low) * (1 - math.cos(math.pi * share)) / 2
        assert optimization.lr == pytest.approx(expected, rel=1e-9)
        gradients(network, number)
        before = copy.deepcopy(network.state_dict())
        optimization.step(skip=number % 3 == 1)
        moved = any(not torch.equal(before[key], value) for key, value in network.state_dict().items())
        assert moved == (number % 3 != 1)


def test_a_resumed_optimization_goes_on_bit_for_bit():
    config = Config(lr=0.01, schedule="one_cycle", epochs=3)
    results = []
    for interrupted in (False, True):
        network = small_network()
        optimization = Optimization(network, config, steps=4)
        for number in range(12):
            if interrupted and number == 5:
                weights, states = copy.deepcopy((network.state_dict(), optimization.state_dict()))
                network = small_network()
                optimization = Optimization(network, config, steps=4)
                network.load_state_dict(weights)
                optimization.load_state_dict(states)
            gradients(network, number)
            optimization.step(skip=False)
        results.append(network.state_dict())
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_the_length_of_a_cycle_cannot_change(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(parse_config(["--preset", "modern", "--epochs", "1"]).to_dict()))
    with pytest.raises(InputError, match="epochs 1 -> 3"):
        parse_config(["--out", str(tmp_path), "--resume", "--epochs", "3"])


@pytest.mark.parametrize("model", ["ms_dual_guided", "smp.PSPNet"])
def test_an_interrupted_epoch_of_the_modern_recipe_goes_on_as_if_it_had_not_been(make_data, tmp_path, model):
    """Also the rate in the log is that of the epoch's first step, and PSPNet's dropout draws what it would have."""
    data = make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3))
    flags = ["--preset", "modern", "--data", str(data), "--backbone", "resnet18", "--no-guidance", "--epochs", "2"]
    flags += ["--device", "cpu", "--batch_size", "2", "--model", model, "--out"]
    main(parse_config([*flags, str(tmp_path / "straight")]))
    with StopAfter(4) as stop, pytest.raises(SystemExit):
        main(parse_config([*flags, str(tmp_path / "resumed")]), stop)
    assert load_checkpoint(tmp_path / "resumed" / "last.pt")["epoch"]["step"] == 1
    main(parse_config([*flags, str(tmp_path / "resumed"), "--resume"]))
    same_result(tmp_path / "straight", tmp_path / "resumed")


class StopAfter(StopSignal):
    """A signal that has come when it is asked for so often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    @property
    def received(self) -> str:
        self.times -= 1
        return "SIGTERM" if self.times < 0 else ""

    @received.setter
    def received(self, value: str) -> None:
        pass


def test_configurations_of_earlier_versions_are_read():
    values = Config(steps=3).to_dict()
    del values["dice"]
    assert Config.from_dict(values) == Config(steps=3)
    with pytest.raises(InputError, match=r"unknown fields.*colour"):
        Config.from_dict(values | {"colour": 1})


def test_the_papers_protocol():
    """What the paper's section on the implementation says, and its code where it is silent."""
    config = parse_config([])
    assert (config.epochs, config.batch_size, config.lr, config.betas) == (500, 8, 1e-3, (0.9, 0.99))
    assert (config.schedule, config.plateau_epochs, config.plateau_factor) == ("plateau", 50, 0.5)
    assert (config.alpha, config.beta, config.gamma, config.steps) == (1, 0.25, 0.1, 2)
    assert (config.flip_probability, config.rotation_probability, config.rotation_degrees) == (0.5, 0.5, 30)


def test_the_papers_preset_has_none_of_it():
    paper, modern = PRESETS["paper"].to_dict(), PRESETS["modern"].to_dict()
    assert (paper["dice"], paper["schedule"]) == (0, "plateau")
    assert (paper["affine_probability"], paper["intensity_probability"]) == (0, 0)
    assert (paper["fine_decoder"], paper["largest_component"], paper["neutral_guide"]) == (False,) * 3
    assert all(paper[name] == modern[name] for name in ("model", "steps", "beta", "gamma", "variant"))


# ---------------------------------------------------------------- data


class Drawn:
    """A stand-in for a generator that draws what it is told to."""

    def __init__(self, *values: float | np.ndarray) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)

    def uniform(self, *range_: float) -> float | np.ndarray:
        return self.values.pop(0)

    def normal(self, mean: float, deviation: float, shape: tuple[int, ...]) -> np.ndarray:
        return mean + deviation * self.values.pop(0)


@pytest.mark.parametrize("angle", [-29.5, -7.0, 13.0, 30.0])
def test_rotation_is_pillows(angle):
    rng = np.random.default_rng(0)
    image, target = rng.random((2, 20, 27), np.float32), rng.integers(0, 5, (20, 27), np.uint8)
    rotated, mask = Augmentation()(image, target, Drawn(1, 1, 0, angle, 1))
    for ours, before in zip(rotated, image, strict=True):
        assert (ours == np.asarray(Image.fromarray(before).rotate(angle, Image.Resampling.BILINEAR))).all()
    assert (mask == np.asarray(Image.fromarray(target).rotate(angle))).all()


def test_affine_moves_image_and_mask_as_scipy_does():
    """Away from the edge, where the two fill differently."""
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((40, 48)), 2).astype(np.float32)
    target = (image > image.mean()).astype(np.uint8)
    scales, shear, shift = np.array([0.5, -1.0]), 0.08, np.array([0.05, -0.1])
    ours, mask = Augmentation(0, 0, 0, 1)(image[None], target, Drawn(1, 1, 1, 0, scales, shear, shift))
    size, aspect = 1.25**0.5, 1.25**-0.4
    x_y = np.diag([size * aspect, size / aspect]) @ np.array([[1, shear], [0, 1]])
    matrix = x_y[::-1, ::-1]  # rows before columns
    center = np.array([20, 24]) - 0.5
    offset = center + np.array([-0.1 * 40, 0.05 * 48]) - matrix @ center
    expected = ndimage.affine_transform(image, matrix, offset, order=1)
    inside = ndimage.affine_transform(np.ones_like(image), matrix, offset, order=1) == 1
    inside = ndimage.binary_erosion(inside, iterations=2)
    assert inside.sum() > 500
    np.testing.assert_allclose(ours[0][inside], expected[inside], atol=1e-5)
    nearest = ndimage.affine_transform(target, matrix, offset, order=0)
    assert (mask[inside] != nearest[inside]).mean() < 0.01  # halfway between two pixels either is right


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(32, 50), st.integers(32, 50), st.integers(0, 2**32 - 1))
def test_changed_intensities_stay_images(channels, height, width, seed):
    image = np.random.default_rng(seed).random((channels, height, width), np.float32)
    kept = image.copy()
    ours, again = (change_intensities(image, 0.5, np.random.default_rng(seed)) for _ in range(2))
    assert ours.shape == image.shape and ours.dtype == np.float32
    assert np.isfinite(ours).all() and ours.min() >= 0 and ours.max() <= 1
    assert (ours == again).all() and (image == kept).all()


CHANGES = ("noise", "blur", "brightness", "contrast", "low resolution", "bias field", "gamma")


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_of_intensities_is_its_formula(name):
    """One change at a time, with draws that are known, on two channels of different brightness."""
    rng = np.random.default_rng(0)
    image = (rng.random((2, 10, 12)) * [[[0.5]], [[1.2]]] - 0.05).astype(np.float32)
    noise, x = rng.normal(size=image.shape), image.astype(float)
    height, width = image.shape[1:]
    match name:
        case "noise":
            draws, expected = (0.05, noise), x + 0.05 * noise
        case "blur":
            kernel = np.exp(-0.5 * (np.arange(-3, 4) / 0.8) ** 2)
            kernel /= kernel.sum()
            padded, draws = np.pad(x, ((0, 0), (3, 3), (3, 3)), "symmetric"), (0.8,)
            windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (1, 2))
            expected = np.einsum("chwij,i,j->chw", windows, kernel, kernel)
        case "brightness":
            draws, expected = (1.2,), 1.2 * x
        case "contrast":
            draws, expected = (1.25,), np.stack([c.mean() + 1.25 * (c - c.mean()) for c in x])
        case "low resolution":
            small = torch.from_numpy(x[None, :, 1::2, 1::2])  # the pixel that is nearest to the middle, to the right
            large = nn.functional.interpolate(small, (height, width), mode="bicubic", antialias=True)
            draws, expected = (0.5,), large[0].numpy()
        case "bias field":
            draws, expected = (np.array([0.1, -0.2, 0.3, -0.1, 0.2]),), x.copy()
            for row in range(height):
                for column in range(width):
                    v, u = 2 * row / (height - 1) - 1, 2 * column / (width - 1) - 1
                    field = math.exp(0.1 * v - 0.2 * u + 0.3 * v * v - 0.1 * u * u + 0.2 * v * u)
                    expected[:, row, column] *= field
        case "gamma":
            draws, expected = (1.4,), x.clip(0, 1) ** 1.4
    place = CHANGES.index(name)
    drawn = Drawn(*[1] * place, 0, *draws, *[1] * (6 - place))
    np.testing.assert_allclose(change_intensities(image, 0.5, drawn), expected.clip(0, 1), atol=2e-6)
    assert not drawn.values


def test_intensities_change_after_the_rest_and_in_images_alone():
    image, target = np.random.default_rng(1).random((1, 40, 48), np.float32), np.ones((40, 48), np.uint8)
    ours, mask = Augmentation(0, 0, 0, 0, 1)(image, target, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    rng.random(4)  # neither flip, no rotation, no affine change
    assert (ours == change_intensities(image, 1, rng)).all() and (ours != image).any()
    assert (mask == target).all()


def test_rotation_and_affine_are_one_transformation():
    """A rotation alone, drawn together with an affine change of nothing, is Pillow's rotation."""
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((40, 48)), 2).astype(np.float32)
    target = np.zeros((40, 48), np.uint8)
    ours, _ = Augmentation(0, 1, 30, 1)(image[None], target, Drawn(1, 1, 0, 17.0, 0, np.zeros(2), 0.0, np.zeros(2)))
    np.testing.assert_allclose(
        ours[0], np.asarray(Image.fromarray(image).rotate(17.0, Image.Resampling.BILINEAR)), atol=1e-5
    )


class Steps(nn.Module):
    """Segments by five steps of brightness: noise falls into many pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def forward(self, image: torch.Tensor) -> Output | torch.Tensor:
        logits = -((self.sharpness * (image - torch.linspace(0, 1, 5)[:, None, None])) ** 2)
        return only(logits) if self.training else logits


def test_training_and_prediction_keep_the_same_pieces(make_data, tmp_path, monkeypatch):
    """The largest of each class that the same network finds without it."""
    import predict

    for module in ("main", "predict"):
        monkeypatch.setattr(f"{module}.build_model", lambda config: Steps())
    data = make_data({"train": ["1"], "val": ["2"], "test": ["3"]}, numbers=(1, 2, 5, 7))
    flags = ["--preset", "modern", "--data", str(data), "--epochs", "1", "--device", "cpu"]
    main(parse_config([*flags, "--out", str(tmp_path / "run")]))
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    best["config"]["largest_component"] = False
    save_checkpoint(tmp_path / "all.pt", best)
    for checkpoint in (tmp_path / "run" / "best.pt", tmp_path / "all.pt"):
        out = tmp_path / checkpoint.stem
        predict.main(predict.Options(str(checkpoint), (str(data / "test"),), out, device="cpu"))
    trained, ours, whole = (
        read_nifti(tmp_path / path / "3.nii.gz") for path in ("run/predictions", "best", "all")
    )  # fmt: skip
    assert (ours == trained).all() and (ours != whole).any()
    ours, whole = (volume[[0, 1, 4, 6]] for volume in (ours, whole))  # without the slices that are missing
    for k in np.unique(whole[whole > 0]):
        pieces, count = ndimage.label(whole == k)
        sizes = [(pieces == piece).sum() for piece in range(1, count + 1)]
        kept = ours == k
        assert (pieces[kept] == pieces[kept][0]).all() and kept.sum() == max(sizes)


def read_nifti(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


class Everywhere(nn.Module):
    """Segments everything as class 1."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(image), 5, *image.shape[2:])
        logits[:, 1] = 1
        return logits


def test_missing_slices_do_not_cut_a_piece_in_two(make_data):
    dataset = open_data(make_data(numbers=(1, 3, 4, 7))).dataset("test")
    (volume,) = segment_subjects(Everywhere(), dataset, 2, 0, torch.device("cpu"), False, "", clean=True)
    assert [bool(part.all()) for part in volume.prediction] == [True, False, True, True, False, False, True]
    masks = np.stack([target for _, target in dataset])  # of many pieces: the truth is not cleaned
    assert (volume.target[[0, 2, 3, 6]] == masks).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_percentiles_are_those_of_the_sorted_voxels(bits):
    import SimpleITK as sitk

    from data.preparation import Preparation

    volume = np.random.default_rng(0).normal(100, 30, (3, 40, 44))
    ordered = np.sort(volume.ravel())
    places = np.array([0.005, 0.995]) * (ordered.size - 1)
    low, high = np.interp(places, np.arange(ordered.size), ordered)
    expected = np.rint(((volume - low) / (high - low)).clip(0, 1) * (2**bits - 1))
    ours = Preparation(normalize="percentiles", bits=bits).apply([sitk.GetImageFromArray(volume)]).images[0]
    assert (ours == expected).mean() > 0.999 and np.abs(ours - expected).max() <= 1


def test_other_recipes_are_refused():
    for change in ({"dice": -1.0}, {"intensity_probability": 2.0}):
        with pytest.raises(InputError, match=next(iter(change))):
            replace(Config(), **change)


# ---------------------------------------------------------------- prediction


def flood(volume: np.ndarray, start: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The voxels that hang together with `start` by faces."""
    found, edge = {start}, [start]
    while edge:
        voxel = edge.pop()
        for axis in range(3):
            for step in (-1, 1):
                near = tuple(c + step * (a == axis) for a, c in enumerate(voxel))
                inside = all(0 <= c < size for c, size in zip(near, volume.shape, strict=True))
                if inside and near not in found and volume[near] == volume[start]:
                    found.add(near)
                    edge.append(near)
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 6)] * 3), st.integers(1, 3))
def test_largest_components_equal_a_flood_fill(seed, shape, classes):
    volume = np.random.default_rng(seed).integers(0, classes + 1, shape, np.uint8)
    kept, cleaned = volume.copy(), largest_components(volume)
    assert (volume == kept).all() and cleaned.dtype == np.uint8
    for k in range(1, classes + 1):
        pieces, seen = [], set()
        for voxel in map(tuple, np.argwhere(volume == k).tolist()):
            if voxel not in seen:
                pieces.append(flood(volume, voxel))
                seen |= pieces[-1]
        expected = max(pieces, key=len) if pieces else set()  # of equal ones the first
        assert set(map(tuple, np.argwhere(cleaned == k).tolist())) == expected
