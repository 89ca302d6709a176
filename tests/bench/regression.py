"""`make bench-quick`: is nimway still as cheap, relative to HAProxy, as the record says?

Owns the comparison and its limit. Ratios of different machines are compared, not times.
"""

import sys
from pathlib import Path

from tests.bench import results
from tests.bench.contenders import SUBJECT
from tests.bench.running import BenchError

METRICS = {
    "json_188b_cpu_us": "CPU per 188 B request",
    "json_64k_cpu_us": "CPU per 64 KiB prompt",
    "json_1m_cpu_us": "CPU per 1 MiB prompt",
    "sse_cpu_us": "CPU per SSE event",
}
WORSE_MAX = 1.2
"""Less is noise: performance.md says nothing of differences under 20 % from a handful of rounds."""


def read_record(path: Path) -> results.Run:
    """Read the last recorded run.

    Raises:
        BenchError: there is none.
    """
    if not path.exists():
        raise BenchError(f"no recorded ratios in {path}: run make bench first")
    return results.read(path)


def compare(run: results.Run, recorded: results.Run) -> int:
    """Print ratios then and now; return 1 where one is more than 20 % worse, else 0."""
    verdicts = [_verdict(run, recorded, metric, title) for metric, title in METRICS.items()]
    sys.stdout.writelines(f"{line}\n" for _, line in verdicts)
    return int(any(worse for worse, _ in verdicts))


def _verdict(run: results.Run, recorded: results.Run, metric: str, title: str) -> tuple[bool, str]:
    now, then = results.ratios(run, SUBJECT, metric), results.ratios(recorded, SUBJECT, metric)
    if now is None or then is None:
        return True, f"{title}: not measured"
    worse = now.median > WORSE_MAX * then.median
    return worse, (
        f"{title}: {now.median:.2f} x HAProxy ({now.low:.2f}-{now.high:.2f}), "
        f"recorded {then.median:.2f}: {'MORE THAN 20 % WORSE' if worse else 'ok'}"
    )
