"""The text generator: a chain of words over a short text that says what it is.

Owns the words and their order for a seed. It knows no model, no HTTP and no time: the same prompt,
seed and index always give the same words, on every replica and in every run.
"""

import functools
import hashlib
import random
from collections.abc import Sequence

_CORPUS = """
This text is simulated, and no model wrote it. Once the prompt has arrived, a small program walks
along a chain of words, and each word is drawn from those that may follow the last one. The walk
starts from a hash of the prompt, so the same prompt brings the same words, whatever the weather.
A real model would read the prompt and think about it, a simulated one counts its words and goes
for a walk. There is no graphics card in this story, only a clock that ticks once for each word,
and a queue where the requests wait for their turn. The queue is short in the morning and long in
the afternoon. When a request leaves early, the clock stops and the next one may begin. The program
is honest about it: it tells the reader that the words are drawn by chance, that the answer is made
of nothing but order, and that a test can compare the bytes of one answer with the bytes of another.
Some words come back often, because the chain is small, and some come only once. The reader who
waits for wisdom will wait for a long time, but the reader who waits for the last token will see it
soon. So the story goes on until the number of words is reached, and then the program says that it
has finished, puts the counts beside the text and waits for the next prompt.
"""
LENGTH_MIN = 24
LENGTH_MAX = 160


@functools.cache
def _chain() -> dict[str, tuple[str, ...]]:
    """Return which words may follow each word; every word has at least one successor."""
    words = [" " + word for word in _CORPUS.split()]
    follow: dict[str, list[str]] = {}
    for word, after in zip(words, [*words[1:], words[0]], strict=True):
        follow.setdefault(word, []).append(after)
    return {word: tuple(after) for word, after in follow.items()}


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Return every word the generator can write, with the space before it, in a fixed order."""
    return tuple(sorted(_chain()))


def words_for(
    prompt: Sequence[bytes], seed: int, index: int, *, count_max: int, ignore_eos: bool
) -> tuple[list[str], bool]:
    """Return the words of answer `index` to `prompt`, and whether the text ended by itself.

    `count_max` words at most; with `ignore_eos` exactly as many.
    """
    digest = hashlib.sha256(b"\0".join((str(seed).encode(), str(index).encode(), *prompt)))
    chance = random.Random(digest.digest())
    length = count_max if ignore_eos else chance.randint(LENGTH_MIN, LENGTH_MAX)
    chain, words = _chain(), []
    word = chance.choice([first for first in vocabulary() if first[1:2].isupper()])
    for _ in range(min(length, count_max)):
        words.append(word)
        word = chance.choice(chain[word])
    return words, length <= count_max and not ignore_eos


def stopped(words: Sequence[str], stops: Sequence[str]) -> tuple[list[str], bool]:
    """Cut `words` before the first of the stop sequences; say whether one was met."""
    text = "".join(words)
    ends = [end for stop in stops if (end := text.find(stop)) >= 0]
    if not ends:
        return list(words), False
    end, kept = min(ends), []
    for word in words:
        if end <= 0:
            break
        kept.append(word[:end])
        end -= len(word)
    return kept, True
