"""The simulated NIM: NIM's HTTP API without a model or a GPU, for the sandbox and the tests."""
