"""No request names a file of the server."""

from __future__ import annotations

import io
import json
import tarfile
import uuid
import zipfile
from types import SimpleNamespace

import pytest
from fastapi import HTTPException

from iopfl.base.errors import StorageError
from iopfl.compat import _archives, file_access
from label_server import params, write_volume

EVIL = ["../evil", "/etc/passwd", "..", "a/b", "a\\b", "a\nb"]

# Each endpoint that takes a name, and the argument that carries it.
NAMED = [
    ("POST", "/infer/threshold", "image", {}),
    ("POST", "/infer/wsi/threshold", "image", {}),
    ("POST", "/infer/wsi_v2/threshold", "image", {}),
    ("POST", "/infer/threshold", "session_id", {}),
    ("GET", "/datastore/image", "image", {}),
    ("HEAD", "/datastore/image", "image", {}),
    ("DELETE", "/datastore/image", "id", {}),
    ("GET", "/datastore/image/info", "image", {}),
    ("PUT", "/datastore/image/info", "image", {}),
    ("GET", "/datastore/label", "label", {"tag": "final"}),
    ("GET", "/datastore/label", "tag", {"label": "case0"}),
    ("HEAD", "/datastore/label", "image", {"tag": "final"}),
    ("DELETE", "/datastore/label", "id", {"tag": "final"}),
    ("DELETE", "/datastore/label", "tag", {"id": "case0"}),
    ("GET", "/datastore/label/info", "label", {"tag": "final"}),
    ("PUT", "/datastore/label/info", "label", {"tag": "final"}),
    ("PUT", "/datastore/updatelabelinfo", "label", {"tag": "final"}),
]


def volume(tmp_path, name="x.nii.gz"):
    return (name, write_volume(tmp_path / "upload.nii.gz", high=2).read_bytes())


@pytest.mark.parametrize(("method", "path", "argument", "others"), NAMED)
def test_names_with_separators_are_refused(server, method, path, argument, others):
    for evil in EVIL:
        assert server.request(method, path, params={argument: evil, **others}).status_code == 400, evil


@pytest.mark.parametrize("path", ["/session/%2e%2e", "/model/%2e%2e", "/model/info/%2e%2e"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_names_in_paths_are_refused(server, state, method, path):
    (state / "sessions").mkdir(exist_ok=True)
    assert server.request(method, path).status_code in (400, 405)
    assert (state / "sessions").is_dir()


@pytest.mark.parametrize("evil", EVIL)
def test_uploads_stay_in_the_datastore(server, studies, tmp_path, evil):
    before = sorted(studies.parent.rglob("*evil*"))
    for path, field, query in [
        ("/datastore/image", "file", {"image": evil}),
        ("/datastore/", "file", {"image": evil}),
        ("/datastore/label", "label", {"image": evil}),
        ("/datastore/label", "label", {"image": "case2", "tag": evil}),
    ]:
        answer = server.request("PUT", path, params=query, files={field: volume(tmp_path)})
        assert answer.status_code == 400, (path, query)
    assert sorted(studies.parent.rglob("*evil*")) == before


@pytest.mark.parametrize("name", ["datastore_v2.json", ".lock", "page.html", "noextension"])
def test_only_images_are_stored(server, studies, tmp_path, name):
    index = (studies / "datastore_v2.json").read_text()
    files = {"file": volume(tmp_path, name)}
    answer = server.request("PUT", "/datastore/image", files=files)
    assert (answer.status_code, "must end in" in answer.text) == (400, True)
    assert (studies / "datastore_v2.json").read_text() == index


def test_images_and_labels_can_still_be_stored_and_removed(server, studies, tmp_path):
    files = {"file": volume(tmp_path, "new.case.nii.gz")}
    answer = server.request("PUT", "/datastore/image", params={"image": "new.case"}, files=files)
    assert answer.json() == {"image": "new.case"}
    files = {"label": volume(tmp_path)}
    server.request("PUT", "/datastore/label", params={"image": "new.case"}, files=files).raise_for_status()
    assert server.get("/datastore/label", params={"label": "new.case", "tag": "final"}).ok
    assert server.request("DELETE", "/datastore/image", params={"id": "new.case"}).ok
    assert not list(studies.rglob("new.case*"))


@pytest.mark.parametrize(
    "extra",
    [
        {"image": "/etc/passwd"},
        {"label": "/etc/passwd"},
        {"session": {"image": "/etc/passwd"}},
        {"label_tag": "../../evil"},
        {"result_extension": "/../../x"},
        {"model": "../x"},
    ],
)
def test_params_of_inference_cannot_name_files(server, extra):
    answer = server.post("/infer/threshold?image=case0", data=params(**extra))
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("/batch/infer/threshold", {"images": ["/etc/passwd"]}),
        ("/batch/infer/threshold", {"images": "../x"}),
        ("/batch/infer/threshold", {"label_tag": "../x"}),
        ("/batch/infer/threshold", {"image": "/etc/passwd"}),
        ("/train/one_weight", {"train_ds": "/etc/passwd"}),
        ("/train/one_weight", {"name": "../../x"}),
        ("/train/one_weight", {"bundle_path": "/tmp"}),
        ("/train/", {"one_weight": {"val_ds": "/etc/passwd"}}),
        ("/scoring/dice", {"y": "../x"}),
        ("/activelearning/random", {"image": "/etc/passwd"}),
    ],
)
def test_params_of_tasks_cannot_name_files(server, path, extra):
    assert server.post(path, json=extra).status_code == 400


