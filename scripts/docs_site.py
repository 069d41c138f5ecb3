# SPDX-License-Identifier: Apache-2.0
"""Hooks of mkdocs (mkdocs.yml names this file): pages of the repository that lie outside docs/ join the site, and links keep their meaning there.

Links are written for GitHub, relative to the file in the repository. On the site a link to a page or picture of it stays relative, any other goes to the file
on GitHub. One to a file that is not there ends the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
# Where files of the repository stand on the site; those of docs/ stand at its top.
JOINED = {"README.md": "index.md"} | {name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")}
_LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^\s*(```|~~~)")


def _joined() -> dict[str, str]:
    """Return path in the repository -> path on the site."""
    results = (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / RESULTS).iterdir()) if path.suffix in {".md", ".png"})
    return JOINED | {name: name for name in results if Path(name).name != "long_tests.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, place in _joined().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    places = _joined()
    sources = {place: source for source, place in places.items()}
    here = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    fenced = False
    lines = []
    for line in markdown.splitlines():
        if _FENCE.match(line):
            fenced = not fenced
        lines.append(line if fenced else _LINK.sub(lambda link: f"]({_on_site(link[1], here, page.file.src_uri, places, config)})", line))
    return "\n".join(lines) + "\n"


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mend the links of notebooks, whose Markdown mkdocs does not see."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    here = f"docs/{page.file.src_uri}"

    def mended(link: re.Match[str]) -> str:
        target = _on_site(link[1], here, page.file.src_uri, _joined(), config)
        return f'href="{re.sub(r"[.]md(?=#|$)", ".html", target) if target[0] == "." or ":" not in target else target}"'

    return re.sub(r'href="([^"]+[.]md(?:#[^"]*)?)"', mended, html)


def _on_site(link: str, here: str, page: str, places: dict[str, str], config: MkDocsConfig) -> str:
    if re.match(r"[a-z]+:|#", link):
        return link
    path, _, anchor = link.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
    if not (ROOT / target).exists():
        raise PluginError(f"{here} links {link}, but there is no {target}")
    suffix = f"#{anchor}" if anchor else ""
    place = places.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") and (ROOT / target).is_file() else None)
    if place is None:
        return f"{config.extra['repository']}/{'tree' if (ROOT / target).is_dir() else 'blob'}/main/{target}{suffix}"
    return posixpath.relpath(place, posixpath.dirname(page) or ".") + suffix
