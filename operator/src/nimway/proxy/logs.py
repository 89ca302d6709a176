"""Log lines: one JSON object a line, fixed keys, to standard error; the access log to its own file.

Owns the form only. Nothing that a client sent in a body or as a credential is ever handed to it.
"""

import json
import logging
import os
import stat
import sys
from typing import ClassVar


class JsonFormatter(logging.Formatter):
    """`ts, level, event, logger`, the fields given as `extra={"fields": {...}}`, and an error."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logging(level: str = "INFO") -> None:
    """Send all log records of this process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


class LineWriter:
    """Writes whole lines to a descriptor and never waits: what a full pipe refuses is dropped.

    A pipe is opened anew, because O_NONBLOCK on the inherited descriptor would change it for
    everyone who shares it. A file does not block, and keeps its shared position. A line that the
    pipe took in part is finished before the next one.
    """

    _FLAGS: ClassVar[int] = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC

    def __init__(self, descriptor: int) -> None:
        self._rest = b""
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            self._descriptor = os.open(f"/proc/self/fd/{descriptor}", self._FLAGS)
        else:
            self._descriptor = os.dup(descriptor)

    def write(self, lines: bytes) -> int:
        """Write `lines`; return how many of them are dropped."""
        data = self._rest + lines
        try:
            written = os.write(self._descriptor, data)
        except OSError:
            written = 0
        if written < len(self._rest):
            self._rest = self._rest[written:]
            return lines.count(b"\n")
        end = data.find(b"\n", written - 1) + 1 if written else 0
        self._rest = data[written:end]
        return data.count(b"\n", end)