def test_params_that_are_no_json_are_refused_plainly(server):
    answer = server.post("/infer/threshold?image=case0", data={"params": "{"})
    assert (answer.status_code, "params must be JSON" in answer.text) == (400, True)


def test_archives_unpack_into_their_folder_only(server, tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo(str(tmp_path / "evil.txt"))
        archive.addfile(member, io.BytesIO())
    files = {"files": ("x.tar", packed.getvalue())}
    server.request("PUT", "/session/?uncompress=true", files=files)
    assert not (tmp_path / "evil.txt").exists()


def test_a_tag_is_a_plain_word_at_every_door(server, studies, tmp_path):
    before = sorted(studies.rglob("*"))
    for tag in (".iopfl-x", "final ", "Final", "original.", "f\u0456nal", "x" * 41, "-x", ""):
        for method, path, options in [
            ("PUT", "/datastore/label?image=case2", {"files": {"label": volume(tmp_path)}}),
            ("GET", "/datastore/label?label=case0", {}),
            ("HEAD", "/datastore/label?image=case0", {}),
            ("DELETE", "/datastore/label?id=case0", {}),
            ("GET", "/datastore/label/info?label=case0", {}),
            ("PUT", "/datastore/label/info?label=case0", {}),
        ]:
            answer = server.request(method, path, params={"tag": tag}, **options)
            assert answer.status_code == 400, (method, path, tag, answer.text)
        for path in ("/infer/threshold?image=case0", "/batch/infer/threshold"):
            options = {"data": params(label_tag=tag)} if "?" in path else {"json": {"label_tag": tag}}
            assert server.post(path, **options).status_code == 400, (path, tag)
    assert sorted(studies.rglob("*")) == before


@pytest.mark.parametrize(
    "key", ["Modality", "name", "ts", "StudyInstanceUID", "other_files", "strategy", "tasks", "model"]
)
def test_what_the_server_goes_by_is_not_for_clients_to_say(server, tmp_path, key):
    text = json.dumps({key: "x"})
    for method, path, options in [
        ("PUT", "/datastore/image/info?image=case0", {"data": {"info": text}}),
        ("PUT", "/datastore/label/info?label=case0&tag=final", {"data": {"info": text}}),
        ("PUT", "/datastore/updatelabelinfo?label=case0&tag=final", {"data": {"params": text}}),
        ("PUT", "/datastore/image?image=new", {"data": {"params": text}, "files": {"file": volume(tmp_path)}}),
    ]:
        answer = server.request(method, path, **options)
        assert (answer.status_code, "must not hold" in answer.text) == (400, True), (path, answer.text)
    said = server.request("PUT", "/datastore/image/info?image=case0", data={"info": '{"seen": true}'})
    assert said.ok and server.get("/datastore/image/info?image=case0").json()["seen"] is True
    long = server.request("PUT", "/datastore/image/info?image=case0", data={"info": json.dumps({"x": "y" * 2**14})})
    assert (long.status_code, "characters" in long.text) == (400, True)


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("POST", "/infer/threshold?image=case0", {"data": {"params": "3"}}),
        ("POST", "/infer/threshold?image=case0", {"data": {"params": "null"}}),
        ("POST", "/infer/threshold?image=case0", {"data": {"params": "[" * 100_000}}),
        ("POST", "/infer/threshold?image=case0", {"data": {"params": '{"a": "\\ud800"}'}}),
        ("POST", "/infer/threshold?image=case0", {"data": {"params": '{"\\ud800": 1}'}}),
        ("POST", "/infer/threshold?image=case0", {"data": {"params": '{"model": {}}'}}),
        ("POST", "/activelearning/random", {"json": {"strategy": ["random"]}}),
        ("POST", "/train/one_weight", {"data": '{"a": NaN}', "headers": {"Content-Type": "application/json"}}),
        ("POST", "/scoring/", {"data": '{"a": [1e999]}', "headers": {"Content-Type": "application/json"}}),
        ("POST", "/scoring/", {"json": {"model": [None]}}),
        ("POST", "/batch/infer/threshold?run_sync=true", {"json": {"max_batch_size": "x"}}),
        ("POST", "/batch/infer/threshold?run_sync=true", {"json": {"max_workers": -1}}),
        ("POST", "/batch/infer/threshold", {"json": {"gpus": ["0"]}}),
        ("PUT", "/datastore/image/info?image=case0", {"data": {"info": "[]"}}),
        ("PUT", "/datastore/image/info?image=case0", {"data": {"info": '{"strategy": "x"}'}}),
        ("PUT", "/datastore/label/info?label=case0&tag=final", {"data": {"info": '{"annotator": "x"}'}}),
        ("PUT", "/datastore/updatelabelinfo?label=case0&tag=final", {"data": {"params": '{"version": 7}'}}),
        ("POST", "/infer/wsi_v2/threshold?image=case0", {"data": {"wsi": "null"}}),
        ("POST", "/infer/wsi_v2/threshold?image=case0", {"data": {"wsi": '{"level": "x"}'}}),
        ("POST", "/infer/wsi_v2/threshold?image=case0", {"data": {"wsi": "{"}}),
    ],
)
def test_what_is_no_object_of_plain_values_is_refused_and_not_kept(server, method, path, options):
    answer = server.request(method, path, **options)
    assert answer.status_code == 400, answer.text
    assert server.post("/activelearning/random").ok and server.get("/scoring/?all=true").status_code < 500


