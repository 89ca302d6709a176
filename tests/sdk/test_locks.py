"""The lock files of the client libraries: pinned, hashed, and free of any registry's name."""

import re
from pathlib import Path

import pytest

from tests.support.sdk import DATA

LOCKS = sorted(DATA.glob("*.lock"))


def test_each_wanted_library_has_a_lock() -> None:
    assert [lock.stem for lock in LOCKS] == sorted(path.stem for path in DATA.glob("*.in"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_pins_and_hashes_every_package_and_names_no_host(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    requirements = re.split(r"\n(?=\w)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    assert len(requirements) > 5
    for requirement in requirements:
        assert re.match(r"[\w.-]+==\S+ ", requirement), requirement
        assert "--hash=sha256:" in requirement
    assert "://" not in text
    assert "index-url" not in text
