"""The ids a simulated NIM answers to: its served names and the LoRA adapters in a folder.

Reads the adapter folder's names, never its files. It knows no HTTP.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nimway.sandbox.nim.settings import Settings


@dataclass(frozen=True, slots=True)
class Model:
    """One id. A base model is its own root; an adapter names its base as root and parent."""

    id: str
    root: str
    parent: str | None


class Models:
    """All ids served now. The adapter folder is read again once it is older than its interval."""

    def __init__(self, settings: Settings) -> None:
        self._names = settings.served_model_names
        self._folder = Path(settings.peft_source) if settings.peft_source else None
        self._refresh_s = settings.peft_refresh_s
        self._adapters: tuple[str, ...] = ()
        self._read_s: float | None = None

    def __iter__(self) -> Iterator[Model]:
        """Base models first, then adapters by name."""
        base = self._names[0]
        yield from (Model(name, name, None) for name in self._names)
        yield from (Model(name, base, base) for name in self._adapter_names())

    def serves(self, model_id: str) -> bool:
        """Whether a request for `model_id` is answered."""
        return any(model.id == model_id for model in self)

    def _adapter_names(self) -> tuple[str, ...]:
        if self._folder is None:
            return ()
        now_s = time.monotonic()
        due = self._refresh_s is not None and now_s - (self._read_s or 0.0) >= self._refresh_s
        if self._read_s is None or due:
            self._read_s = now_s
            self._adapters = _subfolders(self._folder, besides=self._names)
        return self._adapters


def _subfolders(folder: Path, *, besides: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the folders in `folder`; none if it is not there (yet)."""
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return ()
    return tuple(sorted(name for name in names if name not in besides and name[0] != "."))
