"""The images' recipe, read as text: no engine builds it here, `make kind` does."""

import fnmatch
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = (
    (ROOT / "operator" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
)


def instructions(name: str) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in LINES if line.startswith(f"{name} ")]


def test_every_base_is_a_stage_or_pinned_to_a_patch_version() -> None:
    stages: set[str] = set()
    for stage in instructions("FROM"):
        base, _, name = stage.partition(" AS ")
        assert base in stages or re.fullmatch(r"python:\d+\.\d+\.\d+(-slim)?-\w+", base), base
        stages.add(name)
    assert {"runtime", "simulated-nim"} <= stages


def test_what_builds_the_wheel_is_of_the_python_that_runs_it_and_does_not_ship() -> None:
    bases = [stage.partition(" AS ") for stage in instructions("FROM")]
    pythons = {base for base, _, _ in bases if base.startswith("python:")}
    assert len(pythons) == 2
    assert {base.replace("-slim", "") for base in pythons} == {base for base, _, _ in bases[1:2]}
    assert [name for base, _, name in bases if base == bases[1][0]] == ["wheel"]
    assert "wheel" not in {base for base, _, _ in bases}


def test_the_default_image_is_the_runtime_and_runs_nimway() -> None:
    assert instructions("FROM")[-1] == "image AS runtime"
    assert LINES[-1] == 'ENTRYPOINT ["nimway"]'


def test_the_user_is_a_number_and_not_root() -> None:
    (user,) = instructions("USER")
    assert all(int(number) > 0 for number in user.split(":"))


def test_pip_installs_only_what_the_lock_files_hash_or_the_wheel_made_before() -> None:
    runs = [part for run in instructions("RUN") for part in run.split("&&") if "install" in part]
    assert len(runs) == 3
    for run in runs:
        assert "--require-hashes" in run or ("--no-index" in run and "--no-deps" in run), run


@pytest.mark.parametrize("line", [c for c in instructions("COPY") if not c.startswith("--from")])
def test_what_is_copied_exists_and_is_not_ignored(line: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [pattern[1:] for pattern in ignored if pattern.startswith("!")]
    assert "*" in ignored
    for source in line.split()[:-1]:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), source


def test_nothing_is_let_through_that_is_not_copied() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = {source for line in instructions("COPY") for source in line.split()[:-1]}
    assert {pattern[1:] for pattern in ignored if pattern.startswith("!")} <= copied
