"""The two ways in which the server says no: to the user who starts it, and to the client who asks."""

LONGEST = 900  # characters of a reason


class ServeError(Exception):
    """The server cannot start; the message is one line for the user who started it."""


class RequestError(Exception):
    """A request that cannot be served; the client gets `status` and the one-line reason.

    Args:
        reason: what is wrong, in one line; cut where it quotes more than fits `LONGEST` characters.
        status: HTTP status, 4xx. (Not 408, 409 or 5xx: the SDK repeats those; 507 is only for errors of running work,
            whose answers say whether it is the client's mistake or the server's.)
    """

    def __init__(self, reason: str, status: int = 422):
        super().__init__(reason)
        line = " ".join(reason.split())
        self.reason = line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
        self.status = status
