"""What all pages have in common: links lead somewhere, examples are what they say."""

import ast
import json
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, Block, anchors, blocks, links, pages

PAGES = pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.name))
def test_links_between_pages_resolve(path: Path) -> None:
    for target in links(path):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert ROOT in file.resolve().parents, target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_of_docs_is_linked_from_another() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in links(page)
        if "://" not in target
    }
    alone = {page.name for page in DOCS.glob("*.md") if page.resolve() not in linked}
    assert alone <= {"README.md"}  # the index; a folder shows it


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: str(block.id))
def test_json_examples_are_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: str(block.id))
def test_python_examples_are_python(block: Block) -> None:
    ast.parse(block.text)


def test_every_fenced_block_says_its_language() -> None:
    silent = [block.id for block in blocks("") if block.page != "README.md"]
    assert silent == []
