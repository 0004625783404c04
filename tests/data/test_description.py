"""dataset.json: whatever it says is refused in one line, or can be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from data.description import Labels, read_description
from data.folder import open_data
from data.nifti import write_nifti
from data.preparation import Preparation
from data.volumes import to_scan
from tests.helpers.errors import assert_clear
from tests.helpers.files import NO_FILES
from tests.helpers.png import GREY, encode, png, write_tree
from tests.helpers.raw_json import Raw, to_json
from utils import InputError

plain_values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.floats(), st.text(max_size=4), st.sampled_from(["LPS", "RAI"]),
    st.sampled_from([10**9, 10**400, -(10**30), 1e300, 1e-320, Raw("1e999"), Raw("9" * 5000), Raw("[" * 5000)]),
    st.just(Raw("[" * 50_000 + "]" * 50_000)),
)  # fmt: skip
values = st.recursive(
    plain_values,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
) | st.lists(st.one_of(st.integers(-2, 2), st.floats(-3, 3)), min_size=2, max_size=9)
DESCRIBED = {
    "labels": {"background": 0, "liver": 63},
    "values": {"background": 0, "liver": 7},
    "colors": {"background": [255, 255, 255], "liver": [0, 0, 0]},
    "regions": {"abdomen": ["liver"]},
    "tolerances": {"liver": 2.0, "abdomen": 0.5},
    "mirror_axis": "vertical",
    "groups": {"1": "patient 1"},
    "channels": ["t1", "t2"],
    "preparation": Preparation(size=32, spacing=(1.5, 1.5), window=(40.0, 400.0)).to_dict(),
    "subjects": {
        "1": {
            "spacing": [1.5, 1.5, 4.0],
            "origin": [1.0, 2.0, 3.0],
            "direction": [1, 0, 0, 0, 0.6, -0.8, 0, 0.8, 0.6],
            "original": {"size": [36, 30, 2], "spacing": [1.5, 1.5, 4.0], "origin": [-1.0, 2.0, 3.0]},
            "orientation": "RAI",
        }
    },
}


def keys_of(value: object, path: tuple = ()) -> list[tuple]:
    """The path of keys and indices to each value in `value`, itself among them."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [path, *(place for key, item in inner for place in keys_of(item, (*path, key)))]


