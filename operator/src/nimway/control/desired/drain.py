"""How a model's pod finishes its requests before it is stopped.

The program below runs inside the NIM's container, by argv and without a shell, with whatever
Python the image has. It waits until the proxies have heard that the pod is going, then until the
NIM's own metrics (1.x without, 2.x with the prefix `vllm:`) show no running and no waiting request.
A busy server may fail to answer now and then; if the program cannot run, or the metrics cannot be
read five times in a row, the kubelet goes on and stops the container.
It asks its own container, so no proxy of the user's environment (HTTP_PROXY) stands in between.
"""

from nimway.control.kinds import Manifest

PROPAGATION_S = 5
"""How long endpoints may take to reach every proxy."""

STOP_S = 30
"""What the container gets after the drain to stop by itself."""

PROGRAM = """\
import sys, time, urllib.request
url, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
time.sleep(min(float(sys.argv[3]), float(sys.argv[2])))
idle = failed = 0
while idle < 2 and time.monotonic() < end:
    try:
        text = direct.open(url, timeout=5).read().decode()
    except Exception:
        failed += 1
        if failed == 5:
            raise
        time.sleep(0.5)
        continue
    failed, busy = 0, 0.0
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0].rpartition(":")[2]
        if name in ("num_requests_running", "num_requests_waiting"):
            busy += float(line.rpartition("}")[2].split()[-1])
    idle = 0 if busy else idle + 1
    time.sleep(0.5)
"""


def lifecycle(method: str, seconds: int, port: int) -> Manifest | None:
    """Return the container's lifecycle for a drain of at most `seconds`; None for no drain."""
    if seconds == 0:
        return None
    if method == "Sleep":
        return {"preStop": {"sleep": {"seconds": seconds}}}
    url = f"http://127.0.0.1:{port}/v1/metrics"
    command = ["python3", "-c", PROGRAM, url, str(seconds), str(PROPAGATION_S)]
    return {"preStop": {"exec": {"command": command}}}


def grace_period_s(seconds: int) -> int:
    """Return the pod's terminationGracePeriodSeconds."""
    return seconds + STOP_S
