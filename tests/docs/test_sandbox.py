"""docs/sandbox.md names every command of the sandbox, and the options of `up`."""

import re

import click

from nimway.sandbox.command import sandbox, up
from tests.docs.pages import DOCS, ROOT, pages, table

PAGE = DOCS / "sandbox.md"


def test_the_commands_are_those_of_the_page() -> None:
    assert {row[0].strip("`") for row in table(PAGE, "Commands")} == set(sandbox.commands)


def test_the_options_of_up_are_those_of_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    written = set(re.findall(r"^\| `(--[a-z-]+)` \|", text, re.MULTILINE))
    known = {option.opts[0] for option in up.params if isinstance(option, click.Option)}
    assert written == known


def test_every_make_target_that_a_page_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in pages():
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`(?:[A-Z_]+=\S+ )?make ([a-z-]+)", text)
        named += re.findall(r"^(?:[A-Z_]+=\S+ )?make ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= targets, page.name


def test_the_samples_that_the_page_applies_are_there() -> None:
    assert list((ROOT / "operator/src/nimway/sandbox/samples").glob("*.yaml"))
