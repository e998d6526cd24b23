"""Endpoints answer in time, in plain words, and without help from the internet."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import re
import socket
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import psutil
import pytest
import SimpleITK

from iopfl.access.connections import MOST
from iopfl.images.places import find_stack
from label_server import params, wait_until, write_volume


@pytest.mark.parametrize(
    ("method", "path", "told"),
    [
        ("POST", "/infer/nope?image=case0", "threshold"),
        ("POST", "/infer/threshold?image=nope", "case0, case1, case2"),
        ("POST", "/infer/threshold?session_id=nope", "no session 'nope'"),
        ("POST", "/batch/infer/nope", "threshold"),
        ("POST", "/train/nope", "one_weight"),
        ("POST", "/scoring/nope", "dice"),
        ("POST", "/activelearning/nope", "random"),
        ("GET", "/model/nope", "threshold"),
        ("GET", "/model/info/nope", "threshold"),
        ("GET", "/session/nope", "no session 'nope'"),
        ("GET", "/datastore/image?image=nope", "case0"),
        ("DELETE", "/datastore/image?id=nope", "case0"),
        ("GET", "/datastore/image/info?image=nope", "case0"),
        ("PUT", "/datastore/image/info?image=nope", "case0"),
        ("GET", "/datastore/label?label=case0&tag=nope", "final"),
        ("GET", "/datastore/label/info?label=nope&tag=final", "case0"),
        ("PUT", "/datastore/label/info?label=nope&tag=final", "case0"),
        ("DELETE", "/datastore/label?id=nope&tag=final", "case0"),
    ],
)
def test_unknown_names_are_404_and_told_what_there_is(server, method, path, told):
    answer = server.request(method, path)
    assert (answer.status_code, told in answer.json()["detail"]) == (404, True), answer.text


def test_a_label_for_an_unknown_image_is_404(server, tmp_path):
    files = {"label": ("x.nii.gz", write_volume(tmp_path / "x.nii.gz").read_bytes())}
    assert server.request("PUT", "/datastore/label?image=nope", files=files).status_code == 404


def test_what_itk_would_not_open_is_handed_out_so_that_it_does(server, state, tmp_path):
    affine = np.array([[0.8, 0.1, 0, 5], [0, 0.9, 0, -7], [0, 0, 3, 2], [0, 0, 0, 1]])
    volume = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), affine)
    volume.header["qform_code"] = 0
    nib.save(volume, tmp_path / "leaning.nii.gz")
    content = (tmp_path / "leaning.nii.gz").read_bytes()
    files = {"file": ("leaning.nii.gz", content)}
    server.request("PUT", "/datastore/image?image=leaning", files=files).raise_for_status()
    try:
        before = set((state / "tmp").iterdir())
        answer = server.get("/datastore/image?image=leaning")
        assert "leaning.nii.gz" in answer.headers["content-disposition"]
        (tmp_path / "sent.nii.gz").write_bytes(answer.content)
        shown, seen = SimpleITK.ReadImage(str(tmp_path / "sent.nii.gz")), nib.load(tmp_path / "sent.nii.gz")
        stack = find_stack(tmp_path / "leaning.nii.gz")
        assert np.allclose(seen.affine, stack.straight_affine)
        assert np.array_equal(stack.take(SimpleITK.GetArrayFromImage(shown).T), np.asarray(volume.dataobj))
        middle = seen.affine @ [1.5, 2, 2.5, 1]
        assert np.allclose(shown.TransformContinuousIndexToPhysicalPoint([1.5, 2, 2.5]), middle[:3] * [-1, -1, 1])
        for algorithm in ("SHA256", "SHA512", "MD5"):
            for sent, status in ((answer.content, 200), (content, 404)):
                kind = {"image": "leaning", "check_sum": f"{algorithm}:{hashlib.new(algorithm, sent).hexdigest()}"}
                assert server.request("HEAD", "/datastore/image", params=kind).status_code == status, algorithm
        wait_until(lambda: set((state / "tmp").iterdir()) <= before, 5, what="the copies to be removed")
        session = server.request("PUT", "/session/", files={"files": files["file"]}).json()["session_id"]
        again = server.get(f"/session/{session}?image=true").content
        assert gzip.decompress(again) == gzip.decompress(answer.content)
    finally:
        server.request("DELETE", "/datastore/image?id=leaning").raise_for_status()
    server.get("/datastore/image?image=case0").raise_for_status()


def test_a_check_sum_is_of_what_a_download_sends(server, studies):
    digest = hashlib.sha256((studies / "case0.nii.gz").read_bytes()).hexdigest()
    for check_sum in (digest, f"SHA256:{digest}", digest.upper()):
        assert server.request("HEAD", f"/datastore/image?image=case0&check_sum={check_sum}").status_code == 200
    for start in "SHA256:":  # upstream strips these characters off the digits, however many
        assert (
            server.request("HEAD", f"/datastore/image?image=case0&check_sum=SHA256:{start}{digest}").status_code == 404
        )


def test_inference_without_an_image_is_refused(server):
    assert server.post("/infer/threshold").status_code == 400
    assert server.post("/infer/threshold?image=case0&output=dicom_seg").status_code == 400


def test_inference_on_an_upload_and_on_a_session(server, studies):
    volume = ("u.nii.gz", (studies / "case0.nii.gz").read_bytes())
    answer = server.post("/infer/threshold?output=image", files={"file": volume})
    assert answer.content[:2] == b"\x1f\x8b"
    session = server.request("PUT", "/session/", files={"files": volume}).json()["session_id"]
    assert server.post(f"/infer/threshold?session_id={session}&output=json").json()["label_names"]


@pytest.mark.parametrize(
    ("method", "path", "field", "name"),
    [
        ("PUT", "/datastore/label?image=nope", "label", "x.nii.gz"),
        ("PUT", "/datastore/label?image=case0", "label", "x.nii.gz"),
        ("PUT", "/datastore/image?image=new", "file", "x.nii.gz"),
        ("PUT", "/session/?uncompress=true", "files", "x.zip"),
        ("POST", "/infer/threshold", "file", "x.nii.gz"),
        ("POST", "/infer/threshold?image=case0&output=dicom_seg", "label", "x.nii.gz"),
    ],
)
def test_nothing_of_a_refused_request_stays_on_the_disk(server, state, method, path, field, name):
    before = set((state / "tmp").iterdir())
    answer = server.request(method, path, files={field: (name, b"neither")}, data={"params": "{"})
    assert answer.status_code >= 400
    wait_until(lambda: set((state / "tmp").iterdir()) <= before, 5, what="the request's files to be removed")


def test_an_unforeseen_error_is_a_number_in_the_log(server):
    answer = server.post("/infer/threshold?image=case0", data=params(fail=True))
    number = re.search(r"ValueError: look for (\w+) in its log", answer.json()["detail"])[1]
    assert (answer.status_code, "secret" in answer.text) == (500, False)
    log = server.get("/logs/?lines=1000").text
    assert number in log and "secret" in log


def test_other_requests_are_answered_during_an_inference(server):
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.post, "/infer/threshold?image=case0", data=params(seconds=2))
        time.sleep(0.3)
        waits = []
        while not slow.done():
            start = time.monotonic()
            assert server.get("/info/").ok
            waits.append(time.monotonic() - start)
        assert slow.result().ok
    assert len(waits) > 2 and max(waits) < 1.0


def test_inferences_wait_for_each_other_and_too_many_are_refused(server):
    with ThreadPoolExecutor(20) as pool:
        start = time.monotonic()
        answers = list(
            pool.map(lambda _: server.post("/infer/threshold?image=case0", data=params(seconds=0.1)), range(20))
        )
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {200, 503}
    assert 3 >= statuses.count(503) > 0
    assert time.monotonic() - start > 0.1 * statuses.count(200)


def test_damaged_statistics_do_not_hide_the_server(server, state):
    path = state / "model" / "train_stats.json"
    path.parent.mkdir(exist_ok=True)
    for text in ('{"best_metric": NaN', '{"best_metric": NaN}', "{}"):
        path.write_text(text)
        assert server.get("/info/").status_code == 200, text


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/reload"), ("PUT", "/model/threshold"), ("DELETE", "/model/threshold")]
)
def test_routes_that_change_the_server_are_gone(server, method, path):
    assert server.request(method, path).status_code in (404, 405)


def test_other_origins_get_no_permission(server):
    answer = server.get("/info/", headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_ohif_serves_its_subfolders(server):
    page = server.get("/ohif/")
    assert "text/html" in page.headers["content-type"]
    assert server.get("/ohif/viewer?StudyInstanceUIDs=1").text == page.text
    assert server.get("/ohif/assets/favicon.ico").content[:4] == b"\x00\x00\x01\x00"
    assert server.get("/ohif/assets/nothing.js").status_code == 404
    assert server.get("/ohif/%2e%2e/%2e%2e/ohif.py").status_code == 404


def test_start_page_is_not_swagger(server):
    assert "swagger" not in server.get("/").text.lower()


@pytest.mark.parametrize("path", ["/docs", "/logs/", "/logs/?refresh=5"])
def test_pages_need_no_internet(server, path):
    answer = server.get(path)
    assert answer.ok
    assert "<script" not in answer.text and "cdn" not in answer.text.lower()


def test_docs_list_the_routes(server):
    assert "<code>/infer/{model}</code>" in server.get("/docs").text


def test_the_log_is_the_state_folders(server, state, studies):
    last = (state / "logs" / "app.log").read_text().splitlines()[-1]
    shown = last.replace(f"{state}/", "").replace(f"{studies}/", "")  # an answer does not tell where these are
    assert shown in server.get("/logs/?lines=50").text
    assert len(server.get("/logs/?lines=2").text.splitlines()) == 2


def test_gpu_report_never_fails(server):
    assert server.get("/logs/gpu").status_code in (200, 404)


def test_archive_of_the_dataset_is_not_left_behind(server, state):
    assert server.get("/datastore/dataset").content[:2] == b"PK"

    def left():
        return [path for path in (state / "tmp").iterdir() if path.is_file() and zipfile.is_zipfile(path)]

    wait_until(lambda: not left(), 5, what="the archive to be removed")


def test_proxy_without_a_pacs_says_so(server):
    answer = server.get("/proxy/dicom/qido/studies")
    assert (answer.status_code, "no PACS" in answer.text) == (404, True)


def test_numbers_that_json_cannot_say_do_not_hide_the_datastore(server):
    server.request("PUT", "/datastore/image/info?image=case0", data={"info": '{"dice": NaN}'}).raise_for_status()
    assert server.get("/datastore/image/info?image=case0").json()["dice"] is None
    assert server.get("/datastore/?output=all").json()["objects"]["case0"]["image"]["info"]["dice"] is None


def test_an_image_may_be_offered_twice_in_a_second(server):
    offered = [server.post("/activelearning/random").json()["id"] for _ in range(8)]
    assert set(offered) == {"case2"}


def test_hundreds_who_send_half_a_header_keep_nobody_out_and_files_are_bounded(server):
    address = ("127.0.0.1", urlsplit(server.url).port)
    before = psutil.Process(server.pid).num_fds()
    with contextlib.ExitStack() as stack:
        for _ in range(MOST + 100):
            half = stack.enter_context(socket.create_connection(address, timeout=30))
            half.sendall(b"GET /info/ HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert server.get("/info/").ok
        assert psutil.Process(server.pid).num_fds() <= before + MOST + 5
    assert server.get("/info/").ok
