"""DCMTK's commands against our SCP: what a hospital's own programs do."""

from __future__ import annotations

import re

import pytest
from pydicom import dcmread
from pydicom.uid import JPEGLosslessSV1, RLELossless

from dicomio.phantoms import write
from dimse.nodes import HERE, make_certificates, make_slices, read_all, run_dcmtk, running_scp
from iopfl.dimse.peers import TLS, Peer
from iopfl.dimse.query import QueryRetrieve
from orthanc import free_port


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def node(tmp_path, port):
    """Our SCP; PACS is whoever listens on `port`."""
    peers = {"PACS": Peer("PACS", HERE, port)}
    with running_scp(tmp_path / "node", services=lambda inbox: [QueryRetrieve(inbox, peers.get).service]) as node:
        yield node


@pytest.fixture
def series(tmp_path):
    """Three slices, and the folder they lie in."""
    datasets = make_slices(3)
    return datasets, write(datasets, tmp_path / "series")


def test_echoscu(node):
    run_dcmtk("echoscu", "-aec", "IOPFL", HERE, node.port)
    refused = run_dcmtk("echoscu", "-aec", "OTHER", HERE, node.port, check=False)
    assert refused.returncode != 0 and "Called AE Title Not Recognized" in refused.stderr


def test_storescu_findscu_getscu_and_movescu(node, port, series, tmp_path):
    datasets, folder = series
    run_dcmtk("storescu", "-aec", "IOPFL", "+sd", HERE, node.port, folder)
    uids = {ds.SOPInstanceUID: ds for ds in datasets}
    assert {path.stem: dcmread(path) for path in node.stored()} == uids
    key = f"SeriesInstanceUID={datasets[0].SeriesInstanceUID}"
    words = ("-S", "-k", "QueryRetrieveLevel=SERIES", "-k", key, "-k", "NumberOfSeriesRelatedInstances")
    found = run_dcmtk("findscu", "-v", "-aec", "IOPFL", *words, HERE, node.port)
    assert re.search(r"\(0020,1209\) IS \[3 *\]", found.stdout + found.stderr)
    retrieve = ("-S", "-aec", "IOPFL", "-k", "QueryRetrieveLevel=SERIES", "-k", key)
    for program, more in (("getscu", ()), ("movescu", ("-aem", "PACS", "+P", port))):
        target = tmp_path / program
        target.mkdir()
        run_dcmtk(program, *retrieve, *more, "-od", target, HERE, node.port)
        assert read_all(target) == uids
    unknown = run_dcmtk("movescu", *retrieve, "-aem", "NOBODY", HERE, node.port, check=False)
    assert "MoveDestinationUnknown" in unknown.stderr.replace(" ", "")


@pytest.mark.parametrize(
    ("program", "syntax", "option"), [("dcmcrle", RLELossless, "-xr"), ("dcmcjpeg", JPEGLosslessSV1, "-xs")]
)
def test_storescu_sends_compressed_instances_as_they_are(node, series, tmp_path, program, syntax, option):
    datasets, folder = series
    pixels = {ds.SOPInstanceUID: ds.pixel_array for ds in datasets}
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in folder.iterdir():
        run_dcmtk(program, path, packed / path.name)
    run_dcmtk("storescu", "-aec", "IOPFL", option, "+sd", HERE, node.port, packed)
    stored = [dcmread(path) for path in node.stored()]
    assert {ds.file_meta.TransferSyntaxUID for ds in stored} == {syntax}
    assert {ds.SOPInstanceUID for ds in stored} == set(pixels)
    assert all((ds.pixel_array == pixels[ds.SOPInstanceUID]).all() for ds in stored)


def test_storescu_is_told_what_is_refused(tmp_path, series):
    _, folder = series
    with running_scp(tmp_path / "node", max_bytes=1000) as node:
        refused = run_dcmtk("storescu", "-v", "-aec", "IOPFL", "+sd", HERE, node.port, folder, check=False)
        assert "OutOfResources" in (refused.stdout + refused.stderr).replace(" ", "")
        assert node.stored() == []


def test_echoscu_by_tls_with_a_certificate_and_not_without(tmp_path):
    folder = make_certificates(tmp_path / "certificates")
    ours = TLS(folder / "ca.pem", folder / "node.pem", folder / "node.key")
    with running_scp(tmp_path / "node", tls=ours) as node:
        own = ("+tls", folder / "node.key", folder / "node.pem", "+cf", folder / "ca.pem")
        run_dcmtk("echoscu", *own, "-aec", "IOPFL", HERE, node.port)
        stranger = (
            "+tls",
            folder / "stranger" / "node.key",
            folder / "stranger" / "node.pem",
            "+cf",
            folder / "ca.pem",
        )
        for words in (stranger, ("+tla", "-ic"), ()):
            assert run_dcmtk("echoscu", *words, "-aec", "IOPFL", "-ta", 5, HERE, node.port, check=False).returncode
