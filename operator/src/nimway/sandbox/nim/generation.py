"""From prompt and wishes to words with their due times: the part all text answers share.

Owns the number of words, where they stop, and their order over several choices. It writes no JSON.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from nimway.sandbox.nim.bodies import BodyError
from nimway.sandbox.nim.engine import Engine, QueueFullError, Run
from nimway.sandbox.nim.ledger import Entry
from nimway.sandbox.nim.text import stopped, words_for

CHOICES_MAX = 128


@dataclass(frozen=True, slots=True)
class Wish:
    """What a body asks of the text, whichever API it came by. `tokens_max` None: no limit given."""

    tokens_max: int | None = None
    choices: int = 1
    seed: int = 0
    stops: Sequence[str] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: its words, and why it ends (`stop` or `length`). `prompt` is for an echo."""

    index: int
    words: list[str]
    finish_reason: str
    prompt: str


@dataclass(slots=True)
class Job:
    """The work for one request: all prompts as one, all choices, and the run once it has one."""

    prompt: list[bytes]
    choices: list[Choice]
    run: Run | None = field(default=None)

    @property
    def steps(self) -> int:
        """Words of the longest choice, at least 1: even an empty answer takes one step."""
        return max(1, *(len(choice.words) for choice in self.choices))

    @property
    def completion_tokens(self) -> int:
        """Words of all choices."""
        return sum(len(choice.words) for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache knew; 0 before the run."""
        return self.run.cached_tokens if self.run else 0


def stop_list(stops: str | list[str] | None) -> tuple[str, ...]:
    """Return stop sequences as a tuple without empty ones."""
    given = [stops] if isinstance(stops, str) else stops or []
    return tuple(stop for stop in given if stop)


def plan(prompts: Sequence[list[bytes]], wish: Wish, context_tokens_max: int) -> Job:
    """Decide every word of the answer.

    Raises:
        BodyError: prompt and answer exceed the context, or too many choices are wanted.
    """
    longest = max(len(prompt) for prompt in prompts)
    room = context_tokens_max - longest
    if room < max(wish.tokens_max or 0, 1):
        raise BodyError(
            f"This model's maximum context length is {context_tokens_max} tokens, but"
            f" {longest} tokens of prompt and {wish.tokens_max or 1} of answer were requested.",
            param="max_tokens" if wish.tokens_max and room > 0 else "prompt",
        )
    if len(prompts) * wish.choices > CHOICES_MAX:
        raise BodyError(f"more than {CHOICES_MAX} choices in one request", param="n")
    choices: list[Choice] = []
    for prompt in prompts:
        for number in range(wish.choices):
            words, ended = words_for(
                prompt,
                wish.seed,
                number,
                count_max=wish.tokens_max or room,
                ignore_eos=wish.ignore_eos and wish.tokens_max is not None,
            )
            words, met = stopped(words, wish.stops)
            text = b"".join(prompt).decode("utf-8", "replace")
            choices.append(Choice(len(choices), words, "stop" if ended or met else "length", text))
    return Job([token for prompt in prompts for token in prompt], choices)


def admit(engine: Engine) -> None:
    """Refuse at once what could neither run nor wait.

    Raises:
        BodyError: 503, the queue is full.
    """
    try:
        engine.check_queue()
    except QueueFullError:
        raise BodyError(
            "the queue of this simulated NIM is full", status=503, kind="ServiceUnavailableError"
        ) from None


async def whole(engine: Engine, job: Job, entry: Entry) -> None:
    """Run `job` to its end; the words may then be sent."""
    async with engine.run(job.prompt) as job.run:
        entry.executed = True
        await job.run.token(0)
        await job.run.token(job.steps - 1)


async def stepwise(
    engine: Engine, job: Job, entry: Entry
) -> AsyncGenerator[tuple[Choice, str, str | None], None]:
    """Run `job`, and yield each word when it is due, with the finish reason beside the last."""
    async with engine.run(job.prompt) as job.run:
        entry.executed = True
        for step in range(job.steps):
            await job.run.token(step)
            for choice in job.choices:
                last = step == max(0, len(choice.words) - 1)
                if step < len(choice.words) or last:
                    word = choice.words[step] if choice.words else ""
                    yield choice, word, choice.finish_reason if last else None
