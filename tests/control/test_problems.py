import pytest

from nimway.api.status import Reason
from nimway.control.client import ForbiddenError, ServerError, TransientError
from nimway.control.conditions import Verdict
from nimway.control.problems import MESSAGE_CHARS_MAX, REPORTED, outcome_of

WEBHOOK = 'failed calling webhook "a-1.example": read tcp 10.0.0.5:{port}->10.96.0.9:443: reset'


def _webhook(port: int = 40000) -> ServerError:
    return ServerError(500, "InternalError", WEBHOOK.format(port=port))


def _told(message: str, reason: Reason = Reason.API_ERROR) -> Verdict:
    return Verdict("True", reason, message)


def test_a_webhook_that_fails_is_told_in_the_servers_words_and_tried_again() -> None:
    error = _webhook()
    outcome = outcome_of(error)
    assert isinstance(error, REPORTED)
    assert outcome.problem.reason is Reason.API_ERROR
    assert outcome.problem.message == str(error)
    assert not outcome.problem.stalled
    assert outcome.retry is error


def test_a_server_that_is_away_is_no_news_of_an_object() -> None:
    assert not isinstance(TransientError(503, "ServiceUnavailable", "no"), REPORTED)
    assert not isinstance(TransientError(0, "NoAnswer", "no"), REPORTED)


def test_a_long_answer_is_cut() -> None:
    outcome = outcome_of(ServerError(500, "InternalError", "x" * 5000))
    assert len(outcome.problem.message) == MESSAGE_CHARS_MAX


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (WEBHOOK.format(port=40000), WEBHOOK.format(port=51234), True),
        (
            "req 0a1b2c3d-0000-4000-8000-00000000000a",
            "req " + "-".join(["f" * 8] + ["e" * 4] * 3) + "-" + "d" * 12,
            True,
        ),
        (WEBHOOK.format(port=40000), 'failed calling webhook "b": refused', False),
    ],
    ids=["another port", "another request", "another webhook"],
)
def test_of_attempts_that_differ_in_numbers_the_first_is_told(
    first: str, second: str, *, kept: bool
) -> None:
    outcome = outcome_of(ServerError(500, "InternalError", second), _told(first))
    assert outcome.problem.message == (first if kept else second)


def test_numbers_of_other_troubles_are_news() -> None:
    text = "exceeded quota: gpus, used: {}"
    error = ForbiddenError(403, "Forbidden", text.format(2))
    outcome = outcome_of(error, _told(text.format(1), Reason.QUOTA_EXCEEDED))
    assert outcome.problem.message == text.format(2)
    assert outcome_of(
        _webhook(), _told("x 1", Reason.INVALID_SPEC)
    ).problem.message == WEBHOOK.format(port=40000)


def test_a_claim_that_its_class_lets_not_grow_is_the_specs_trouble_not_the_rights() -> None:
    error = ForbiddenError(
        403,
        "Forbidden",
        'persistentvolumeclaims "a-store" is forbidden: only dynamically provisioned pvc can be '
        "resized and the storageclass that provisions the pvc must support resize",
    )
    outcome = outcome_of(error)
    assert (outcome.problem.reason, outcome.problem.stalled) == (Reason.INVALID_SPEC, True)
    assert outcome.problem.message == f"spec.storage.pvc.size: {error}"
    assert outcome.retry is error, "the class may be mended"


def test_a_write_that_is_forbidden_is_for_a_person_and_tried_again() -> None:
    outcome = outcome_of(ForbiddenError(403, "Forbidden", "no"))
    assert (outcome.problem.reason, outcome.problem.stalled) == (Reason.API_ERROR, True)
    assert outcome.retry is not None
