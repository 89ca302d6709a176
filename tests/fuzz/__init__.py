"""Fuzzing of what reads HTTP, and a soak of a whole proxy pod: `make fuzz`, `make soak`."""
