"""What routing needs of each NIMModel, read from the store where it changed.

The store is compared with a fresh list every minute and whenever a watch had to begin anew, so a
model that is gone is gone here as well. A list for each table would cost the API server more than
everything else in a burst, and take longer than the table may be late.
"""

from nimway.control.kinds import MODEL, Ref
from nimway.control.routing import Candidate, candidate
from nimway.control.store import Store


class Candidates:
    """All models that may be routed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[Ref, tuple[str, Candidate | None]] = {}
        self._all: tuple[Candidate, ...] = ()

    def all(self) -> tuple[Candidate, ...]:
        """Return them: the very same tuple as long as nothing changed that routing needs."""
        known = {ref: self._read(ref) for ref in self._store.refs(MODEL)}
        found = tuple(each for _, each in known.values() if each is not None)
        self._known = known
        if found != self._all:
            self._all = found
        return self._all

    def _read(self, ref: Ref) -> tuple[str, Candidate | None]:
        version = self._store.version(ref)
        known = self._known.get(ref)
        if known is not None and known[0] == version:
            return known
        live = self._store.get(MODEL, ref.namespace, ref.name)
        return version, candidate(live) if live is not None else None
