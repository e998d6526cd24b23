"""The most probable class, beside torch's own search for it."""

from __future__ import annotations

import pytest
import torch

from iopfl.core.classes import find_largest


@pytest.mark.parametrize("shape", [(1, 4, 3, 2), (6, 40, 30, 5), (256, 9), (3, 0)])
def test_the_largest_is_torchs_and_the_first_of_several(shape):
    random = torch.Generator().manual_seed(0)
    for values in (torch.randn(shape, generator=random), torch.randint(3, shape, generator=random).float()):
        for order in (values, values.mT.contiguous().mT):
            assert torch.equal(find_largest(order), order.max(0).indices.to(torch.uint8))
