"""Segmentations of 3D Slicer are read by the names in their headers, wherever in the image they were cropped."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import nrrd
import numpy as np
import PIL.Image
import pytest
import SimpleITK
import torch

from core.segmentations import save_segmentation
from core.test_transforms import AFFINES, save_volume
from core.tiny import BALL, DISK
from iopfl.base.errors import SeriesError
from iopfl.core.answers import Answer, Segmentation
from iopfl.core.colors import label_colors
from iopfl.core.transforms import open_label, read_image, read_label
from iopfl.core.writers import write_mask

TASK = replace(
    BALL,
    labels={"core": 4, "rim": 7},
    codes={"core": ("41216001", "SCT", "Prostate"), "rim": ("81016008", "SCT", "Optic nerve head")},
    regions={"whole": ("core", "rim"), "core": ("core",)},
)
SHAPE = (9, 8, 7)


def drawn() -> dict[str, np.ndarray]:
    core, rim = np.zeros((2, *SHAPE), bool)
    core[2:4, 1:6, 2:5] = True
    rim[4:7, 1:5, 3:6] = True
    return {"core": core, "rim": rim}


def image(tmp_path, affine):
    voxels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return read_image(save_volume(tmp_path / "image.nii.gz", voxels, affine), TASK)


def expected() -> torch.Tensor:
    masks = drawn()
    return torch.from_numpy(masks["core"] * 1.0 + masks["rim"] * 2.0)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("crop", [False, True])
def test_names_decide_in_every_layer_order_and_with_every_value(tmp_path, affine, crop):
    like, masks = image(tmp_path, affine), drawn()
    for order in itertools.permutations(masks):
        for values in ((1, 2), (2, 1), (7, 4), (200, 3)):
            flat = {name: (value, masks[name]) for name, value in zip(order, values, strict=True)}
            apart = [{name: (1, masks[name])} for name in order]
            for layers in ([flat], apart):
                path = save_segmentation(tmp_path / "label.seg.nrrd", layers, affine, crop=crop)
                read = open_label(path, TASK, like=like)
                assert torch.equal(read.classes[0].as_tensor(), expected().float())
                assert torch.equal(read.classes.affine, like.affine)
                is_own = not crop and len(layers) == 1 and all(flat[name][0] == TASK.labels[name] for name in flat)
                assert read.is_as_stored == is_own


def terminology(kind: str, region: str = "^^") -> str:
    """Of a segment, as 3D Slicer writes it."""
    return f"TerminologyEntry:Segmentation category and type~SCT^85756007^Tissue~{kind}~^^~Anatomic codes~{region}~^^|"


@pytest.mark.parametrize(
    "tag",
    [
        terminology("SCT^41216001^Prostate"),
        terminology("SRT^T-92000^Prostate"),  # of Slicer's versions before 4.11
        terminology("99SDM^T-92000^Prostate"),
        terminology("SCT^113343008^Organ", "SCT^41216001^Prostate"),
        terminology("SRT^T-D0050^Tissue", "SRT^T-92000^Prostate"),
    ],
)
def test_a_segment_is_known_by_its_terminology_too(tmp_path, tag):
    affine, masks = AFFINES["oblique"], drawn()
    layers = [{"Prostata": (1, masks["core"]), "RIM ": (2, masks["rim"])}]
    tags = {"Prostata": tag}
    path = save_segmentation(tmp_path / "label.seg.nrrd", layers, affine, tags=tags)
    label = read_label(path, TASK, like=image(tmp_path, affine))
    assert torch.equal(label[0].as_tensor(), expected().float())


@pytest.mark.parametrize("kind", ["SCT^52988006^Lesion", "SRT^M-01100^Lesion", "SCT^4147007^Mass"])
def test_what_lies_in_an_organ_is_not_that_organ(tmp_path, kind):
    layers = [{"Target 1": (1, drawn()["core"])}]
    tags = {"Target 1": terminology(kind, "SCT^41216001^Prostate")}
    path = save_segmentation(tmp_path / "label.seg.nrrd", layers, AFFINES["oblique"], tags=tags)
    with pytest.raises(SeriesError, match="has the labels core, rim, given 'Target 1'"):
        read_label(path, TASK, like=image(tmp_path, AFFINES["oblique"]))


def test_a_region_leaves_its_rest_to_the_label_that_is_not_drawn(tmp_path):
    affine, masks = AFFINES["oblique"], drawn()
    layers = [{"whole": (1, masks["core"] | masks["rim"])}, {"core": (1, masks["core"])}]
    path = save_segmentation(tmp_path / "label.seg.nrrd", layers, affine)
    label = read_label(path, TASK, like=image(tmp_path, affine))
    assert torch.equal(label[0].as_tensor(), expected().float())


def grown(mask: np.ndarray) -> np.ndarray:
    return mask | np.roll(mask, 1, axis=0)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (lambda m: [{"core": (1, grown(m["core"]))}, {"rim": (1, m["rim"])}], "core and rim overlap in 8 voxels"),
        (lambda m: [{"whole": (1, m["rim"])}], "whole is core and rim of task ball taken together"),
        (lambda m: [{"Segment_1": (1, m["rim"])}], "has the labels core, rim, given 'Segment_1'"),
        (lambda m: [{"core": (1, m["core"])}, {"rim": (1, m["rim"])}, {"whole": (1, ~m["rim"])}], "whole holds voxels"),
    ],
)
def test_what_cannot_be_told_is_refused_in_plain_words(tmp_path, layers, message):
    path = save_segmentation(tmp_path / "label.seg.nrrd", layers(drawn()), AFFINES["oblique"])
    with pytest.raises(SeriesError, match=f"label label.seg.nrrd: .*{message}"):
        read_label(path, TASK, like=image(tmp_path, AFFINES["oblique"]))


def test_a_grid_that_is_not_the_images_is_refused(tmp_path):
    affine, masks = AFFINES["oblique"], drawn()
    layers = [{name: (number, mask) for number, (name, mask) in enumerate(masks.items(), 1)}]
    beside, outside = affine.copy(), affine.copy()
    beside[:3, 3] += affine[:3, :3] @ [0.3, 0, 0]
    outside[:3, 3] += affine[:3, :3] @ [5, 0, 0]
    like = image(tmp_path, affine)
    for other, message in ((beside, "its grid is another one"), (2 * affine, "another one"), (outside, "beside the")):
        other[3] = affine[3]
        with pytest.raises(SeriesError, match=message):
            read_label(save_segmentation(tmp_path / "label.seg.nrrd", layers, other, crop=True), TASK, like=like)


def test_a_value_that_no_segment_has_is_refused(tmp_path):
    layers = [{"core": (1, drawn()["core"]), "rim": (2, drawn()["rim"])}]
    path = save_segmentation(tmp_path / "label.seg.nrrd", layers, np.eye(4), Segment1_LabelValue="5")
    with pytest.raises(SeriesError, match="holds the value 2, which no segment"):
        read_label(path, TASK, like=image(tmp_path, np.eye(4)))


def test_a_value_of_two_segments_is_refused(tmp_path):
    layers = [{"core": (3, drawn()["core"]), "rim": (3, drawn()["rim"])}]
    path = save_segmentation(tmp_path / "label.seg.nrrd", layers, np.eye(4))
    with pytest.raises(SeriesError, match="has one value, 3, for two segments"):
        read_label(path, TASK, like=image(tmp_path, np.eye(4)))


def mitk_header(names: dict[str, int], is_old: bool) -> dict[str, str]:
    if not is_old:
        labels = [{"name": name, "value": value, "opacity": 0.6} for name, value in names.items()]
        groups = json.dumps([{"labels": labels}])
        return {
            "modality": "org.mitk.multilabel.segmentation",
            "org.mitk.multilabel.segmentation.labelgroups": groups,
        }
    fields = {"modality": "org.mitk.image.multilabel", "layers": "1", "layer_000": str(len(names) + 1)}
    for number, (name, value) in enumerate({"Exterior": 0, **names}.items()):
        fields[f"org.mitk.label_000_{number:05d}"] = (
            f'<?xml version="1.0" encoding="UTF-8"?><Label><property key="name" type="StringProperty"><string value='
            f'"{name}"/></property><property key="value" type="UShortProperty"><unsigned value="{value}"/></property>'
            "</Label>"
        )
    return fields


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("values", [(1, 2), (2, 1), (7, 4), (300, 5)])
def test_the_names_in_mitks_header_decide(tmp_path, is_old, values):
    """nnInteractive in MITK writes them too."""
    affine, masks = AFFINES["oblique"], drawn()
    flat = sum(value * mask.astype(np.uint16) for value, mask in zip(values, masks.values(), strict=True))
    saved = SimpleITK.ReadImage(str(save_volume(tmp_path / "mask.nii.gz", flat, affine)))
    for key, text in mitk_header(dict(zip(masks, values, strict=True)), is_old).items():
        saved.SetMetaData(key, text)
    path = tmp_path / "label.nrrd"
    SimpleITK.WriteImage(saved, str(path))
    assert torch.equal(open_label(path, TASK, like=image(tmp_path, affine)).classes[0].as_tensor(), expected().float())
    saved.SetMetaData("org.mitk.multilabel.segmentation.labelgroups", "[{}]")
    SimpleITK.WriteImage(saved, str(path))
    with pytest.raises(SeriesError, match="does not say name and whole number"):
        open_label(path, TASK, like=image(tmp_path, affine))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_written_segmentation_carries_names_terminology_and_colors(tmp_path, affine):
    task = replace(TASK, codes={"core": TASK.codes["core"]})
    like = image(tmp_path, affine)
    mask = torch.tensor(task.label_values, dtype=torch.uint8)[expected().long()]
    path = tmp_path / "mask.seg.nrrd"
    write_mask(path, Segmentation(mask, like, Answer(task.name, "", "", 0.0)), task)
    data, header = nrrd.read(str(path))
    assert np.array_equal(data, mask.numpy())
    for number, (name, color) in enumerate(label_colors(task).items()):
        assert header[f"Segment{number}_Name"] == name
        assert int(header[f"Segment{number}_LabelValue"]) == task.labels[name]
        parts = [round(255 * float(part)) for part in header[f"Segment{number}_Color"].split()]
        assert bytes(parts).hex().upper() == color[1:]
    tags = [header[f"Segment{number}_Tags"].split("~")[2] for number in range(2)]
    assert tags == ["SCT^41216001^Prostate", "SCT^85756007^Tissue"]
    seen = SimpleITK.ReadImage(str(path))
    assert np.array_equal(SimpleITK.GetArrayFromImage(seen).T, mask.numpy())
    for index in ((0, 0, 0), (8, 0, 0), (0, 7, 0), (0, 0, 6)):
        place = (affine @ [*index, 1] * [-1, -1, 1, 1])[:3]
        np.testing.assert_allclose(seen.TransformIndexToPhysicalPoint(index), place, atol=1e-4)
    read = open_label(path, task, like=like)
    assert read.is_as_stored and torch.equal(read.classes[0].as_tensor(), expected().float())


def test_a_pictures_segmentation_lies_where_itk_has_the_picture(tmp_path):
    task = replace(DISK, labels={"disk": 1})
    PIL.Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)).save(tmp_path / "eye.png")
    like = read_image(tmp_path / "eye.png", task)
    mask = torch.zeros(7, 5, 1, dtype=torch.uint8)
    mask[4, 1] = 1
    path = tmp_path / "mask.seg.nrrd"
    write_mask(path, Segmentation(mask, like, Answer(task.name, "", "", 0.0)), task)
    picture, seen = SimpleITK.ReadImage(str(tmp_path / "eye.png")), SimpleITK.ReadImage(str(path))
    assert seen.TransformIndexToPhysicalPoint((4, 1, 0))[:2] == picture.TransformIndexToPhysicalPoint((4, 1))
    assert torch.equal(read_label(path, task, like=like)[0].as_tensor(), mask.float())
