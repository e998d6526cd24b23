"""No request names a file of the server."""

from __future__ import annotations

import io
import tarfile

import pytest

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
