"""Each file of state, studies and bank is halved, emptied and taken away: the app starts, or says why not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from iopfl.base.errors import IOPFLError

from .labels import draw
from .site import GLAND, make_site_bank, write_scans

IMAGE = "case02"
DAMAGES = {"halved": lambda content: content[: len(content) // 2], "empty": lambda content: b"", "missing": None}


def start(home: Path):
    """The app as the server makes it."""
    from iopfl.app import IOPFLApp

    conf = {"bank": home / "bank", "keys": home / "keys", "site": "site_a", "state": home / "state"}
    app = IOPFLApp(str(home), str(home / "site_a"), {key: str(value) for key, value in conf.items()})
    app.datastore().versions.recover()
    app.datastore().repair()
    return app


@pytest.fixture(scope="module")
def used(tmp_path_factory) -> Path:
    """The folders of an app that was used: labels of two people, leases, a local model, used labels, rounds' facts."""
    from iopfl.compat import apply_tasks

    apply_tasks()
    from iopfl.core.predictor import LocalModel
    from iopfl.labels.used import describe_used, write_used

    home = tmp_path_factory.mktemp("used")
    write_scans(home / "site_a", labeled=2, unlabeled=4)
    bank = make_site_bank(home / "bank", GLAND)
    (home / "state").mkdir()
    app = start(home)
    store = app.datastore()
    for number, name in enumerate(("ann", "bob", "ann")):
        drawn = draw(home / "drawn.nii.gz", slice(number, number + 3))
        store.submit(IMAGE, drawn, {"client_id": name})
    store.undo(IMAGE, "ann")
    app.leases.lend("case04", "bob")
    store.update_image_info("case04", {"dice": 0.5})
    app.models.publish_local("gland", LocalModel(bank.experts[0], {"dice": 0.9, "local": 0.9}))
    write_used(home / "state" / "local" / "gland.labels.json", describe_used(store, [IMAGE]), model="x")
    (home / "state" / "local" / "gland.json").write_text('{"best_metric": 0.5}')
    return home


def files_of(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


def victims(home: Path) -> list[str]:
    """All files but images, empty ones and those that are remade with each start."""
    names = [name for name, content in files_of(home).items() if content and not name.startswith(("drawn", "keys/"))]
    return [name for name in names if not (name.startswith("site_a/") and name.count("/") == 1 and ".nii" in name)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_costs_no_label_and_gives_no_traceback(used, tmp_path, caplog, damage):
    tried = victims(used)
    assert {name.split("/")[0] for name in tried} == {"site_a", "state", "bank"} and len(tried) >= 15, tried
    for number, name in enumerate(tried):
        home = tmp_path / str(number)
        shutil.copytree(used, home)
        move_labels(home)
        before = files_of(home)
        path = home / moved(home, name)
        content = path.read_bytes()
        path.unlink()
        if DAMAGES[damage] is not None:
            path.write_bytes(DAMAGES[damage](content))
        caplog.clear()
        try:
            app = start(home)
        except IOPFLError as error:
            assert name.startswith("bank/") and "\n" not in str(error), name
            assert {**files_of(home), **{str(path.relative_to(home)): content}} == before, f"{name}: others changed"
            continue
        assert not [record for record in caplog.records if record.exc_info], name
        check_labels(app, home, before, name, damage)
        shutil.rmtree(home)


def check_labels(app, home: Path, before: dict[str, bytes], name: str, damage: str) -> None:
    """Every version's file is as it was, but for the one that was damaged; images and answers are there."""
    store = app.datastore()
    hurt = moved(home, name)
    for known, content in before.items():
        if "/labels/" in known and known.startswith("state/") and known.endswith(".nii.gz") and known != hurt:
            assert (home / known).read_bytes() == content, f"{name} {damage}: {known} changed"
    assert len(store.list_images()) == 6, name
    history = store.history(IMAGE)
    numbers = [version.number for version in history.versions]
    assert numbers[:3] == [1, 2, 3], f"{name} {damage}: {numbers}"
    drawn = draw(home / "new.nii.gz", slice(9, 12))
    assert store.submit(IMAGE, drawn, {"client_id": "joe"}).number > 3
    assert store.get_label_info(IMAGE, "final")["annotator"] == "joe"
    for version in store.history(IMAGE).counting:
        assert not version.file or store.versions.is_whole(IMAGE, version) or version.file in hurt, (name, version)
    assert app.info()["datastore"]["total"] == 6
    assert app.models.describe("gland")["bank"]
    app.next_sample({"strategy": "random", "client_id": "zoe"})


def labels_folder(home: Path) -> str:
    from iopfl.app import _folder_name

    return _folder_name(str(home / "site_a"))


def move_labels(home: Path) -> None:
    """Give the versions the folder that the copied studies have."""
    (old,) = (home / "state" / "labels").iterdir()
    old.rename(home / "state" / "labels" / labels_folder(home))


def moved(home: Path, name: str) -> str:
    parts = name.split("/")
    if parts[:2] == ["state", "labels"]:
        parts[2] = labels_folder(home)
    return "/".join(parts)
