"""The bank: what comes back is what was written, by whom it should be; anything else is named and refused."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from iopfl.base.errors import BankError, BankMismatchError, BankTrustError, ConfigError, WeightsError
from iopfl.base.locks import hold_folder
from iopfl.core.bank.bank import ModelBank, Role, save_bank
from iopfl.core.bank.exchange import ArrivingBank, diff_banks, export_bank, import_bank, rollback_bank
from iopfl.core.bank.manifest import list_versions, prune_bank, read_manifest, serve_manifest
from iopfl.core.bank.signing import Keyring
from iopfl.core.task import Network
from iopfl.core.weights import average, write_weights

from .tiny import BALL, DISK, STACK, make_bank, make_models, make_volume, same_weights


@pytest.fixture
def keys(tmp_path):
    return Keyring(tmp_path / "keys")


@pytest.fixture
def folder(tmp_path, keys):
    """A bank of one version, and its signer's keys beside it."""
    make_bank(tmp_path / "bank", DISK, dice=0.8)
    return tmp_path / "bank"


def add_version(folder, keys, change=0.0):
    """One more version, in which the south site's model moved."""
    *others, last = make_models(DISK)
    weights = {k: v + change if v.is_floating_point() else v for k, v in last.weights.items()}
    return save_bank(folder, [*others, replace(last, weights=weights)], task=DISK, federation="f", keys=keys)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resign(folder, keys, **changes):
    """The served manifest with changes, signed again by whoever holds the keys."""
    draft = replace(read_manifest(folder), signer=keys.public_key, written=b"", **changes)
    serve_manifest(folder, replace(draft, signature=keys.sign(draft.signed_content())))


def test_what_was_saved_is_opened(folder, keys):
    bank = ModelBank.open(folder, task=DISK, keys=keys)
    models = make_models(DISK)
    assert bank.names == ["global", "north", "south"]
    assert len(bank) == 3
    assert bank.task == DISK
    assert all(same_weights(expert, model.weights) for expert, model in zip(bank.experts, models, strict=True))
    entry = bank.manifest.entries[1]
    assert (entry.role, entry.round_index, entry.samples, entry.metrics) == (Role.PERSONALIZED, 2, 10, {"dice": 0.8})
    assert bank.label == ModelBank.open(folder).label


def test_a_task_with_whole_numbers_for_fractions_is_signed_as_it_is_read(tmp_path, keys):
    task = replace(DISK, training=replace(DISK.training, alpha=0), spacing=(1, 1))
    save_bank(tmp_path / "b", make_models(task), task=task, federation="f", keys=keys)
    assert ModelBank.open(tmp_path / "b", keys=keys, task=task).task == task


def test_models_may_be_given_in_any_order(tmp_path, keys):
    models = make_models(DISK)
    bank = save_bank(tmp_path / "b", models[::-1], task=DISK, federation="f", keys=keys)
    assert bank.names == ["global", "north", "south"]
    assert same_weights(bank.find(None)[1], models[0].weights)
    assert same_weights(bank.find("south")[1], models[2].weights)
    assert bank.find("east") is None


def test_a_bank_builds_the_average_or_one_model(folder):
    bank = ModelBank.open(folder)
    assert same_weights(bank.build().state_dict(), average(bank.experts))
    network = bank.build(bank.experts[1])
    assert not network.training
    assert same_weights(network.state_dict(), bank.experts[1])


@pytest.mark.parametrize("chosen", [[], [1], [0, 0], [0, 1, 1]])
def test_a_bank_is_one_global_model_and_one_a_site(chosen, tmp_path, keys):
    models = make_models(DISK)
    with pytest.raises(BankError, match="expected one global model and one personalized model per site"):
        save_bank(tmp_path / "b", [models[i] for i in chosen], task=DISK, federation="f", keys=keys)


def test_a_model_of_another_network_is_not_saved_and_leaves_nothing(tmp_path, keys):
    models = [*make_models(DISK)[:2], replace(make_models(STACK)[2])]
    with pytest.raises(WeightsError, match=r"model of south: .* expected"):
        save_bank(tmp_path / "b", models, task=DISK, federation="f", keys=keys)
    assert not (tmp_path / "b").exists() or not contents(tmp_path / "b")


