"""The sockets below the guard: a connection that never finishes its request's head, or never takes its answer.

Uvicorn waits for both without an end, and turns everybody away when they are too many. Its own protocol class is
extended, whichever of its two it has chosen.
"""

import contextlib
import logging
import socket

import uvicorn

MAX_CONNECTIONS = 1000
ROOMY = 750  # with more, the oldest that is idle is closed
LOOK_SECONDS = 15.0
HEAD_BYTES = 65_536
UNACKNOWLEDGED_MILLISECONDS = 10_000
CLOSING_SECONDS = 2


def tighten(server: uvicorn.Server):
    """Bound the connections that ``server``, which is running, takes from now on."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of every line that is no HTTP
    config = server.config
    config.limit_concurrency = MAX_CONNECTIONS
    config.timeout_graceful_shutdown = CLOSING_SECONDS
    config.ws_protocol_class = None  # there is nothing here to speak it with
    config.http_protocol_class = _punctual(config.http_protocol_class)


def _punctual(protocol: type) -> type:
    oldest_first = {}  # all that are open, as keys

    class Punctual(protocol):
        """A connection that is looked at now and then, and closed if it has not moved since the last time."""

        _in_head, _head_bytes = False, 0

        def connection_made(self, transport):
            super().connection_made(transport)
            oldest_first[self] = None
            if len(oldest_first) > ROOMY:
                idle = next((connection for connection in oldest_first if connection._is_idle()), self)
                del oldest_first[idle]
                idle.transport.abort()
            with contextlib.suppress(OSError, AttributeError):  # a peer that vanished without a word; Linux only
                connection = transport.get_extra_info("socket")
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MILLISECONDS)
            self._seen = self._state()
            self._watch = self.loop.call_later(LOOK_SECONDS, self._look)

        def connection_lost(self, exc):
            oldest_first.pop(self, None)
            self._watch.cancel()
            super().connection_lost(exc)

        def _state(self) -> tuple:
            return self.cycle, self.transport.is_closing()

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _look(self):
            _, closing = state = self._state()
            if state == self._seen and (self._is_idle() or closing):
                self.transport.abort()
                return
            self._seen = state
            self._watch = self.loop.call_later(LOOK_SECONDS, self._look)

        # httptools calls these two, and would collect a head of any length; h11 has a bound of its own

        def on_message_begin(self):
            self._in_head, self._head_bytes = True, 0
            super().on_message_begin()

        def on_headers_complete(self):
            self._in_head = False
            super().on_headers_complete()

        def data_received(self, data):
            super().data_received(data)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > HEAD_BYTES:
                    self.transport.abort()

    return Punctual