def replace_at(value, path: tuple, new: object):
    """`value` with another one at a path of keys and indices."""
    if not path:
        return new
    if isinstance(value, dict):
        return {key: replace_at(item, path[1:], new) if key == path[0] else item for key, item in value.items()}
    return [replace_at(item, path[1:], new) if key == path[0] else item for key, item in enumerate(value)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all examples; each replaces the files of the one before."""
    return tmp_path_factory.mktemp("json")


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(keys_of(DESCRIBED)), values)
def test_what_dataset_json_says_is_refused_or_can_be_used(folder, place, value):
    path = folder / "dataset.json"
    path.write_text(to_json(replace_at(DESCRIBED, place, value)))
    try:
        described = read_description(path)
    except InputError as error:
        assert_clear(error, str(path))
        assert len(str(error)) < 1000 + len(str(path))
        return
    volume = np.ones((2, 32, 32), np.uint8)
    for geometry in described.geometry.values():
        scan = to_scan(volume, geometry)
        write_nifti(folder / "volume.nii.gz", scan)
        assert sitk.ReadImage(folder / "volume.nii.gz").GetSize() == scan.GetSize()
    if described.preparation is not None:
        scan = sitk.GetImageFromArray(np.zeros((2, 40, 40), np.float32))
        assert described.preparation.apply([scan]).images.ndim == 4
    if described.labels is not None:
        assert np.array(described.labels.values, np.uint16).tolist() == list(described.labels.values)
        names = described.labels.names
        assert all(name.isprintable() and name.encode() for name in names)
        for region, joined in described.labels.regions.items():
            assert region.isprintable()
            assert region not in names
            assert set(joined) <= set(names[1:])
        for name, distance in described.labels.tolerances.items():
            assert name in (*names[1:], *described.labels.regions)
            assert np.isfinite(distance)
            assert distance > 0
    assert all(group.isprintable() and group.strip() for group in described.groups.values())


def test_the_description_itself_is_taken(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps(DESCRIBED))
    described = read_description(tmp_path / "dataset.json")
    of_classes = {key: DESCRIBED[key] for key in ("labels", "values", "colors", "regions", "tolerances", "mirror_axis")}
    assert described.labels.to_dict() == of_classes
    assert described.labels.regions == {"abdomen": ("liver",)}
    assert described.groups == {"1": "patient 1"}
    assert described.labels.colors == (0xFFFFFF, 0)
    assert described.channels == ("t1", "t2")
    assert described.labels.values == (0, 7)
    assert {subject: geometry.to_dict() for subject, geometry in described.geometry.items()} == DESCRIBED["subjects"]
    assert described.preparation.to_dict() == DESCRIBED["preparation"]


TUMOUR = {"labels": {"background": 0, "edema": 1, "core": 2}}


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (
            TUMOUR | {"regions": {"whole": ["edema", "cyst"]}},
            "'whole' joins 'cyst'; choose from the classes edema, core",
        ),
        (TUMOUR | {"regions": {"whole": ["background", "core"]}}, "'whole' joins 'background'"),
        (TUMOUR | {"regions": {"core": ["edema"]}}, "a class is called 'core', too"),
        (TUMOUR | {"regions": {"background": ["edema"]}}, "a class is called 'background', too"),
        (TUMOUR | {"regions": {"whole": []}}, "regions must give each region a list of the classes"),
        (TUMOUR | {"regions": {"whole": ["core", "core"]}}, "regions must give"),
        (TUMOUR | {"regions": {"whole": [1, 2]}}, "regions must give"),
        (TUMOUR | {"regions": {"whole": "core"}}, "regions must give"),
        (TUMOUR | {"regions": ["core"]}, "regions must give"),
        (TUMOUR | {"regions": {" ": ["core"]}}, "the name ' ' is no printable text"),
        (TUMOUR | {"tolerances": {"cyst": 1}}, "'cyst' is no class or region; choose from edema, core"),
        (TUMOUR | {"tolerances": {"background": 1}}, "'background' is no class or region"),
        *(
            (TUMOUR | {"tolerances": {"core": distance}}, "tolerances must give classes or regions a distance above 0")
            for distance in (0, -1.0, True, "1", None, [1], Raw("NaN"), Raw("Infinity"), Raw("9" * 400))
        ),
        ({"regions": {"whole": ["core"]}}, "regions needs classes; list all classes with their values under labels"),
        ({"tolerances": {"core": 1}}, "tolerances needs classes; list"),
        ({"groups": {"1": 1}}, "groups must give subjects the name of their group"),
        ({"groups": {"1": ""}}, "groups must give"),
        ({"groups": {"1": "a\nb"}}, "groups must give"),
        ({"groups": [["1", "2"]]}, "groups must give"),
    ],
)
def test_regions_tolerances_and_groups_that_are_none(tmp_path, described, said):
    path = tmp_path / "dataset.json"
    path.write_text(to_json(described))
    with pytest.raises(InputError) as caught:
        read_description(path)
    assert_clear(caught.value, f"{path}: ", said)


def test_regions_of_regions_have_tolerances_and_labels_are_equal_without_them(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(TUMOUR | {"regions": {"whole": ["edema", "core"]}, "tolerances": {"whole": 2}}))
    labels = read_description(path).labels
    assert (labels.regions, labels.tolerances) == ({"whole": ("edema", "core")}, {"whole": 2.0})
    assert Labels.from_dict(json.loads(json.dumps(labels.to_dict()))).to_dict() == labels.to_dict()
    path.write_text(json.dumps(TUMOUR))
    plain = read_description(path).labels
    assert plain == labels
    assert hash(plain) == hash(labels)
    assert plain.to_dict().keys() == {"labels", "values"}


@pytest.mark.parametrize("case", NO_FILES)
def test_dataset_json_that_is_no_file(tmp_path, case):
    plain = png(encode(GREY))
    path = write_tree(tmp_path, plain, plain, list(range(256))) / "dataset.json"
    path.unlink()
    make, _ = NO_FILES[case]
    make(path)
    with pytest.raises(InputError) as caught:
        open_data(tmp_path)
    assert_clear(caught.value, str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"label": {"background": 0, "liver": 63}}, "has the key 'label', which means nothing; correct it to labels"),
        ({"Labels": {"background": 0, "liver": 63}}, "correct it to labels"),
        ({"colours": {"background": [0, 0, 0], "liver": [9, 0, 0]}}, "correct it to colors"),
        ({"group": {"1": "a"}}, "correct it to groups"),
        (
            {"subjects": {"1": {"spacings": [1, 1, 3]}}},
            "subject 1: has the key 'spacings', which",
        ),
        ({"subjects": {"1": {"Spacing": [1, 1, 3]}}}, "correct it to spacing"),
    ],
)
def test_misspelled_keys_do_not_count_for_nothing(tmp_path, content, said):
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_description(tmp_path / "dataset.json")
    assert_clear(caught.value, "dataset.json: ", said)


def test_keys_of_other_programs_are_left_out(tmp_path):
    """Those of the Decathlon and nnU-Net, and a word beside the right one."""
    theirs = dict.fromkeys(
        ("name", "description", "reference", "licence", "license", "release", "modality", "tensorImageSize", "test",
         "numTraining", "numTest", "training", "channel_names", "file_ending", "overwrite_image_reader_writer")
    )  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(theirs | {"group": 1, "groups": {"1": "a"}}))
    assert read_description(tmp_path / "dataset.json").groups == {"1": "a"}