def test_an_altered_byte_is_named(folder):
    entry = read_manifest(folder).entries[2]
    content = bytearray((folder / entry.file).read_bytes())
    content[-1] ^= 1
    (folder / entry.file).write_bytes(content)
    with pytest.raises(BankError, match=f"entry south: {entry.file} has another checksum .*: the file was altered"):
        ModelBank.open(folder)


def test_a_missing_entry_is_named(folder):
    entry = read_manifest(folder).entries[1]
    (folder / entry.file).unlink()
    with pytest.raises(BankError, match=f"entry north: {entry.file} is missing"):
        ModelBank.open(folder)


def test_a_missing_bank_and_version_are_named(folder, tmp_path):
    with pytest.raises(BankError, match=r"expected a bank .*versions there: none"):
        ModelBank.open(tmp_path / "nowhere")
    with pytest.raises(BankError, match=r"expected version 9 .*versions there: 1"):
        ModelBank.open(folder, version=9)


def test_another_task_is_named_with_what_differs(folder):
    with pytest.raises(BankMismatchError, match=r"for another task .*slices: bank 1, task 3"):
        ModelBank.open(folder, task=STACK)
    ModelBank.open(folder, task=replace(DISK, training=replace(DISK.training, alpha=0.9), description="mine"))


def test_another_network_is_named(folder, keys):
    other = replace(DISK, network=Network("UNet", {"channels": [4, 4, 8], "strides": [2, 2], "norm": "batch"}))
    resign(folder, keys, task=other)
    with pytest.raises(BankMismatchError, match=r"entry global: .*expected \(.*given \("):
        ModelBank.open(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("federation", "another"), ("version", 7), ("created", "2001-01-01"), ("signature", "AAAA"), ("signature", "")],
)
def test_an_altered_manifest_is_refused(key, value, folder, keys):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    for accepted in (None, keys):
        with pytest.raises(BankTrustError, match="altered after it was signed, or not signed"):
            ModelBank.open(folder, keys=accepted)


def test_an_entrys_altered_metrics_are_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["entries"][1]["metrics"]["dice"] = 0.99
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BankTrustError, match="altered after it was signed"):
        ModelBank.open(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"samples": -1},
        {"samples": True},
        {"samples": 2.5},
        {"samples": "9"},
        {"round_index": -1},
        {"metrics": {"dice": "1"}},
    ],
)
def test_a_count_that_is_none_is_refused_whoever_signed_it(change, folder, keys):
    first, *others = read_manifest(folder).entries
    resign(folder, keys, entries=(replace(first, **change), *others))
    with pytest.raises(BankError, match=r"expected (round and samples|numbers as metrics) of global"):
        ModelBank.open(folder, keys=keys)


def test_a_strangers_bank_is_refused_until_trusted(folder, keys, tmp_path):
    mine = Keyring(tmp_path / "mine")
    with pytest.raises(BankTrustError, match=f"not trusted here.*iopfl bank trust {re.escape(keys.public_key)}"):
        ModelBank.open(folder, keys=mine)
    mine.trust(keys.public_key, "the consortium")
    assert ModelBank.open(folder, keys=mine).names == ["global", "north", "south"]
    assert mine.trusted() >= {keys.public_key}


