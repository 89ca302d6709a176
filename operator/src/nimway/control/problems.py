"""From a failed reconcile to what its user is told, and whether trying again may help. Pure."""

from dataclasses import dataclass

from nimway.api.status import Reason
from nimway.control.apply import NotOursError, WaitingError
from nimway.control.client import ForbiddenError, InvalidError, NamespaceTerminatingError
from nimway.control.conditions import Problem
from nimway.control.resolve import InvalidSpecError

REPORTED = (InvalidSpecError, NotOursError, WaitingError, InvalidError, ForbiddenError)
"""Errors that a user is told of; all others only delay the reconcile."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to report, and the error to raise after reporting so that the key comes back."""

    problem: Problem
    retry: Exception | None


def outcome_of(error: Exception) -> Outcome:
    """Classify one of `REPORTED`."""
    text = str(error)
    if isinstance(error, InvalidSpecError):
        return Outcome(Problem(Reason.INVALID_SPEC, text, stalled=True), None)
    if isinstance(error, NotOursError):
        return Outcome(Problem(Reason.OBJECT_CONFLICT, text, stalled=True), None)
    if isinstance(error, WaitingError):
        return Outcome(Problem(Reason.TERMINATING, text, stalled=False), error)
    if isinstance(error, InvalidError):
        return Outcome(Problem(Reason.INVALID_SPEC, text, stalled=True), None)
    return _forbidden(error, text)


def _forbidden(error: Exception, text: str) -> Outcome:
    if "exceeded quota" in text:
        return Outcome(Problem(Reason.QUOTA_EXCEEDED, text, stalled=False), error)
    if isinstance(error, NamespaceTerminatingError):
        return Outcome(Problem(Reason.TERMINATING, text, stalled=False), error)
    return Outcome(Problem(Reason.API_ERROR, text, stalled=True), error)