@pytest.mark.parametrize(
    "name", [".x.nii.gz", "meta.info", "..", ".", "a\x00b.nii.gz", "x" * 300 + ".nii.gz", "a." + "x" * 300]
)
def test_uploads_have_names_that_files_can_have(server, tmp_path, name):
    for method, path, field in [
        ("POST", "/infer/threshold", "file"),
        ("POST", "/infer/threshold?image=case0", "label"),
        ("POST", "/infer/wsi_v2/threshold", "file"),
        ("PUT", "/datastore/image", "file"),
        ("PUT", "/datastore/label?image=case0", "label"),
        ("PUT", "/session/", "files"),
    ]:
        answer = server.request(method, path, files={field: volume(tmp_path, name)})
        assert answer.status_code == 400, (path, answer.text)


def test_names_are_no_longer_than_files_can_be(server, tmp_path):
    for name in ("x" * 300, "\U0001f9b4" * 60):
        answer = server.request("PUT", "/datastore/image", params={"image": name}, files={"file": volume(tmp_path)})
        assert (answer.status_code, "at most 200 bytes" in answer.text) == (400, True)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar", "a.nii.gz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x1f\x8b no archive"])
def test_what_is_no_archive_is_refused(server, name, content):
    answer = server.request("PUT", "/session/?uncompress=true", files={"files": (name, content)})
    assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_that_would_fill_the_disk_is_not_unpacked(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(_archives, "MAX_UNPACKED", 2**20)
    folder = tmp_path / "unpacked"
    folder.mkdir()
    packed = tmp_path / f"bomb.{'zip' if kind == 'zip' else 'tar.gz'}"
    if kind == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(2**22))
    else:
        with tarfile.open(packed, "w:gz") as archive:
            member = tarfile.TarInfo("zeros")
            member.size = 2**22
            archive.addfile(member, io.BytesIO(bytes(2**22)))
    with pytest.raises(HTTPException, match="at most"):
        file_access._Shutil.unpack_archive(str(packed), str(folder))
    assert not list(folder.glob("*")) and not packed.exists()


