# SPDX-License-Identifier: Apache-2.0
"""Check the built site without a browser: links, anchors, pictures, the reference of every exported name, and Markdown that GitHub reads otherwise.

    python scripts/docs_check.py [SITE]

SITE is build/site where none is named.
"""

from __future__ import annotations

import ast
import re
import sys
import urllib.parse
import zlib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site"
_URL_ATTRIBUTES = {("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")}


@dataclass
class Page(HTMLParser):
    """What one page links, names, and shows."""

    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    paragraphs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open = self._in_code = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"id", "name"} and value:
                self.anchors.add(value)
            if (tag, name) in _URL_ATTRIBUTES and value:
                self.links.append(value)
        self._in_code = self._in_code or tag == "code"
        if tag == "p":
            self._open = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag != "p"
        self._in_code = self._in_code and tag != "code"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.paragraphs[-1] += "`" if self._in_code else data

    @classmethod
    def read(cls, path: Path) -> Page:
        page = cls()
        page.feed(path.read_text(encoding="utf-8"))
        return page


def broken_links(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Return a line for each link within the site whose file or anchor is not there. What lies elsewhere is not asked."""
    problems = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are those of a site at the root of a host
        for link in page.links:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                problems.append(f"{path.relative_to(site)}: {link}: there is no such file")
            elif url.fragment and target in pages and urllib.parse.unquote(url.fragment) not in pages[target].anchors | {"__search"}:
                problems.append(f"{path.relative_to(site)}: {link}: there is no such anchor")
    return problems


def lost_markdown(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Return a line for each list or table that came out as text: Python's Markdown wants an empty line before it, GitHub does not."""
    mark = re.compile(r"^\s*(?:[-*+] |\d+\. |\|.*\|\s*$|\*\*|```)", re.M)
    return [f"{path.relative_to(site)}: shown as text: {p.strip()[:80]!r}" for path, page in pages.items() for p in page.paragraphs if mark.search(p)]


def exported(module: Path) -> list[str]:
    """Return the `__all__` of a module, by its source."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def missing_members(site: Path) -> list[str]:
    """Return a line for each exported name of a public module that the reference has not."""
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    known = {line.split(" ")[0] for line in inventory.splitlines()}
    modules = {f"weightpack.{page.stem}" if page.stem != "weightpack" else "weightpack" for page in (ROOT / "docs" / "api").glob("*.md")}
    problems = []
    for name in sorted(modules):
        place = ROOT.joinpath(*name.split("."))
        source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        problems += [f"the reference lacks {name}.{member}" for member in exported(source) if f"{name}.{member}" not in known]
    return problems


def main() -> int:
    site = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else SITE
    pages = {path: Page.read(path) for path in sorted(site.rglob("*.html")) if "assets" not in path.parts}
    problems = broken_links(site, pages) + lost_markdown(site, pages) + missing_members(site)
    for problem in problems:
        print(problem, file=sys.stderr)
    n_links = sum(len(page.links) for page in pages.values())
    print(f"{len(pages)} pages, {n_links} links: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
