"""A federation's server that was changed: it asks a site for no authorization, and its people have every role in turn.

Started as `python -m bridge.hostile_server` with the arguments of FLARE's own server.
"""

from __future__ import annotations

import itertools
import runpy
import sys

from nvflare.fuel.sec.authz import Authorizer
from nvflare.private.admin_defs import Message
from nvflare.private.defs import RequestHeader

ROLES = ("super", "project_admin", "org_admin", "lead", "member")


def main() -> None:
    roles = {RequestHeader.USER_ROLE: itertools.cycle(ROLES), RequestHeader.SUBMITTER_ROLE: itertools.cycle(ROLES)}
    set_header = Message.set_header

    def say(self: Message, key: str, value: object) -> None:
        set_header(self, key, "false" if key == RequestHeader.REQUIRE_AUTHZ else next(roles.get(key, iter([value]))))

    Message.set_header = say
    Authorizer.authorize = lambda self, context: (True, "")
    sys.argv[0] = "nvflare.private.fed.app.server.server_train"
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
