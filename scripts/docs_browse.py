# SPDX-License-Identifier: Apache-2.0
"""Open every page of the built site in headless Chromium, on a desk and on a phone, and say what a reader would trip over.

    python scripts/docs_browse.py [SITE] [--shots FOLDER]

Found are: requests that fail or leave the site, errors on the console, pictures that did not load, are too small to read or wider than the page, and pages
that scroll sideways. The browser is the one that CHROMIUM names, or `chromium` on the path; playwright drives it.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SITE = Path(__file__).resolve().parents[1] / "build" / "site"
SIZES = {"desk": (1280, 900), "phone": (390, 844)}
SMALLEST_PICTURE = 100  # pixels, either way, at the desk
_LOOK = """() => ({
    pictures: [...document.querySelectorAll('.md-content img')].map(i => ({
        src: i.src, loaded: i.complete && i.naturalWidth > 0, width: i.getBoundingClientRect().width, height: i.getBoundingClientRect().height,
        right: i.getBoundingClientRect().right, natural: i.naturalWidth})),
    sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    title: document.title, heading: !!document.querySelector('h1'),
})"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a folder on this machine alone; give its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def look(page: Page, address: str, place: str, size: str, shots: Path | None) -> list[str]:
    """Return what is wrong with one page at one size."""
    wrong: list[str] = []
    handlers = {
        "console": lambda message: wrong.append(f"console: {message.text}") if message.type == "error" else None,
        "pageerror": lambda error: wrong.append(f"script: {error}"),
        "requestfailed": lambda request: wrong.append(f"request failed: {request.url}"),
        "response": lambda response: wrong.append(f"{response.status}: {response.url}") if response.status >= 400 else None,
        "request": lambda request: wrong.append(f"leaves the site: {request.url}") if not request.url.startswith((address, "data:", "blob:")) else None,
    }
    for event, handler in handlers.items():
        page.on(event, handler)  # type: ignore[call-overload]
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    page.goto(f"{address}/{place}", wait_until="networkidle")
    seen = page.evaluate(_LOOK)
    for picture in seen["pictures"]:
        name = picture["src"].rpartition("/")[2]
        if not picture["loaded"]:
            wrong.append(f"picture not shown: {name}")
        elif picture["right"] > width + 1:
            wrong.append(f"picture wider than the page: {name}")
        elif size == "desk" and min(picture["width"], picture["height"]) < SMALLEST_PICTURE:
            wrong.append(f"picture too small to read: {name}, {picture['width']:.0f} x {picture['height']:.0f}")
    if seen["sideways"] > 1:
        wrong.append(f"scrolls sideways by {seen['sideways']} pixels")
    if not seen["heading"]:
        wrong.append("no heading")
    if shots:
        page.screenshot(path=shots / f"{place.replace('/', '-').removesuffix('.html')}.{size}.png", full_page=False)
    for event, handler in handlers.items():
        page.remove_listener(event, handler)
    return [f"{place} ({size}): {what}" for what in wrong]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=SITE)
    parser.add_argument("--shots", type=Path, metavar="FOLDER", help="keep a screenshot of the top of each page")
    arguments = parser.parse_args()
    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        print("no Chromium here: install one (Debian: chromium) or name it by CHROMIUM", file=sys.stderr)
        return 2
    if arguments.shots:
        arguments.shots.mkdir(parents=True, exist_ok=True)
    places = sorted(path.relative_to(arguments.site).as_posix() for path in arguments.site.rglob("*.html") if "assets" not in path.parts)
    places.remove("404.html")
    problems: list[str] = []
    with served(arguments.site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        for place in places:
            for size in SIZES:
                problems += look(page, address, place, size, arguments.shots)
        browser.close()
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(places)} pages, each at {len(SIZES)} sizes, in Chromium: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
