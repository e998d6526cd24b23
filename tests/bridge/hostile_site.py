"""A site's side that was changed: once it is registered, it sends the server events, which FLARE takes as its own.

Started as `python -m bridge.hostile_site` with the arguments of FLARE's own client.
"""

from __future__ import annotations

import runpy
import sys
import time
import uuid

from nvflare.apis.event_type import EventType
from nvflare.apis.shareable import Shareable
from nvflare.private.fed.client import client_engine
from nvflare.widgets.fed_event import FED_EVENT_TOPIC, FedEventHeader

EVENTS = (EventType.SYSTEM_END, EventType.FATAL_SYSTEM_ERROR)


def send_events(engine: client_engine.ClientEngine) -> None:
    for event in EVENTS:
        request = Shareable()
        request.set_header(FedEventHeader.TIMESTAMP, time.time())
        request.set_header(FedEventHeader.EVENT_ID, uuid.uuid4().hex)
        request.set_header(FedEventHeader.EVENT_TYPE, event)
        with engine.new_context() as context:
            reply = engine.send_aux_request(FED_EVENT_TOPIC, request, 10.0, context)
        print(f"answer to {event}: {reply.get_return_code()}", flush=True)  # noqa: T201


def main() -> None:
    fire_event = client_engine.ClientEngine.fire_event

    def hostile(self, event_type, fl_ctx):
        fire_event(self, event_type, fl_ctx)
        if event_type == EventType.SYSTEM_START:
            send_events(self)

    client_engine.ClientEngine.fire_event = hostile
    sys.argv[0] = "nvflare.private.fed.app.client.client_train"
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