def _tar(*members: tuple[str, bytes, bytes], pad: int = 0) -> bytes:
    """A .tar.gz of (name, type, content)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.GNU_FORMAT) as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content)
            archive.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))
            archive.fileobj.write(content + bytes(-len(content) % 512))
        archive.fileobj.write(bytes(pad))
    return packed.getvalue()


def _zip(*names: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return packed.getvalue()


_PAX_SPARSE = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
BOMBS = {
    "thousands of folders": _tar(*((f"d{number}", b"5", b"") for number in range(60))),
    "thousands of names": _zip(*(f"d{number}" for number in range(60))),
    "folders in folders": _tar(("a/" * 400, b"5", b"")),
    "folders in folders of a zip": _zip("a/" * 400),
    "a name of megabytes": _tar(("././@LongLink", b"L", bytes(2**21)), ("x", b"0", b"")),
    "a header of megabytes": _tar(("x", b"x", bytes(2**21)), ("x", b"0", b"")),
    "a sparse file": _tar(("x", b"S", b"")),
    "a link": _tar(("x", b"2", b"")),
    "a device": _tar(("x", b"3", b"")),
    "a name that leads out": _tar(("a/../../x", b"0", b"x")),
    "a whole path": _tar(("/tmp/x", b"0", b"x")),
    "a name in a zip that leads out": _zip("a", "../x"),
    "a drive": _zip("C:x"),
    "a map without end": _tar(("x", b"x", _PAX_SPARSE), ("x", b"0", b"1" * 2**19)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_archive_is_looked_through_as_it_would_be_unpacked(tmp_path, monkeypatch, bomb):
    monkeypatch.setattr(_archives, "MAX_UNPACKED", 2**20)
    monkeypatch.setattr(_archives, "MAX_MEMBERS", 50)
    packed, folder = tmp_path / "bomb.tar.gz", tmp_path / "unpacked"
    folder.mkdir()
    packed.write_bytes(BOMBS[bomb])
    with pytest.raises(HTTPException, match=r"expected an? (whole )?archive"):
        file_access._Shutil.unpack_archive(str(packed), str(folder))
    assert not list(folder.glob("*")) and not packed.exists()


def test_what_is_hidden_in_an_archive_is_not_kept(tmp_path):
    packed, folder = tmp_path / "mac.zip", tmp_path / "unpacked"
    folder.mkdir()
    packed.write_bytes(_zip("a/b.txt", "a/._b.nii.gz", ".hidden/c.nii.gz", ".DS_Store"))
    file_access._Shutil.unpack_archive(str(packed), str(folder))
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["a", "a/b.txt"]


def test_an_archive_of_two_kinds_is_unpacked_as_what_it_was_looked_through(tmp_path, monkeypatch):
    monkeypatch.setattr(_archives, "MAX_UNPACKED", 2**20)
    packed, folder = tmp_path / "x.tar.gz", tmp_path / "unpacked"
    folder.mkdir()
    packed.write_bytes(_tar(("zeros", b"0", bytes(2**20 + 1)), pad=2**20) + _zip("a"))
    file_access._Shutil.unpack_archive(str(packed), str(folder))
    assert [(file.name, file.stat().st_size) for file in folder.iterdir()] == [("a", 0)]


def test_what_is_unpacked_again_and_again_leaves_the_disk_room(tmp_path, monkeypatch):
    monkeypatch.setattr(_archives.shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=10**10))
    packed = tmp_path / "full.zip"
    packed.write_bytes(_zip("a"))
    _archives.check_room(tmp_path, 0)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("b", b"b")
    with pytest.raises(StorageError, match="no room"):
        file_access._Shutil.unpack_archive(str(packed), str(tmp_path / "unpacked"))
    assert not packed.exists() and not (tmp_path / "unpacked").exists()


def test_nobody_can_guess_another_ones_session(server, tmp_path):
    names = [server.request("PUT", "/session/", files={"files": volume(tmp_path)}).json()["session_id"] for _ in "ab"]
    assert [uuid.UUID(name).version for name in names] == [4, 4]


@pytest.mark.parametrize(("check_sum", "status"), [("nonsense:1", 400), ("SHA256:1", 404), ("1", 404), (":", 400)])
def test_an_unknown_kind_of_check_sum_is_refused(server, check_sum, status):
    answer = server.request("HEAD", "/datastore/image", params={"image": "case0", "check_sum": check_sum})
    assert answer.status_code == status