@pytest.mark.parametrize("written_by", ["an older iopfl", "a newer iopfl's spelling"])
def test_a_bank_keeps_its_signature_when_tasks_have_gained_settings(written_by, folder, keys):
    """A manifest is signed as its file says it, not as this version of iopfl would write it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if written_by == "an older iopfl":
        del manifest["task"]["adaptation"]["zooms"], manifest["task"]["rotations"]
    else:
        manifest["task"]["training"]["learning_rate"] = 1
    content = json.dumps({k: v for k, v in manifest.items() if k != "signature"}, sort_keys=True).encode()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "signature": keys.sign(content)}))
    bank = ModelBank.open(folder, keys=keys)
    assert bank.task.rotations is False
    export_bank(folder, folder.parent / "bank.iopfl")
    assert import_bank(folder.parent / "bank.iopfl", folder.parent / "other", keys=keys).label == bank.label


def test_a_key_pair_is_made_once_and_only_its_owner_reads_it(tmp_path):
    first = Keyring(tmp_path / "k")
    assert first.public_key == Keyring(tmp_path / "k").public_key
    assert (tmp_path / "k" / "signing.key").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="expected a public key, 44 characters of base64, given 'me'"):
        first.trust("me")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a bank's manifest"),
        (b"[]", "expected a bank's manifest: TypeError"),
        (b"{}", "expected a bank's manifest: KeyError: 'format'"),
        (b'{"format": 99}', "bank format 99, this iopfl reads 1: update iopfl"),
        (b"\xff", "expected a bank's manifest"),
        (b"[" * 100_000, "expected a bank's manifest"),
    ],
)
def test_what_is_no_manifest_is_refused(content, message, folder):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(BankError, match=message):
        ModelBank.open(folder)


@pytest.mark.parametrize(
    "file", ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", ".x.safetensors", "w.pt"]
)
def test_an_entry_never_leads_out_of_the_folder(file, folder, keys, tmp_path):
    write_weights(tmp_path / "secret.safetensors", make_models(DISK)[0].weights)
    first, *others = read_manifest(folder).entries
    resign(folder, keys, entries=(replace(first, file=file), *others))
    with pytest.raises(BankError, match=r"entry global: expected a plain .safetensors file name, given"):
        ModelBank.open(folder, keys=keys)
    archive = tmp_path / "b.iopfl"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("manifest.json", (folder / "manifest.json").read_bytes())
        packed.writestr(file, b"x")
    before = contents(tmp_path)
    with pytest.raises(BankError, match=r"expected a plain .safetensors file name"):
        import_bank(archive, tmp_path / "in", keys=keys)
    assert contents(tmp_path) == before


def test_versions_are_kept_share_entries_and_roll_back(folder, keys):
    second = add_version(folder, keys, change=0.5)
    assert second.manifest.version == read_manifest(folder).version == 2
    assert list_versions(folder) == [1, 2]
    assert len(list(folder.glob("*.safetensors"))) == 4  # two of three are the same
    first = rollback_bank(folder, 1)
    assert first.manifest.version == read_manifest(folder).version == 1
    assert ModelBank.open(folder, keys=keys).label == first.label
    assert add_version(folder, keys, change=1.0).manifest.version == 3


def test_a_damaged_version_is_not_rolled_back_to(folder, keys):
    add_version(folder, keys, change=0.5)
    only_first = {e.file for e in read_manifest(folder, version=1).entries} - {
        e.file for e in read_manifest(folder).entries
    }
    (folder / only_first.pop()).unlink()
    with pytest.raises(BankError, match=r"entry south: .* is missing"):
        rollback_bank(folder, 1)
    assert read_manifest(folder).version == 2


def test_pruning_keeps_the_newest_and_the_served_with_their_entries(folder, keys):
    for change in (0.5, 1.0, 1.5):
        add_version(folder, keys, change)
    rollback_bank(folder, 2)
    assert prune_bank(folder, keep=1) == [1, 3]
    assert list_versions(folder) == [2, 4]
    for version in (None, 2, 4):
        ModelBank.open(folder, version=version)
    assert len(list(folder.glob("*.safetensors"))) == 4
    assert prune_bank(folder, keep=5) == []


@pytest.mark.parametrize("change", ["save", "import", "prune", "roll back"])
def test_who_changes_a_bank_waits_for_who_does(change, folder, keys, tmp_path):
    """Else a version that arrives just then loses its entries, which no manifest names yet, and is served."""
    add_version(folder, keys, change=0.5)
    add_version(folder, keys, change=1.0)
    export_bank(folder, tmp_path / "b.iopfl")
    begin = {
        "save": lambda: add_version(folder, keys, change=1.5),
        "import": lambda: import_bank(tmp_path / "b.iopfl", folder, keys=keys),
        "prune": lambda: prune_bank(folder, keep=1),
        "roll back": lambda: rollback_bank(folder, 2),
    }[change]
    with ThreadPoolExecutor(1) as pool:
        with hold_folder(folder):
            waiting = pool.submit(begin)
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
            assert (read_manifest(folder).version, list_versions(folder)) == (3, [1, 2, 3])
        waiting.result(30)


def test_an_exported_bank_is_imported_whole(folder, keys, tmp_path):
    export_bank(folder, tmp_path / "b.iopfl")
    bank = import_bank(tmp_path / "b.iopfl", tmp_path / "in", keys=keys, task=DISK)
    original = ModelBank.open(folder)
    assert bank.label == original.label
    assert all(same_weights(a, b) for a, b in zip(bank.experts, original.experts, strict=True))
    assert import_bank(tmp_path / "b.iopfl", tmp_path / "in", keys=keys).label == bank.label
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.iopfl", "bank", "in", "keys"]
    with pytest.raises(BankError, match=r"expected a name ending in .iopfl"):
        export_bank(folder, tmp_path / "b.zip")


def test_sites_with_equal_models_are_exported_and_imported(tmp_path, keys):
    """In a federation of one, the first round's average is that site's model."""
    models = make_models(DISK, sites=("north",))
    models = [replace(model, weights=models[0].weights) for model in models]
    save_bank(tmp_path / "bank", models, task=DISK, federation="f", keys=keys)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_bank(tmp_path / "bank", tmp_path / "b.iopfl")
    assert len(import_bank(tmp_path / "b.iopfl", tmp_path / "in", keys=keys)) == 2


def test_an_import_replaces_no_version_of_another_origin(folder, keys, tmp_path):
    export_bank(folder, tmp_path / "b.iopfl")
    save_bank(tmp_path / "other", make_models(DISK, sites=("east",)), task=DISK, federation="g", keys=keys)
    before = contents(tmp_path / "other")
    with pytest.raises(BankError, match="version 1 of another origin is in other already"):
        import_bank(tmp_path / "b.iopfl", tmp_path / "other", keys=keys)
    assert contents(tmp_path / "other") == before


def test_an_import_never_goes_back_to_an_older_version(folder, keys, tmp_path):
    """Of the same signer too: only who administers a bank decides to serve an older version."""
    export_bank(folder, tmp_path / "first.iopfl")
    add_version(folder, keys, change=0.5)
    export_bank(folder, tmp_path / "second.iopfl")
    for name in ("first", "second"):
        import_bank(tmp_path / f"{name}.iopfl", tmp_path / "in", keys=keys)
    before = contents(tmp_path / "in")
    with pytest.raises(
        BankError, match=r"expected version 2 or a newer one, .* given version 1: .* iopfl bank rollback"
    ):
        import_bank(tmp_path / "first.iopfl", tmp_path / "in", keys=keys)
    assert contents(tmp_path / "in") == before
    prune_bank(tmp_path / "in", keep=1)
    with pytest.raises(BankError, match="given version 1"):
        import_bank(tmp_path / "first.iopfl", tmp_path / "in", keys=keys)
    assert read_manifest(tmp_path / "in").version == 2


def test_a_strangers_import_changes_nothing(folder, tmp_path):
    export_bank(folder, tmp_path / "b.iopfl")
    with pytest.raises(BankTrustError, match=r"b.iopfl: signed by .* not trusted here"):
        import_bank(tmp_path / "b.iopfl", tmp_path / "in", keys=Keyring(tmp_path / "mine"))
    assert not (tmp_path / "in").exists()


def test_an_import_for_another_task_changes_nothing(folder, keys, tmp_path):
    export_bank(folder, tmp_path / "b.iopfl")
    with pytest.raises(BankMismatchError, match="is for another task"):
        import_bank(tmp_path / "b.iopfl", tmp_path / "in", keys=keys, task=BALL)
    assert not (tmp_path / "in").exists()


def repack(source, target, *, compression=zipfile.ZIP_STORED, changes=None):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            content = (changes or {}).get(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "no manifest", "no entry", "deflate", "encrypted"])
def test_an_archive_that_is_not_whole_is_refused(kind, folder, keys, tmp_path):
    export_bank(folder, tmp_path / "b.iopfl")
    entry = read_manifest(folder).entries[1].file
    bad = tmp_path / "bad.iopfl"
    if kind == "text":
        bad.write_text("no zip")
    elif kind == "truncated":
        bad.write_bytes((tmp_path / "b.iopfl").read_bytes()[:-200])
    elif kind == "no manifest":
        repack(tmp_path / "b.iopfl", bad, changes={"manifest.json": None})
    elif kind == "no entry":
        repack(tmp_path / "b.iopfl", bad, changes={entry: None})
    elif kind == "deflate":
        repack(tmp_path / "b.iopfl", bad, compression=zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(bad) as archive:
            start = archive.getinfo(entry).header_offset + 30 + len(entry)
        content = bytearray(bad.read_bytes())
        content[start : start + 40] = b"\xff" * 40
        bad.write_bytes(content)
    elif kind == "encrypted":
        content = bytearray((tmp_path / "b.iopfl").read_bytes())
        content[6] |= 1
        directory = content.find(b"PK\x01\x02")
        content[directory + 8] |= 1
        bad.write_bytes(content)
    with pytest.raises(BankError, match=r"bad.iopfl: expected a whole .iopfl file of a bank"):
        import_bank(bad, tmp_path / "in", keys=keys)
    assert not (tmp_path / "in").exists()


def test_an_entry_swapped_for_a_bomb_is_refused_before_it_is_unpacked(folder, keys, tmp_path, monkeypatch):
    export_bank(folder, tmp_path / "b.iopfl")
    entry = read_manifest(folder).entries[1].file
    bomb = repack(
        tmp_path / "b.iopfl", tmp_path / "bomb.iopfl", compression=zipfile.ZIP_DEFLATED, changes={entry: bytes(2**24)}
    )
    unpacked = []
    copy = shutil.copyfileobj
    monkeypatch.setattr(shutil, "copyfileobj", lambda a, b: (unpacked.append(a.name), copy(a, b)))
    with pytest.raises(BankError, match=r"entry north is of 16777216 bytes, more than its network's weights"):
        import_bank(bomb, tmp_path / "in", keys=keys)
    assert entry not in unpacked
    huge = repack(
        bomb, tmp_path / "huge.iopfl", compression=zipfile.ZIP_DEFLATED, changes={"manifest.json": bytes(2**25)}
    )
    with pytest.raises(BankError, match="its manifest is larger than"):
        import_bank(huge, tmp_path / "in", keys=keys)


def take_all(bank, content, pieces=7):
    """Have a bank arrive in pieces; gives how many bytes were taken before it was refused, and why."""
    for start in range(0, len(content), pieces):
        try:
            bank.take(content[start : start + pieces])
        except BankError as error:
            return start, str(error)
    return len(content), ""


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_bank_shows_its_signer_before_its_weights_arrive(compression, folder, keys, tmp_path):
    export_bank(folder, tmp_path / "a.iopfl")
    content = repack(tmp_path / "a.iopfl", tmp_path / "b.iopfl", compression=compression).read_bytes()
    first_entry = content.index(b"PK\x03\x04", 4)
    assert take_all(ArrivingBank("b", keys=keys, task=DISK), content) == (len(content), "")
    taken, why = take_all(ArrivingBank("b", keys=Keyring(tmp_path / "mine")), content)
    assert taken <= first_entry and "not trusted here" in why
    taken, why = take_all(ArrivingBank("b", keys=keys, task=BALL), content)
    assert taken <= first_entry and "is for another task" in why
    limit = len(content) + 4 * 2**20
    taken, why = take_all(ArrivingBank("b", keys=keys), content + bytes(2 * limit), pieces=2**16)
    assert taken < limit and re.search(r"b: expected at most \d+ bytes, as its manifest lists", why)


@pytest.mark.parametrize(
    "kind", ["text", "another first", "altered", "encrypted", "no size", "huge", "bomb", "damaged"]
)
def test_what_does_not_begin_as_a_bank_is_refused_at_its_beginning(kind, folder, keys, tmp_path):
    export_bank(folder, tmp_path / "a.iopfl")
    content = bytearray((tmp_path / "a.iopfl").read_bytes())
    name, said = len("manifest.json"), "expected a whole .iopfl file of a bank, its manifest.json first"
    if kind == "text":
        content[:4] = b"<htm"
    elif kind == "another first":
        content[30 : 30 + name] = b"manifest.jsop"
    elif kind == "altered":
        at = content.index(b'"samples": ') + len('"samples": ')
        content[at] = ord("7") if content[at] != ord("7") else ord("8")
        said = "altered after it was signed"
    elif kind in ("encrypted", "no size"):
        content[6] |= 1 if kind == "encrypted" else 8
    elif kind == "huge":
        content[18:22] = (2**25).to_bytes(4, "little")
        said = "its manifest is larger than"
    else:
        changes = {"manifest.json": bytes(2**25)}
        repack(tmp_path / "a.iopfl", tmp_path / "b.iopfl", compression=zipfile.ZIP_DEFLATED, changes=changes)
        content = bytearray((tmp_path / "b.iopfl").read_bytes())
        content[22:26] = (2**10).to_bytes(4, "little")
        said = "its manifest is larger than"
        if kind == "damaged":
            content[30 + name : 30 + name + 9] = b"\xff" * 9
            said = "expected a whole"
    taken, why = take_all(ArrivingBank("b", keys=keys), bytes(content) + bytes(2**22), pieces=2**14)
    assert taken < 2**17 and said in why, (taken, why)


def test_an_entry_swapped_for_another_is_refused(folder, keys, tmp_path):
    export_bank(folder, tmp_path / "b.iopfl")
    files = [entry.file for entry in read_manifest(folder).entries]
    swapped = repack(tmp_path / "b.iopfl", tmp_path / "s.iopfl", changes={files[1]: (folder / files[2]).read_bytes()})
    with pytest.raises(BankError, match=r"entry north: .* has another checksum"):
        import_bank(swapped, tmp_path / "in", keys=keys)
    assert not (tmp_path / "in").exists()


def test_a_diff_says_what_changed(folder, keys, tmp_path):
    first = ModelBank.open(folder)
    models = make_models(DISK, sites=("east", "north"), dice=0.9)
    task = replace(DISK, description="newer")
    second = save_bank(tmp_path / "other", models, task=task, federation="f", keys=keys)
    diff = diff_banks(first, second)
    assert (diff["added"], diff["removed"], diff["changed"]) == (["east"], ["south"], ["north"])
    assert diff["task"] == {"description": ["", "newer"]}
    assert diff["metrics"] == {"north": [{"dice": 0.8}, {"dice": 0.9}]}
    same = diff_banks(first, first)
    assert not any(same.values())


@pytest.mark.parametrize("after", range(4))
def test_a_full_disk_leaves_the_served_version_and_nothing_else(after, folder, keys, monkeypatch):
    """A version writes two new entries, its manifest and the served manifest: the disk fills up at each of them."""
    before, label = contents(folder), ModelBank.open(folder).label
    models = [replace(m, weights={k: v + 1 for k, v in m.weights.items()}) for m in make_models(DISK, sites=("north",))]
    sync, calls = os.fsync, []

    def fill_up(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(BankError, match=r"could not be written \(No space left on device\); the version before is as"):
        save_bank(folder, models, task=DISK, federation="f", keys=keys)
    assert contents(folder) == before
    assert ModelBank.open(folder).label == label


def test_an_opened_bank_runs(folder):
    with torch.no_grad():
        assert ModelBank.open(folder).build()(make_volume(DISK)[None, ..., 0]).shape == (1, 2, 32, 32)


def test_an_entry_that_is_listed_twice_is_refused(folder, keys):
    entries = read_manifest(folder).entries
    resign(folder, keys, entries=(*entries, entries[-1]))
    with pytest.raises(BankError, match="listed twice"):
        ModelBank.open(folder, keys=Keyring(folder.parent / "keys"))
