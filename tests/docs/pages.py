"""The pages of docs/ as the tests read them: text, headings, links and fenced blocks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`[^`\n]*`")
_HERE = re.compile(r"<<EOF\n(.*?)^EOF$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line it begins in, its language and text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Return the pages that are ours, and the README."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def blocks(*languages: str) -> list[Block]:
    """Return the fenced blocks in these languages."""
    found = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page.name, line, match[1], match[2]))
    return [block for block in found if block.language in languages]


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every Kubernetes object in a YAML block or a here-document, with where it stands."""
    texts = [(block.id, block.text) for block in blocks("yaml")]
    for block in blocks("console"):
        texts += [(block.id, text) for text in _HERE.findall(block.text)]
    for where, text in texts:
        for document in yaml.safe_load_all(text):
            if isinstance(document, dict) and "kind" in document and "apiVersion" in document:
                yield f"{where} {document['kind']}", document


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Return the targets of the page's links."""
    return _LINK.findall(_CODE.sub("", prose(page)))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in _HEADING.findall(prose(page))
    }


def table(page: Path, heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, header and rule left out."""
    text = page.read_text(encoding="utf-8")
    _, mark, below = text.partition(f"# {heading}\n")
    assert mark, f"{page.name} has no heading {heading!r}"
    rows: list[list[str]] = []
    for line in below.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            rows.append([cell.strip() for cell in cells])
        elif rows:
            break
    return rows[2:]
