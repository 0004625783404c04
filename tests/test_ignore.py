"""Pixels that nobody annotated: read, left out of losses and metrics, and shown as such."""

from __future__ import annotations

import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import prepare
from data.batches import collate
from data.description import IGNORED, Ignore, Labels
from data.folder import open_data
from data.png import read_mask
from data.volumes import Volume
from data.writer import describe
from losses import GuidedLoss, around_centres, cross_entropy, dice_loss
from metrics import score_subject
from models.network import Output
from reporting.figures import blend, fullest, hatched
from reporting.viewer import confusion, mean_dice
from tests.helpers.errors import assert_one_line
from tests.helpers.runs import read_csv, run
from training.scores import validation_scores
from utils import InputError

NAMES = ("background", "a", "b")
TABLE = {"labels": {"background": 0, "a": 63, "ignore": 255}, "values": {"background": 0, "a": 1, "ignore": 4}}


# ---------------------------------------------------------------- masks and volumes


def test_tables_say_what_is_ignored_and_read_it_from_masks_and_volumes(tmp_path):
    labels = Labels.from_dict(TABLE)
    assert (labels.names, labels.codes, labels.values) == (("background", "a"), (0, 63), (0, 1))
    assert labels.ignore == Ignore(255, 4)
    assert Labels.from_dict(labels.to_dict()) == labels != Labels.from_dict({"labels": {"background": 0, "a": 63}})
    Image.fromarray(np.array([[0, 63, 255]], np.uint8)).save(tmp_path / "a.png")
    assert labels.to_classes(read_mask(tmp_path / "a.png"), tmp_path).tolist() == [[0, 1, IGNORED]]
    assert labels.values_to_classes(np.array([4, 1, 0]), tmp_path).tolist() == [IGNORED, 1, 0]


def test_ignored_pixels_may_be_a_color_and_the_value_0(tmp_path):
    colored = Labels.from_dict({"colors": {"a": [255, 0, 0], "ignore": [9, 9, 9]}})
    assert Labels.from_dict(colored.to_dict()) == colored
    pixels = np.array([[[0, 0, 0], [9, 9, 9], [255, 0, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    assert colored.to_classes(read_mask(tmp_path / "rgb.png"), tmp_path).tolist() == [[0, IGNORED, 1]]
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    palette.putpalette(pixels.tobytes())
    palette.save(tmp_path / "p.png")
    assert colored.to_classes(read_mask(tmp_path / "p.png"), tmp_path).tolist() == [[0, IGNORED, 1]]
    scribbles = Labels.from_dict({"labels": {"ignore": 0, "background": 1, "a": 2}})
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(tmp_path / "s.png")
    assert scribbles.to_classes(read_mask(tmp_path / "s.png"), tmp_path).tolist() == [[IGNORED, 0, 1]]


def test_classes_are_numbered_without_it_wherever_it_stands():
    tables = {"labels": {"background": 5, "ignore": 6, "a": 7, "b": 8}}, {"colors": {"ignore": [9] * 3, "a": [8] * 3}}
    labels, colored = map(Labels.from_dict, tables)
    assert (labels.values, labels.ignore) == ((0, 1, 2), Ignore(6, 3))
    assert (colored.codes, colored.values, colored.ignore) == ((0, 1), (0, 1), Ignore(2, 2, 0x090909))
    assert labels.to_values(np.array([2, 1, 0])).tolist() == [2, 1, 0]


def write_scans(folder, ignored: int) -> dict[str, np.ndarray]:
    """Labels of classes 1 and, from the second on, 2, whose last column nobody annotated."""
    rng = np.random.default_rng(0)
    stored = {}
    for k in range(4):
        label = rng.integers(0, 2 + (k > 0), (36, 40, 3)).astype(np.uint8)
        label[-1] = ignored
        stored[f"s{k}"] = label
        for name, array in (("image", rng.normal(size=label.shape).astype(np.float32)), ("label", label)):
            folder.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 5, 1])), folder / f"{name}_s{k}.nii.gz")
    return stored


