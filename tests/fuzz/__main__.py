"""`python -m tests.fuzz MINUTES`: run the properties with ever new seeds until the time is up."""

import sys
import time
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, seed, settings

from tests.fuzz.properties import PROPERTIES

if TYPE_CHECKING:
    from collections.abc import Callable

_EXAMPLES = 2000


def main(minutes: float) -> None:
    """Fuzz for `minutes`; a failure ends it with hypothesis's smallest example."""
    end = time.monotonic() + minutes * 60
    chosen = settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    targets = [chosen(target) for target in PROPERTIES.values()]
    rounds = 0
    while time.monotonic() < end:
        for target in targets:
            run: Callable[[], Any] = seed(time.monotonic_ns())(target)
            run()
        rounds += 1
    sys.stdout.write(f"clean: {rounds * _EXAMPLES * len(PROPERTIES):,} inputs\n")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
