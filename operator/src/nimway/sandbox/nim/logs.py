"""How a simulated NIM logs: lines for people, or one JSON object per line.

Owns the two formats and the levels' names. A secret never gets here: the settings do not hold any.
"""

import json
import logging
import sys
from datetime import UTC, datetime

_LEVELS = {"DEFAULT": "INFO", "TRACE": "DEBUG"}


class _Lines(logging.Formatter):
    """`time level message key=value …`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        tail = "".join(f" {key}={value}" for key, value in fields.items() if value != "")
        text = f"{_time(record)} {record.levelname} simulated NIM: {record.getMessage()}{tail}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _JsonLines(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname,
            "message": record.getMessage(),
            "simulated": True,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def configure(level: str, *, jsonl: bool) -> None:
    """Send every log line to standard output, as containers do."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines() if jsonl else _Lines())
    logging.basicConfig(level=_LEVELS.get(level, level), handlers=[handler], force=True)
