"""Whether a built site is whole and asks nobody for anything.

    python docs/site/check.py site

Every link leads to a file of the site and to a place that is on it; scripts, styles, pictures and fonts are the site's
own. Addresses that a reader may click on are left alone: nothing is looked up.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches without being asked; of <link> those that only name a relation are not fetched.
FETCHED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href"), ("use", "href")}
NAMED_ONLY = {"canonical", "next", "prev"}


class _Page(HTMLParser):
    """The places of a page and what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = {""}
        self.links: list[tuple[str, bool]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if given.get("rel") in NAMED_ONLY:
            return
        self.links += [
            (value, (tag, name) in FETCHED)
            for name, value in given.items()
            if name in ("href", "src") and tag != "base"
        ]


def faults(site: Path) -> tuple[int, int, list[str]]:
    """What is wrong with a site.

    Args:
        site: Its folder.

    Returns:
        The number of pages, the number of links on them, and a sentence for each that leads nowhere or is fetched.
    """
    parsed = {path.resolve(): _Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    wrong, count = [], 0
    for path, page in parsed.items():
        count += len(page.links)
        for link, is_fetched in page.links:
            fault = _fault(path, link, parsed, site) if not urlsplit(link).scheme else "is fetched" * is_fetched
            if fault:
                wrong.append(f"{path.relative_to(site.resolve())}: {link} {fault}")
    wrong += [
        f"{path.relative_to(site)}: {address} is fetched"
        for path in sorted(site.rglob("*.css"))
        for address in re.findall(r"url\([\"']?(https?:[^)\"']*)", path.read_text())
    ]
    return len(parsed), count, wrong


def _fault(path: Path, link: str, parsed: dict[Path, _Page], site: Path) -> str:
    if path.name == "404.html":  # shown in place of any page, so its links begin at the root
        path, link = site.resolve() / "404.html", link.removeprefix("/")
    file, _, place = link.partition("#")
    goal = (path.parent / unquote(file)).resolve() if file else path
    if goal.is_dir():
        goal = goal / "index.html"
    if not goal.is_file():
        return "is not there"
    if goal in parsed and unquote(place) not in parsed[goal].places:
        return "is a place that the page does not have"
    return ""


def main() -> int:
    """Prints the numbers and what is wrong."""
    pages, links, wrong = faults(Path(sys.argv[1]))
    for line in wrong:
        print(line)
    print(f"{pages} pages, {links:,} links, {len(wrong)} of them wrong")
    return int(bool(wrong) or not pages)


if __name__ == "__main__":
    sys.exit(main())
