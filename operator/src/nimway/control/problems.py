"""From a failed reconcile to what its user is told, and whether trying again may help. Pure."""

import re
from dataclasses import dataclass, replace

from nimway.api.status import Reason
from nimway.control.apply import ContestedError, NotOursError, WaitingError
from nimway.control.client import (
    ForbiddenError,
    InvalidError,
    NamespaceTerminatingError,
    ServerError,
)
from nimway.control.conditions import Problem, Verdict
from nimway.control.resolve import InvalidSpecError, NamespaceNotAllowedError

REPORTED = (
    InvalidSpecError,
    NotOursError,
    WaitingError,
    ContestedError,
    InvalidError,
    ForbiddenError,
    ServerError,
)
"""Errors that a user is told of; all others only delay the reconcile."""

MESSAGE_CHARS_MAX = 1000
"""Of a server's own words."""

_VARYING = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d+")
"""Uids and numbers: what differs from one attempt to the next, as ports and requests do."""

_RESIZE_REFUSED = "can be resized"
"""Of the API server's admission plugin PersistentVolumeClaimResize, which answers as for a missing
right (403): a claim of a class without `allowVolumeExpansion` shall grow."""

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


def outcome_of(error: Exception, told: Verdict | Problem | None = None) -> Outcome:
    """Classify one of `REPORTED`; `told` is what Reconciling says so far.

    What the API server says of each attempt anew is told in the words of the first.
    """
    outcome = _classified(error)
    if (
        outcome.problem.reason is Reason.API_ERROR
        and told is not None
        and told.reason == Reason.API_ERROR
        and _steady(told.message) == _steady(outcome.problem.message)
    ):
        return replace(outcome, problem=replace(outcome.problem, message=told.message))
    return outcome


def _steady(text: str) -> str:
    return _VARYING.sub("#", text)


def _classified(error: Exception) -> Outcome:
    text = str(error)
    if isinstance(error, NamespaceNotAllowedError):
        return Outcome(Problem(Reason.NAMESPACE_NOT_ALLOWED, text, stalled=True))
    if isinstance(error, InvalidSpecError):
        return Outcome(Problem(Reason.INVALID_SPEC, text, stalled=True))
    if isinstance(error, NotOursError):
        problem = Problem(Reason.OBJECT_CONFLICT, text, stalled=True)
        return Outcome(problem, recheck_s=FOREIGN_RECHECK_S)
    if isinstance(error, ContestedError):
        problem = Problem(Reason.CONTESTED, text, stalled=False)
        return Outcome(problem, recheck_s=error.wait_s)
    if isinstance(error, WaitingError):
        return Outcome(Problem(Reason.TERMINATING, text, stalled=False), error)
    if isinstance(error, ServerError):
        return Outcome(Problem(Reason.API_ERROR, text[:MESSAGE_CHARS_MAX], stalled=False), error)
    if isinstance(error, InvalidError):
        return Outcome(Problem(Reason.INVALID_SPEC, text, stalled=True))
    return _forbidden(error, text)


def _forbidden(error: Exception, text: str) -> Outcome:
    if "exceeded quota" in text:
        return Outcome(Problem(Reason.QUOTA_EXCEEDED, text, stalled=False), error)
    if _RESIZE_REFUSED in text:
        text = f"spec.storage.pvc.size: {text}"
        return Outcome(Problem(Reason.INVALID_SPEC, text, stalled=True), error)
    if isinstance(error, NamespaceTerminatingError):
        return Outcome(Problem(Reason.TERMINATING, text, stalled=False), error)
    return Outcome(Problem(Reason.API_ERROR, text, stalled=True), error)
