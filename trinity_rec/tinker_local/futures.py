"""Answers that clients come back for: every long request returns an id at once, and the answer is fetched by it."""

import asyncio
import logging
from collections import OrderedDict
from typing import Any

from trinity_rec.tinker_local.errors import RequestError

MAX_PENDING = 16384  # requests without an answer,
MAX_PENDING_BYTES = 512 * 2**20  # and what they may take together
MAX_FINISHED = 4096  # answers kept for clients that ask again,
MAX_FINISHED_BYTES = 256 * 2**20  # and what they may take together

log = logging.getLogger(__name__)

Answer = bytes | dict[str, Any]  # protobuf, or JSON


class Futures:
    """Requests by id, bounded in number and memory: the oldest answers go first. Lives in the event loop's thread."""

    def __init__(self) -> None:
        self._pending: dict[str, asyncio.Future[Answer]] = {}
        self._finished: OrderedDict[str, Answer] = OrderedDict()
        self._finished_bytes = 0
        self._pending_bytes = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._pending or request_id in self._finished

    def __len__(self) -> int:
        return len(self._pending)

    def check_room(self, size: int = 0) -> None:
        """Raise RequestError (429: try again) if too much waits for an answer; `size` is that of the new request."""
        too_large = self._pending_bytes and self._pending_bytes + size > MAX_PENDING_BYTES
        if len(self._pending) >= MAX_PENDING or too_large:
            raise RequestError("too many requests are waiting", 429)

    def add(self, request_id: str, future: "asyncio.Future[Answer]", size: int = 0) -> None:
        self._pending[request_id] = future
        self._pending_bytes += size
        future.add_done_callback(lambda done: self._finish(request_id, done, size))

    async def answer(self, request_id: str, timeout: float) -> Answer | None:
        """The answer, or None if there is none after `timeout` seconds.

        Raises:
            RequestError: there is no such request, or no longer (410).
        """
        if request_id in self._pending:
            await asyncio.wait({self._pending[request_id]}, timeout=timeout)
            await asyncio.sleep(0)  # let `_finish` run
            if request_id in self._pending:
                return None
        if request_id not in self._finished:
            raise RequestError(f"no such request: {request_id}", 410)
        return self._finished[request_id]

    def _finish(self, request_id: str, future: "asyncio.Future[Answer]", size: int) -> None:
        del self._pending[request_id]
        self._pending_bytes -= size
        answer = _answer_of(request_id, future)
        self._finished[request_id] = answer
        self._finished_bytes += _size(answer)
        while len(self._finished) > MAX_FINISHED or self._finished_bytes > MAX_FINISHED_BYTES:
            if len(self._finished) == 1:
                break
            self._finished_bytes -= _size(self._finished.popitem(last=False)[1])


def _answer_of(request_id: str, future: "asyncio.Future[Answer]") -> Answer:
    if future.cancelled():
        return {"error": "the server is stopping", "category": "server"}
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, RequestError):
        return {"error": error.reason, "category": "server" if error.status in (410, 507) else "user"}
    log.error("request %s failed", request_id, exc_info=error)
    return {"error": f"{type(error).__name__}: {error}", "category": "server"}


def _size(answer: Answer) -> int:
    return len(answer) if isinstance(answer, bytes) else 0
