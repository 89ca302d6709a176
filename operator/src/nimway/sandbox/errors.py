"""The sandbox's one family of errors: each is a sentence for the person at the terminal."""


class SandboxError(Exception):
    """Something the user can read and put right; the command line prints it and exits with 2."""

    exit_code = 2


class HostError(SandboxError):
    """This machine cannot run a sandbox; the text says why and what to do instead."""


class FailedError(SandboxError):
    """A step failed where nothing was wrong with the input; the command line exits with 1."""

    exit_code = 1
