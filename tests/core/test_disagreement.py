"""The map of where experts disagree: what they differ in shows, what they agree on does not, in its place."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # as its own documentation writes it
import torch

from iopfl.base.errors import ConfigError
from iopfl.core.adaptation import RoutingAdapter
from iopfl.core.disagreement import find_disagreement, find_regions
from iopfl.core.inference import predict_slabs
from iopfl.core.predictor import Predictor
from iopfl.core.sites import find_cases
from iopfl.core.work import Work
from iopfl.core.writers import write_disagreement

from .tiny import BALL, DISK, STACK, make_bank

OBLIQUE = np.array([[0.8, 0.6, 0, 5], [-0.6, 0.8, 0, 7], [0, 0, -1.5, 9], [0, 0, 0, 1]])


def masks_of(*labels: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(of_expert, dtype=torch.uint8)[:, None, None] for of_expert in labels]


def test_a_voxel_is_the_share_of_experts_that_leave_the_most_common_label():
    found = find_disagreement(masks_of([1, 1, 1, 1], [1, 1, 1, 2], [1, 1, 0, 3], [1, 0, 0, 0]))
    assert found.flatten().tolist() == [0, 25, 50, 75]
    assert find_disagreement(masks_of([1], [1], [1], [1], [0])).item() == 20


def test_specks_are_left_out_of_the_regions_to_check():
    found = np.zeros((20, 20, 20), np.uint8)
    found[2:5, 2:5, 2:5] = 50  # 27 voxels
    found[10, 10, 10] = 75
    found[15:18, 15:18, 15:18] = 25  # one of four
    regions = find_regions(found, np.diag([2.0, 1, 1, 1]))
    assert regions.sum() == 27
    assert regions[2:5, 2:5, 2:5].all()
    assert find_regions(found[..., 3:4], None).sum() == 0  # 9 pixels of a picture


class Painting(torch.nn.Module):
    """An expert that finds what is brighter than a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, instances: torch.Tensor) -> torch.Tensor:
        middle = instances[:, instances.shape[1] // 2, None]
        return 20 * torch.cat([self.limit - middle, middle - self.limit], dim=1)


def test_what_one_expert_alone_finds_shows_where_it_lies_in_itk(tmp_path, monkeypatch):
    voxels = np.zeros((40, 30, 12), np.float32)
    voxels[6:16, 6:16, 4:9] = 10  # all find it
    voxels[24:34, 14:24, 4:9] = 5  # the first alone
    nib.save(nib.Nifti1Image(voxels, OBLIQUE), tmp_path / "image.nii.gz")
    predictor = Predictor(make_bank(tmp_path / "bank", STACK))
    shown = predictor.prepare(tmp_path / "image.nii.gz").unique().tolist()
    low, high = (shown[0] + 5 * (shown[-1] - shown[0]) / 20, shown[-1] - (shown[-1] - shown[0]) / 4)
    monkeypatch.setattr(RoutingAdapter, "predict_voters", predict_with([Painting(low), Painting(high), Painting(high)]))
    result = predictor.segment(tmp_path / "image.nii.gz", with_disagreement=True)
    write_disagreement(tmp_path / "where.nrrd", result)
    image, found = (sitk.ReadImage(tmp_path / name) for name in ("image.nii.gz", "where.nrrd"))

    def at(*index: int) -> int:
        return found.GetPixel(found.TransformPhysicalPointToIndex(image.TransformIndexToPhysicalPoint(index)))

    assert (at(29, 19, 6), at(11, 11, 6), at(2, 2, 1)) == (33, 0, 0)
    regions = find_regions(result.disagreement.numpy(), OBLIQUE)
    assert regions[29, 19, 6] == 1
    assert regions[11, 11, 6] == 0


def predict_with(networks):
    return lambda self, volume, series, work, pace: [predict_slabs(network, volume, self.task) for network in networks]


@pytest.mark.parametrize("task", [STACK, BALL], ids=["2.5D", "3D"])
def test_each_voter_answers_for_itself_with_the_statistics_it_voted_with(task, tmp_path):
    predictor = Predictor(make_bank(tmp_path / "bank", task))
    shape = (40, 40, 40) if task.spatial_dims == 3 else (32, 32, 7)
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).normal(size=shape).astype(np.float32), np.eye(4)), tmp_path / "i.nii"
    )
    told: list[tuple[int, int]] = []
    first = predictor.segment(tmp_path / "i.nii", "routed", with_disagreement=True, progress=lambda *n: told.append(n))
    again = predictor.segment(tmp_path / "i.nii", "routed")
    assert first.disagreement.shape == first.mask.shape
    assert 0 < first.disagreement.max() <= 67
    assert torch.equal(first.mask, again.mask)  # nothing of it stays in the network
    assert again.disagreement is None
    assert told[-1][0] == told[-1][1]


def test_a_map_that_is_asked_for_later_keeps_to_the_time_that_answers_have(tmp_path):
    """The page asks for it once the answer is there, whose plan knew of no map: all voters saw the whole series."""
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).normal(size=(32, 32, 7)).astype(np.float32), np.eye(4)),
        tmp_path / "i.nii",
    )
    passes: dict[float | None, int] = {}
    told: list[tuple[int, int]] = []
    for budget in (None, 3600.0, 1e-6):
        predictor = Predictor(make_bank(tmp_path / f"bank-{budget}", STACK))
        image = predictor.segment(tmp_path / "i.nii", "routed").image
        predictor._budget = budget
        predictor.find_disagreement(image, work=Work(lambda *n: told.append(n)))
        assert told[-1][0] == told[-1][1]
        passes[budget] = told[-1][1]
    assert passes == {None: 3 * 7, 3600.0: 3 * 7, 1e-6: 2 * 7}


def test_where_the_vote_saw_the_whole_image_no_pass_is_needed(tmp_path, disk_site, monkeypatch):
    predictor = Predictor(make_bank(tmp_path / "bank", DISK))
    image = find_cases(disk_site)[0].image
    volume = predictor.prepare(image)
    adapter = RoutingAdapter(predictor._route(), DISK)
    series = adapter(volume)
    seen = [torch.cat(list(slabs), 3) for slabs in adapter.predict_voters(volume, series)]
    anew = [torch.cat(list(slabs), 3) for slabs in adapter.predict_voters(volume, replace(series, votes=None))]
    torch.testing.assert_close(torch.stack(seen), torch.stack(anew), atol=2e-3, rtol=0)
    monkeypatch.setattr("iopfl.core.adaptation.predict_slabs", lambda *a, **k: pytest.fail("a pass"))
    assert len(list(adapter.predict_voters(volume, series))) == 3


def test_a_bank_of_one_model_is_told_in_plain_words(tmp_path, disk_site):
    bank = make_bank(tmp_path / "bank", DISK)
    bank.experts = bank.experts[:1]
    with pytest.raises(ConfigError, match=r"has one model, global: a map of disagreement takes a bank of several"):
        Predictor(bank).segment(find_cases(disk_site)[0].image, with_disagreement=True)
