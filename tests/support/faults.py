"""How much of a fault test runs: short in `make test`, in full with NIMWAY_FAULTS=full."""

import os

FULL = os.environ.get("NIMWAY_FAULTS") == "full"
"""Whether tests of faults run at the length that the fault's description names."""