def test_prepare_keeps_them_and_balances_folds_without_them(tmp_path, capsys):
    stored = write_scans(tmp_path / "scans", ignored=7)
    out = tmp_path / "data"
    prepare.main([
        "nifti", str(tmp_path / "scans"), "--out", str(out), "--names", "a,b,ignore", "--folds", "4", "--size", "44"
    ])  # fmt: skip
    content = json.loads((out / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "a": 126, "b": 252, "ignore": 255}
    assert content["values"] == {"background": 0, "a": 1, "b": 2, "ignore": 7}
    data = open_data(out)
    assert {subject: classes - {1} for subject, classes in data.classes_of().items()} == {
        "s0": set(), "s1": {2}, "s2": {2}, "s3": {2}
    }  # fmt: skip
    for split in data.splits:
        dataset = data.dataset(split)
        for subject, indices in dataset.subjects().items():
            classes = np.stack([dataset[index][1].numpy() for index in indices])
            known = np.bincount(classes.ravel(), minlength=256)
            wanted = np.bincount(stored[subject].ravel(), minlength=8)
            assert known[[1, 2, IGNORED]].tolist() == wanted[[1, 2, 7]].tolist()  # padding is background
    assert " ignore\n" in describe(data)
    assert "120" in describe(data)
    assert capsys.readouterr().out


def test_pictures_are_padded_with_background_whatever_its_value(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.tile(np.array([0, 1, 2], np.uint8), (36, 12))
    for k in range(3):
        Image.fromarray(np.full(mask.shape, 10 * k, np.uint8)).save(tmp_path / "images" / f"{k}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{k}.png")
    (tmp_path / "dataset.json").write_text('{"labels": {"ignore": 0, "background": 1, "a": 2}}')
    out = tmp_path / "out"
    prepare.main(["png", str(tmp_path), "--out", str(out), "--folds", "3", "--size", "40"])
    data = open_data(out)
    assert data.labels.ignore.code == 0
    target = data.dataset("train")[0][1].numpy()
    assert [np.count_nonzero(target == k) for k in (IGNORED, 0, 1)] == [432, 40 * 40 - 864, 432]


def annotate(root, split: str, value: int) -> None:
    """All masks of a split hold this value; ignored is 255."""
    labels = {"background": 0, "liver": 63, "right kidney": 126, "left kidney": 189, "spleen": 252, "ignore": 255}
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    for path in (root / split / "GT").iterdir():
        Image.fromarray(np.full((40, 48), value, np.uint8)).save(path)


@pytest.mark.parametrize(("split", "part"), [("train", "no pixel of the training"), ("val", "not annotated or")])
def test_data_of_which_nothing_is_annotated_is_refused(make_data, split, part):
    root = make_data()
    annotate(root, split, 255)
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_one_line(caught.value, str(root), part)


# ---------------------------------------------------------------- losses


def test_targets_that_are_ignored_do_not_count():
    target = torch.tensor([[0, IGNORED], [1, 2]])
    batch = collate([(torch.zeros(1, 2, 2), target), (torch.zeros(1, 1, 1), target[:1, :1])])
    assert batch.targets.tolist() == [[[0, -100], [1, 2]], [[0, -100], [-100, -100]]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 4), st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans())
def test_losses_and_gradients_are_those_of_the_other_pixels_alone(batch, classes, size, seed, whole):
    """Brute force in float64: the pixels that count as a list, without the others."""
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(rng.choice([-100, *range(classes)], (batch, size, size)))
    if whole:
        target[:] = -100
    known = target >= 0
    for dice in (0.0, 0.7):
        logits = torch.from_numpy(rng.normal(0, 3, (batch, classes, size, size))).requires_grad_()
        loss = GuidedLoss(dice=dice)(Output.of_logits(logits), target).total
        loss.backward()
        assert (logits.grad.movedim(1, -1)[~known] == 0).all()
        assert logits.grad.isfinite().all()
        listed = logits.detach().movedim(1, -1)[known].requires_grad_()
        if whole or not len(listed):
            assert loss.item() == 0
            assert (logits.grad == 0).all()
            continue
        p = listed.softmax(1)
        t = torch.eye(classes, dtype=torch.float64)[target[known]]
        overlaps = (2 * (p * t).sum(0) + 1) / (p.sum(0) + t.sum(0) + 1)
        wanted = -(t * p.log()).sum(1).mean() + dice * (1 - overlaps[1:].mean())
        wanted.backward()
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(logits.grad.movedim(1, -1)[known], listed.grad)


def test_a_coarse_map_of_which_no_centre_is_annotated_gives_nothing():
    target = torch.randint(0, 3, (1, 32, 32))
    target[:, 1::4, 1::4] = target[:, 1::4, 2::4] = target[:, 2::4, 1::4] = target[:, 2::4, 2::4] = -100
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    assert (around_centres(logits, target)[1] == -100).all()
    loss = GuidedLoss(dice=1.0)(Output([logits], [torch.zeros(1, 3, 32, 32)], [], []), target).segmentation
    loss.backward()
    assert loss.isfinite()
    assert (logits.grad == 0).all()


def test_without_ignored_pixels_the_loss_is_pytorchs_to_the_bit():
    torch.manual_seed(0)
    target = torch.randint(0, 4, (3, 37, 41))
    ours, theirs = (torch.randn(3, 4, 37, 41, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    losses = [
        cross_entropy(ours.requires_grad_(), target),
        torch.nn.functional.cross_entropy(theirs.requires_grad_(), target),
    ]
    for loss in losses:
        (0.3 * loss).backward()
    assert torch.equal(*losses)
    assert torch.equal(ours.grad, theirs.grad)
    assert dice_loss(ours, torch.full_like(target, -100)).item() == 0


# ---------------------------------------------------------------- metrics


def test_scores_are_those_with_ignored_voxels_in_neither_mask():
    rng = np.random.default_rng(0)
    prediction, target = rng.integers(0, 3, (2, 5, 12, 12)).astype(np.uint8)
    ignored = rng.random(target.shape) < 0.4
    regions = {"both": ["a", "b"]}
    rows = score_subject(prediction, np.where(ignored, IGNORED, target), NAMES, (3, 1, 1), regions)
    assert rows == score_subject(prediction * ~ignored, target * ~ignored, NAMES, (3, 1, 1), regions)
    inside = ~ignored
    hits = np.count_nonzero((prediction == 1) & (target == 1) & inside)
    sizes = np.count_nonzero((prediction == 1) & inside) + np.count_nonzero((target == 1) & inside)
    assert rows[0]["dsc"] == pytest.approx(2 * hits / sizes)


def test_a_class_that_partial_annotation_lacks_is_not_counted():
    target = np.zeros((2, 8, 8), np.uint8)
    target[:, :3] = 1
    prediction = target.copy()
    prediction[0, 6:, 6:] = 2
    regions = {"all": ["a", "b"], "only b": ["b"]}
    known = {row["class"]: row for row in score_subject(prediction, target, NAMES, (1, 1, 1), regions)}
    assert known["b"]["spurious"]
    assert known["b"]["dsc"] == 0
    target[1, 7] = IGNORED
    rows = {row["class"]: row for row in score_subject(prediction, target, NAMES, (1, 1, 1), regions)}
    for name in ("b", "only b"):
        assert all(math.isnan(value) for value in rows[name].values() if isinstance(value, float))
        assert not (rows[name]["spurious"] or rows[name]["missed"])
        assert rows[name].keys() == known[name].keys()
    assert rows["a"]["dsc"] == 1
    assert rows["all"]["dsc"] == pytest.approx(2 * 48 / (48 + 52))
    scores = validation_scores([Volume("1", prediction, target)], NAMES)
    assert (scores["val_dsc"], scores["val_dsc a"]) == (1, 1)
    assert math.isnan(scores["val_dsc b"])


# ---------------------------------------------------------------- pictures


def test_pages_leave_them_out():
    target = np.zeros((1, 4, 4), np.uint8)
    target[0, 0], target[0, 3] = 1, IGNORED
    prediction = target.copy()
    prediction[0, 3], prediction[0, 2] = 1, 2
    counts = confusion(Volume("1", prediction, target), 3)
    assert counts.tolist() == [[[8, 0, 0], [0, 4, 0], [0, 0, 0]]]
    assert mean_dice(counts.sum(0)) == 1


def test_pictures_hatch_them():
    classes = np.full((8, 8), IGNORED, np.uint8)
    classes[0, 0] = 2
    lines = hatched(classes)
    assert lines[0, 0] == 2
    assert 0 < np.count_nonzero(lines == IGNORED) < 32
    colors = blend(np.zeros((1, 8, 8), np.float32), classes)
    assert set(map(tuple, colors[lines == IGNORED])) == {(100, 100, 100)}
    assert (colors[lines == 0] == 0).all()
    assert fullest([classes, np.eye(8, dtype=np.uint8)]) == 1


# ---------------------------------------------------------------- runs


@pytest.mark.slow
def test_a_training_on_partial_labels_scores_what_is_annotated(make_data, tmp_path, tiny):
    root = make_data()
    labels = {"background": 0, "liver": 63, "right kidney": 126, "left kidney": 189, "spleen": 252, "ignore": 255}
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    for path in root.glob("*/GT/*.png"):
        mask = np.asarray(Image.open(path)).copy()
        mask[:, 30:] = 255
        mask[mask == 252] = 0  # a spleen that nobody annotated
        Image.fromarray(mask).save(path)
    out = run(root, tmp_path / "run", "--epochs", "1", "--no_guidance")
    rows = {row["class"]: row for row in read_csv(out / "test.csv")}
    predicted = np.asarray(nib.load(out / "predictions" / "3.nii.gz").dataobj).T
    assert set(np.unique(predicted)) <= set(range(5))
    masks = [np.asarray(Image.open(root / "test" / "GT" / f"Subj_3slice_{k}.png")) for k in (1, 2)]
    truth, found = np.stack(masks)[..., :30] == 63, predicted[..., :30] == 1
    assert float(rows["liver"]["dsc"]) == pytest.approx(2 * (truth & found).sum() / (truth.sum() + found.sum()))
    assert rows["spleen"]["dsc"] == "nan"
    assert json.loads((out / "test.json").read_text())["per_class"]["spleen"]["dsc"]["n"] == 0
