"""A label server whose disks are really full: 507, nothing of what was refused is kept, and it still answers."""

from __future__ import annotations

import pytest

from app.labels import draw
from app.site import APP, GLAND, conf_of, make_site_bank, write_scans
from full_disk import small_disk
from label_server import running_server

pytestmark = pytest.mark.long
IMAGE = "case03"


def test_a_full_disk_is_said_with_507_and_looking_still_works(tmp_path):
    label, other = draw(tmp_path / "label.nii.gz", slice(0, 3)), draw(tmp_path / "other.nii.gz", slice(2, 5))
    (tmp_path / "tmp").mkdir()
    with small_disk(tmp_path / "site_a", size="1m") as studies, small_disk(tmp_path / "state", size="4m") as state:
        write_scans(studies.path, labeled=1, unlabeled=4)
        conf = conf_of(make_site_bank(tmp_path / "bank", GLAND))
        options = {"conf": conf, "env": {"TMPDIR": str(tmp_path / "tmp")}}
        with running_server(APP, studies.path, state=state.path, **options) as server:

            def submit(file, image=IMAGE):
                return server.request("PUT", f"/datastore/label?image={image}", files={"label": file.open("rb")})

            def history(image=IMAGE):
                answer = server.get(f"/iopfl/labels/{image}")
                assert answer.status_code == 200, answer.text
                return [version["version"] for version in answer.json()["versions"]]

            assert submit(label).status_code == 200
            studies.fill()
            image = {"file": ("new.nii.gz", (studies.path / f"{IMAGE}.nii.gz").read_bytes())}
            refused = server.request("PUT", "/datastore/image", files=image)
            assert (refused.status_code, "not kept" in refused.text) == (507, True), refused.text
            assert "new" not in server.get("/datastore/?output=all").json()["objects"]
            kept = submit(other)
            assert (kept.status_code, "kept" in kept.json()["warning"]) == (200, True), kept.text
            draft = server.request(
                "PUT", f"/datastore/label?image={IMAGE}&tag=draft", files={"label": label.open("rb")}
            )
            assert draft.status_code == 507, draft.text
            assert history() == [1, 2] and history("case02") == []
            state.fill()
            refused = submit(label, "case02")
            assert (refused.status_code, "not kept" in refused.text) == (507, True), refused.text
            assert history() == [1, 2] and history("case02") == []
            session = server.request("PUT", "/session/", files={"files": ("x.nii.gz", label.read_bytes())})
            assert session.status_code == 507, session.text
            assert server.get("/iopfl/health").ok and server.get("/datastore/").ok
            state.clear()
            studies.clear()
            assert submit(label, "case02").status_code == 200 and history("case02") == [1]
            assert server.post(f"/iopfl/labels/{IMAGE}/undo").status_code == 200
