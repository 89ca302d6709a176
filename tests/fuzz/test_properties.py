"""The fuzz target's properties, for a moment: `make fuzz` goes on for minutes."""

from hypothesis import settings

from tests.fuzz import properties


def test_any_request_is_read_alike_in_every_split_and_as_llhttp_reads_it() -> None:
    settings(max_examples=200, deadline=None)(properties.requests)()


def test_any_answer_is_read_alike_in_every_split() -> None:
    settings(max_examples=200, deadline=None)(properties.answers)()
