"""What moved is found under its old name too: the same module, with a word about where it is now."""

from __future__ import annotations

import importlib
import sys

import pytest

from iopfl import compat
from iopfl._moved import MOVED

compat.apply_early()  # before MONAI Label is imported


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_same_module(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} is {MOVED[old]} since"):
        found = importlib.import_module(old)
    new = importlib.import_module(MOVED[old])
    assert found is new and new.__name__ == new.__spec__.name == MOVED[old]


def test_what_a_bank_is_made_of_is_imported_from_its_package():
    bank = importlib.import_module("iopfl.core.bank")
    assert all(getattr(bank, name) for name in bank.__all__)
    assert bank.ModelBank is importlib.import_module("iopfl.core.bank.bank").ModelBank
    with pytest.raises(AttributeError, match="no attribute 'Bank'"):
        _ = bank.Bank
