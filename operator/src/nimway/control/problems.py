"""From a failed reconcile to what its user is told, and whether trying again may help. Pure."""

from dataclasses import dataclass

from nimway.api.status import Reason
from nimway.control.apply import NotOursError, WaitingError
from nimway.control.client import ForbiddenError, InvalidError, NamespaceTerminatingError
from nimway.control.conditions import Problem
from nimway.control.resolve import InvalidSpecError, NamespaceNotAllowedError

REPORTED = (InvalidSpecError, NotOursError, WaitingError, InvalidError, ForbiddenError)
"""Errors that a user is told of; all others only delay the reconcile."""

FOREIGN_RECHECK_S = 10.0
"""Nothing tells when somebody else's object is gone: one read in so many seconds finds out."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to report, and the error to raise after reporting so that the key comes back.

    `recheck_s` is after how long to look again, without the haste of a failure.
    """

    problem: Problem
    retry: Exception | None = None
    recheck_s: float | None = None


def outcome_of(error: Exception) -> Outcome:
    """Classify one of `REPORTED`."""
    text = str(error)
    if isinstance(error, NamespaceNotAllowedError):
        return Outcome(Problem(Reason.NAMESPACE_NOT_ALLOWED, text, stalled=True))
    if isinstance(error, InvalidSpecError):
        return Outcome(Problem(Reason.INVALID_SPEC, text, stalled=True))
    if isinstance(error, NotOursError):
        problem = Problem(Reason.OBJECT_CONFLICT, text, stalled=True)
        return Outcome(problem, recheck_s=FOREIGN_RECHECK_S)
    if isinstance(error, WaitingError):
        return Outcome(Problem(Reason.TERMINATING, text, stalled=False), error)
    if isinstance(error, InvalidError):
        return Outcome(Problem(Reason.INVALID_SPEC, text, stalled=True))
    return _forbidden(error, text)


def _forbidden(error: Exception, text: str) -> Outcome:
    if "exceeded quota" in text:
        return Outcome(Problem(Reason.QUOTA_EXCEEDED, text, stalled=False), error)
    if isinstance(error, NamespaceTerminatingError):
        return Outcome(Problem(Reason.TERMINATING, text, stalled=False), error)
    return Outcome(Problem(Reason.API_ERROR, text, stalled=True), error)
