"""Ports of the loopback for programs that are told theirs."""

import random
import socket

_FIRST, _LAST = 20_000, 29_999
"""Below what the kernel gives to connections (32,768 to 60,999 by default, ip(7)): a port it gives
out by itself can be some client's, or the next call's, before the program listens."""

_random = random.SystemRandom()  # Hypothesis sets the seed of the common one
_given: set[int] = set()


def free_port() -> int:
    """Return a port that is free now, and another one each time."""
    while True:
        port = _random.randint(_FIRST, _LAST)
        if port in _given:
            continue
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
