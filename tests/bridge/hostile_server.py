"""A federation's server that was changed: it asks a site for no authorization, and its people have the role `super`.

Started as `python -m bridge.hostile_server` with the arguments of FLARE's own server.
"""

from __future__ import annotations

import runpy
import sys

from nvflare.fuel.sec.authz import Authorizer
from nvflare.private.admin_defs import Message
from nvflare.private.defs import RequestHeader

_SAID = {
    RequestHeader.REQUIRE_AUTHZ: "false",
    RequestHeader.USER_ROLE: "super",
    RequestHeader.SUBMITTER_ROLE: "super",
}


def main() -> None:
    set_header = Message.set_header
    Message.set_header = lambda self, key, value: set_header(self, key, _SAID.get(key, value))
    Authorizer.authorize = lambda self, context: (True, "")
    sys.argv[0] = "nvflare.private.fed.app.server.server_train"
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
