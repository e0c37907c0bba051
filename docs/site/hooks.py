"""From the project's files to the pages of the site: MkDocs calls the ``on_…`` functions while it builds.

Every Markdown file is a page under its own path, so that links between them hold as they do in a checkout. What a page
links to besides comes along: sources and folders as pages that show them, data and pictures as they are. The API
reference is made from the public names of ``gspo_rllib``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from repository import (
    DATA,
    LANGUAGES,
    ROOT,
    api_pages,
    as_page,
    children,
    folder_page,
    github_anchor,
    linked,
    outside_code,
    pages,
    site_path,
    source_page,
    unescaped_pipes,
    with_page_links,
)

ASSETS = ("site.css", "search_from_file.js")
"""Beside this file, and on every page."""

_THEIRS = '<script src="https://unpkg.com/iframe-worker/shim"></script>'


def on_config(config: Any) -> Any:
    """Has headings get the anchors that GitHub gives them, and adds the API reference to the navigation."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = github_anchor
    for entry in config.nav:
        if "API" in entry:
            entry["API"] = ["api/index.md", *(f"api/{name}.md" for name in api_pages() if name != "index")]
    return config


def on_files(files: Files, config: Any) -> Files:
    """The site's files: pages, what they link to, the reference, and the theme's own."""
    kept = Files([file for file in files if file.src_dir != config.docs_dir])
    for path in pages():
        kept.append(_repository_file(path, config))
    for name in ASSETS:
        kept.append(_repository_file(Path(__file__).with_name(name), config))
    for name, text in api_pages().items():
        kept.append(File.generated(config, f"api/{name}.md", content=text))
    waiting = {target for path in pages() for target in linked(path)}
    while waiting:
        path = waiting.pop()
        shown = as_page(path)
        if kept.get_file_from_path(shown) is not None:
            continue
        if path.suffix in DATA:
            kept.append(_repository_file(path, config))
        elif path.is_dir():
            kept.append(File.generated(config, shown, content=folder_page(path)))
            waiting |= {child for child in children(path) if child.suffix in LANGUAGES}
        else:
            kept.append(File.generated(config, shown, content=source_page(path)))
    return kept


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page as Python-Markdown reads it: links lead to pages, and pipes in code are no escapes."""
    path = ROOT / page.file.src_uri
    if page.file.generated_by is not None:
        return markdown
    return outside_code(markdown, lambda text: with_marked_formulas(unescaped_pipes(with_page_links(text, path))))


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """A finished page with our own script in place of the one that the theme's offline search loads from the network.

    Raises:
        PluginError: The theme does it in another way now.
    """
    if output.count(_THEIRS) != 1:
        raise PluginError("the theme loads no shim for its search any more: see _THEIRS in docs/site/hooks.py")
    up = "../" * page.file.dest_uri.count("/")
    return output.replace(_THEIRS, f'<script src="{up}site/search_from_file.js"></script>')


def on_post_template(output_content: str, template_name: str, **_: Any) -> str:
    """The same for the page that a server shows for what does not exist, which needs no search."""
    return output_content.replace(_THEIRS, "")


_FORMULA = re.compile(r"`[^`\n]*`|\$\$(?P<block>[^$]+)\$\$|\$(?P<inline>[^$\n]+)\$")
_MARK = re.compile("\ue000(.*?)\ue001")


def with_marked_formulas(text: str) -> str:
    """``$…$`` and ``$$…$$`` in a page's text behind marks that Markdown leaves alone; code stays as it is."""

    def marked(match: re.Match[str]) -> str:
        formula = match["block"] or match["inline"]
        display = "block" if match["block"] else "inline"
        return match.group() if formula is None else f"\ue000{display}:{formula.strip().encode().hex()}\ue001"

    return _FORMULA.sub(marked, text)


def on_page_content(html: str, **_: Any) -> str:
    """The marked formulas as MathML, which browsers show without a script."""

    def shown(match: re.Match[str]) -> str:
        display, _, formula = match[1].partition(":")
        return str(latex2mathml.converter.convert(bytes.fromhex(formula).decode(), display=display))

    return _MARK.sub(shown, html)


def _repository_file(path: Path, config: Any) -> File:
    uri = path.relative_to(ROOT).as_posix()
    return File(uri, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=site_path(path))
