"""The form of the project's Markdown pages: links lead somewhere, tables are whole, the index is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "docs" / "README.md"
FOLDERS = ("algorithms", "benchmarks", "configs", "docs", "envs", "examples", "requirements", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def _prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def _links(page: Path) -> list[str]:
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)) if not re.match(r"[a-z]+:", target)]


def _anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings, to be linked to."""
    headings = re.findall(r"^#+ (.*)$", _prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in _links(page):
        file, _, anchor = target.partition("#")
        goal = page.parent / file if file else page
        assert goal.exists(), target
        assert not anchor or anchor in _anchors(goal), target


@every_page
def test_no_table_has_an_empty_cell_or_a_row_of_another_length(page: Path) -> None:
    columns = 0
    for line in _prose(page).splitlines():
        if not line.lstrip().startswith("|"):
            columns = 0
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        columns = columns or len(cells)
        assert all(cells), line
        assert len(cells) == columns, line


@every_page
def test_every_script_that_is_named_exists(page: Path) -> None:
    for script in re.findall(r"\b(?:benchmarks|examples|requirements)/\w+\.\w+\b", page.read_text()):
        assert (ROOT / script).is_file(), script


def test_the_index_of_the_docs_names_every_page() -> None:
    linked = {(INDEX.parent / target.partition("#")[0]).resolve() for target in _links(INDEX)}
    others = [page for page in PAGES if page != INDEX]
    assert not [page.relative_to(ROOT).as_posix() for page in others if page not in linked]


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
