"""`python -m nimway` is `nimway`."""

from nimway.cli import main

main(prog_name="nimway")
