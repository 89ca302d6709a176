"""Who serves a request that came on a connection: an exchange, or a page of the proxy's own."""

from typing import Protocol

from nimway.proxy.answers import Answer


class Handler(Protocol):
    """What serves one request; every call comes from the connection's own callbacks."""

    def admit(self) -> Answer | None:
        """Return a refusal, or None to have the body read."""

    def run(self, body: bytes) -> None:
        """Serve the request: its body is complete."""

    def refuse(self, answer: Answer) -> None:
        """Take note that the request is answered with `answer` before `run`."""

    def cancel(self) -> None:
        """Stop: the client is gone."""

    def pause(self) -> None:
        """Produce no more for now: the client does not keep up."""

    def resume(self) -> None:
        """Go on producing."""

    def check(self, now: float) -> None:
        """Look at the timeouts."""
