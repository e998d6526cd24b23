"""What an answer in words tells of the server's folders, and what is not looked through."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from iopfl.compat.server_paths import HidesPlaces


@pytest.mark.parametrize("root", ["", "/label"])
def test_the_servers_folders_are_taken_out_of_its_own_answers_and_not_of_the_pacss(root):
    """Behind a proxy with a prefix too, where what the PACS said was changed."""

    async def say(request):
        return PlainTextResponse("at /srv/state/x.nii")

    app = Starlette(routes=[Route("/{path:path}", say)])
    app.add_middleware(HidesPlaces, folders=["/srv/state"])
    client = TestClient(app, root_path=root)
    assert client.get(f"{root}/datastore/").text == "at x.nii"
    assert client.get(f"{root}/proxy/dicom/wado/studies").text == "at /srv/state/x.nii"
