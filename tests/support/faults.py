"""How much of a fault test runs: short in `make test`, in full with NIMWAY_FAULTS_FULL=1."""

import os

FULL = os.environ.get("NIMWAY_FAULTS_FULL", "") not in ("", "0")
"""Whether tests of faults run at the length that the fault's description names."""
