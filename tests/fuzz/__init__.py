"""Fuzzing of what reads HTTP, and a soak of a whole worker: `make fuzz`, `make soak`."""
