"""How much of a fault test runs: short in `make test`, in full with NIMWAY_FAULTS=full."""

import os

import pytest

FULL = os.environ.get("NIMWAY_FAULTS") == "full"
"""Whether tests of faults run at the length that the fault's description names."""

full_only = pytest.mark.skipif(not FULL, reason="takes its time: make faults")
"""For a test, or a case of it, whose like runs in the short form."""
