"""Workers keep freed memory: a large body is not mapped anew each time."""

import subprocess
import sys

from nimway.proxy.supervisor import ALLOCATOR, build_environment

# Pages that are touched for the first time in rounds of allocating and freeing 3 MiB.
ROUNDS = """
import resource
for count in (2, 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        a = bytes(1 << 20); b = bytearray(2 << 20); del a, b
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_user_s_own_settings_go_before_ours() -> None:
    environment = build_environment({"MALLOC_TOP_PAD_": "7", "PATH": "/bin"})
    assert environment == {**ALLOCATOR, "MALLOC_TOP_PAD_": "7", "PATH": "/bin"}


def test_freed_memory_is_used_again_without_a_page_fault_each_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS],
        env=build_environment({}),
        capture_output=True,
        check=True,
        text=True,
    )
    assert int(done.stdout) < 20
