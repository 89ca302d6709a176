"""The sandbox's one family of errors: each is a sentence for the person at the terminal."""


class SandboxError(Exception):
    """Something the user can read and act on; the command line prints it and exits with 2."""


class HostError(SandboxError):
    """This machine cannot run a sandbox; the text says why and what to do instead."""
