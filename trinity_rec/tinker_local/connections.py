"""Connections: how many there may be, and who has to go when there is no room for another.

A client that sends half a request and waits costs a file descriptor for as long as it likes. So headers must arrive in
time, as bodies must (`server._Gate`), answers must be taken, and when every place is taken, a new connection gets that
of the one that has been without a whole request for longest: those at work are left alone.
"""

import asyncio
import logging
import resource
import time
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

ACCEPTED_AT_A_TIME = 64
RESERVED = 4 * ACCEPTED_AT_A_TIME  # descriptors for files, and for what is accepted but not yet counted
MOST = 4096

_FULL = b'{"detail":"too many connections"}'
_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
_REFUSAL += b"Content-Length: %d\r\n\r\n%s" % (len(_FULL), _FULL)

log = logging.getLogger(__name__)


class Door:
    """Who is inside without being at work, oldest first; shared by all connections of a server.

    Args:
        header_seconds: how long a request's headers may take to arrive.
        read_seconds: how long a client may take nothing of its answer.
    """

    def __init__(self, header_seconds: float, read_seconds: float):
        self.header_seconds, self.read_seconds = header_seconds, read_seconds
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors == resource.RLIM_INFINITY:
            descriptors = MOST + RESERVED
        self.places = min(MOST, max(descriptors - RESERVED, descriptors // 2))
        self.idle: dict[Connection, None] = {}


class Connection(H11Protocol):
    """Uvicorn's HTTP connection, with the limits of a `Door`."""

    def __init__(self, door: Door, **options: Any):
        super().__init__(**options)
        self._door = door
        self._headers_due: asyncio.TimerHandle | None = None
        self._reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Packets(transport, self.loop))  # type: ignore[arg-type]
        if len(self.connections) > self._door.places:
            if not self._door.idle:
                transport.write(_REFUSAL)
                transport.close()
                return
            next(iter(self._door.idle))._give_way()
        self._door.idle[self] = None
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_due = _cancelled(self._headers_due)
        self._reading_due = _cancelled(self._reading_due)
        self._door.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect_headers()
            return
        self._headers_due = _cancelled(self._headers_due)
        if self.conn.their_state is not h11.SEND_BODY and not self.transport.is_closing():
            self._door.idle.pop(self, None)  # a whole request

    def on_response_complete(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:  # refused before it was there: nobody waits for the rest
            self.transport.close()
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._door.idle[self] = None
            if self.conn.trailing_data[0]:  # the next request has begun
                self._expect_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_due = self.loop.call_later(self._door.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._reading_due = _cancelled(self._reading_due)
        super().resume_writing()

    def _expect_headers(self) -> None:
        if self._headers_due is None:
            self._headers_due = self.loop.call_later(self._door.header_seconds, self.transport.abort)

    def _give_way(self) -> None:
        del self._door.idle[self]
        self.connections.discard(self)
        self.transport.abort()


class Packets:
    """A transport that sends what is written in one turn of the event loop together: an answer's headers and body in
    one packet, which server and client handle at once.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, part: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(part)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.writelines(parts)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def quiet_about_accept(seconds: float = 60.0) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """An exception handler for the event loop that mentions failing accepts once in a while; asyncio's own does it for
    each, with a traceback.
    """
    spoken = float("-inf")

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal spoken
        if "socket.accept()" not in context.get("message", ""):
            loop.default_exception_handler(context)
        elif time.monotonic() - spoken > seconds:
            spoken = time.monotonic()
            log.error("no connection can be accepted: %s", context.get("exception"))

    return handle
