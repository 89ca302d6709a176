"""One request as its client sees it, under an id of its own, and what became of it.

Nothing is ever sent again, so an id that a model server ran twice was doubled on the way.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.support.proxy_wire import Answer, Client, post

Address = tuple[str, int]

ANSWERED, REFUSED, LEFT = "answered", "refused", "left"
LOST, UNKNOWN_MODEL = "lost", "404"
"""What can become of a request. `refused` is 503 with an honest Retry-After; 404 is lost too."""

RETRY_AFTER_MAX_S = 60
DEADLINE_S = 90.0
"""Whoever is not answered by then hangs."""

_DONE = b"data: [DONE]"


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask; `leave_after_s` is when the client gives up on purpose."""

    request_id: str
    model: str
    tokens: int = 1
    stream: bool = False
    leave_after_s: float | None = None
    prompt: str = "Once upon a time"

    def body(self) -> bytes:
        fields = {"model": self.model, "prompt": self.prompt, "max_tokens": self.tokens}
        return json.dumps(fields | {"ignore_eos": True, "stream": self.stream}).encode()


@dataclass(slots=True)
class Asked:
    """One request and its end; `sent_s` and `ended_s` on the clock of `time.perf_counter`."""

    question: Question
    sent_s: float = 0.0
    sent_unix_s: float = 0.0
    ended_s: float = 0.0
    status: int = 0
    retry_after_s: int | None = None
    left: bool = False
    problem: str = ""
    """What is wrong with the answer, "" if nothing is."""

    @property
    def took_s(self) -> float:
        return self.ended_s - self.sent_s

    @property
    def fate(self) -> str:
        """Return what became of it."""
        if self.left:
            return LEFT
        if self.status == 404:
            return UNKNOWN_MODEL
        if self.problem:
            return LOST
        if self.status == 200:
            return ANSWERED
        patient = self.retry_after_s is not None and 1 <= self.retry_after_s <= RETRY_AFTER_MAX_S
        return REFUSED if self.status == 503 and patient else LOST

    def __str__(self) -> str:
        return f"{self.question.request_id}: {self.status or 'no answer'} {self.problem}".rstrip()


@dataclass(slots=True)
class Tally:
    """What became of many requests; `examples` are the first that were lost, in words."""

    fates: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, asked: Iterable[Asked]) -> "Tally":
        tally = cls()
        for each in asked:
            tally.fates[each.fate] += 1
            if each.fate in {LOST, UNKNOWN_MODEL} and len(tally.examples) < 10:
                tally.examples.append(str(each))
        return tally

    @property
    def lost(self) -> int:
        return self.fates[LOST] + self.fates[UNKNOWN_MODEL]


async def ask(address: Address | None, question: Question) -> Asked:
    """Ask over a connection of its own."""
    asked = Asked(question)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await _ask(address, asked)
    except TimeoutError:
        asked.problem = f"no answer within {DEADLINE_S:.0f} s"
    except (OSError, EOFError) as error:
        asked.problem = repr(error)
    asked.ended_s = time.perf_counter()
    return asked


async def _ask(address: Address | None, asked: Asked) -> None:
    question = asked.question
    _sent(asked)
    if address is None:
        asked.problem = "no proxy is ready"
        return
    fields = f"Content-Type: application/json\r\nx-request-id: {question.request_id}\r\n"
    request = post(question.body(), fields=fields)
    reader, writer = await asyncio.open_connection(*address, limit=1 << 20)
    _sent(asked)
    try:
        async with asyncio.timeout(question.leave_after_s):
            take(asked, await Client(reader, writer).ask(request))
    except TimeoutError:
        asked.left = True
    finally:
        writer.transport.abort()


def _sent(asked: Asked) -> None:
    asked.sent_s = time.perf_counter()
    asked.sent_unix_s = time.time()  # noqa: TID251 # compared with the audit log's stamps


def take(asked: Asked, answer: Answer) -> None:
    """Note an answer, and whether it is whole."""
    asked.status = answer.status
    after = answer.field(b"retry-after")
    asked.retry_after_s = int(after) if after is not None and after.isdigit() else None
    if not answer.clean:
        asked.problem = "cut off"
    elif answer.status == 200 and asked.question.stream and _DONE not in answer.body:
        asked.problem = "a stream without its end"
    elif answer.status == 200 and not asked.question.stream and not answer.body.endswith(b"}"):
        asked.problem = "no JSON object"
