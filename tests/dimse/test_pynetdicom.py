"""What we use of pynetdicom that it does not promise: a release without it shall fail here, and not at a hospital."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import StateMachine
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_its_version_is_bounded():
    assert '"pynetdicom>=3.0.4,<3.1"' in PROJECT.read_text()
    assert version("pynetdicom").startswith("3.0.")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Association, ("_abort_nonblocking", "_serve_request", "_c_store_scp", "run_reactor", "send_c_store", "abort")),
        (DIMSEServiceProvider, ("get_msg", "receive_primitive", "send_msg")),
        (DULServiceProvider, ("kill_dul", "idle_timer_expired", "_is_transport_event", "_read_pdu_data")),
        (StateMachine, ("do_action",)),
        (AssociationSocket, ("ready", "recv", "send", "connect", "close", "_shutdown_socket", "provider_queue")),
        (RequestHandler, ("handle", "_create_association")),
        (ThreadedAssociationServer, ("finish_request", "active_associations", "server_close")),
        (AE, ("_create_socket", "make_server", "associate")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_overridden_or_called_is_there(kind, names):
    assert not [name for name in names if not hasattr(kind, name)]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (
            Association.__init__,
            ("self._sent_abort", "self._accepted_cx", "self._reactor_checkpoint", "self._is_paused"),
        ),
        (DULServiceProvider.__init__, ("self.to_provider_queue", "self.event_queue", "self._run_loop_delay")),
        (DULServiceProvider.__init__, ("self.artim_timer", "self.state_machine", "self.socket")),
        (DULServiceProvider.run_reactor, ("time.sleep(self._run_loop_delay)", "self._is_transport_event()")),
        (DULServiceProvider._read_pdu_data, ("self.socket.recv(6)", "self.socket.recv(pdu_length)", "except (OSError")),
        (AssociationSocket.__init__, ("self._is_connected", "self._ready", 'self.event_queue.put("Evt5")')),
        (RequestHandler._create_association, ("deepcopy(self.server.contexts)", "client_socket=self.request")),
        (DIMSEServiceProvider.receive_primitive, ("self.message is None", "self.message.decode_msg")),
        (DIMSEServiceProvider.receive_primitive, ("self.msg_queue.put(", "self.message = None")),
        (DIMSEMessage.decode_msg, ("self.encoded_command_set.write(data[1:])", "self.data_set).write(data[1:])")),
        (DIMSEMessage.message_to_primitive, ("setattr(primitive, dataset_keyword, self.data_set)",)),
        (Association.send_c_store, ("isinstance(dataset, Dataset)", "_config.STORE_SEND_CHUNKED_DATASET")),
        (AE.associate, ("self._create_socket(assoc",)),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_what_it_does_inside_is_what_ours_builds_on(where, words):
    source = re.sub(r"\s+", " ", inspect.getsource(where))
    assert not [word for word in words if word not in source]


def test_its_own_lines_which_quote_data_sets_are_off():
    from iopfl.dimse import sockets  # sets them

    assert sockets.logging.getLogger("pynetdicom").level == sockets.logging.CRITICAL
    assert (_config.LOG_HANDLER_LEVEL, _config.LOG_REQUEST_IDENTIFIERS, _config.LOG_RESPONSE_IDENTIFIERS) == (
        "none",
        False,
        False,
    )
