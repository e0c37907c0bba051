"""The project's files as pages: which there are, what their links become, and the Markdown of those that are made.

Needs nothing but Python, so that the tests of the project can look at it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("algorithms", "configs", "benchmarks", "docs", "envs", "examples", "requirements", "tests")
DATA = {".json", ".jsonl", ".txt", ".png", ".svg"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".sh": "bash"}
TITLES = {
    "agents": "Agents",
    "algorithms": "Algorithms and their configs",
    "configs": "Configs from files",
    "driver": "Recorded groups",
    "engines": "Engines",
    "envs": "Environments and tools",
    "errors": "Errors",
    "knobs": "Settings",
    "learners": "Learners",
    "ops": "Losses and advantages",
    "packing": "Token tables",
    "types": "Types",
}
"""What the reference calls the packages that public names come from."""
MODULES = {"columns": "Batch columns", "metrics": "Metrics"}
"""Pages of the reference about all of one module."""
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^```.*?^```", flags=re.M | re.S)


def pages() -> list[Path]:
    """The project's Markdown files."""
    return sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])


def site_path(path: Path) -> str:
    """Where a file of the project is on the site.

    Example:
        >>> [site_path(ROOT / name) for name in ("docs/README.md", "docs/runs.md", "README.md", "envs/README.md")]
        ['index.html', 'runs.html', 'start.html', 'envs/index.html']
    """
    uri = path.relative_to(ROOT).as_posix()
    if uri == "README.md":
        return "start.html"
    uri = uri.removeprefix("docs/").replace("README.md", "index.md")
    return uri.removesuffix(".md") + ".html" if uri.endswith(".md") else uri


def github_anchor(heading: str, separator: str = "-") -> str:
    """What GitHub makes of a heading, to be linked to.

    Example:
        >>> github_anchor("Runs, and what `they` leave – all")
        'runs-and-what-they-leave--all'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Changes a page's text, and none of its code blocks."""
    parts, end = [], 0
    for block in _FENCE.finditer(markdown):
        parts += [change(markdown[end : block.start()]), block.group()]
        end = block.end()
    return "".join([*parts, change(markdown[end:])])


def unescaped_pipes(text: str) -> str:
    r"""In a table GitHub wants a pipe in code escaped, and Python-Markdown shows the backslash.

    Example:
        >>> unescaped_pipes(r"| `a \| b` | c \| d |")
        '| `a | b` | c \\| d |'
    """
    return re.sub(r"`[^`\n]*`", lambda code: code.group().replace(r"\|", "|"), text)


def linked(path: Path) -> Iterator[Path]:
    """Files and folders of the project that a page links to and that are no Markdown."""
    for target in _LINK.findall(_FENCE.sub("", path.read_text())):
        goal = _goal(path, target[1])
        if goal is not None and goal.suffix != ".md":
            yield goal


def _goal(path: Path, target: str) -> Path | None:
    """The file or folder of the project that a link of a page means; None for an address or a place on the page."""
    file = target.partition("#")[0]
    if not file or re.match(r"[a-z]+:", target):
        return None
    return (path.parent / file).resolve()


def as_page(path: Path) -> str:
    """The source of the page that shows a file or folder; of data, the file itself."""
    uri = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        readme = path / "README.md"
        return f"{uri}/README.md" if readme.is_file() else f"{uri}/index.md"
    return uri if path.suffix in {*DATA, ".md"} else f"{uri}.md"


def with_page_links(text: str, path: Path) -> str:
    """A page's text with links to sources and folders turned into links to the pages that show them."""

    def turned(link: re.Match[str]) -> str:
        goal = _goal(path, link[2])
        if goal is None or goal.suffix == ".md":
            return link.group()
        up = "../" * (len(path.relative_to(ROOT).parts) - 1)
        return f"{link[1]}{up}{as_page(goal)}{link[3]}"

    return _LINK.sub(turned, text)


def children(folder: Path) -> list[Path]:
    """What the page of a folder lists."""
    return sorted(path for path in folder.iterdir() if path.name[0] not in "._" or path.name == "__init__.py")


def folder_page(folder: Path) -> str:
    """The page of a folder: its files with the first sentence of each."""
    rows = []
    for path in children(folder):
        name = path.name + "/" * path.is_dir()
        shown = f"[`{name}`]({path.name}.md)" if path.suffix in LANGUAGES else f"`{name}`"
        rows.append(f"| {shown} | {_first_sentence(path)} |")
    title = folder.relative_to(ROOT).as_posix()
    return "\n".join([*_unsearched(f"{title}/"), "| file | what it is for |", "|---|---|", *rows, ""])


def _first_sentence(path: Path) -> str:
    module = path / "__init__.py" if path.is_dir() else path
    if module.suffix != ".py" or not module.is_file():
        return "–"
    first = (ast.get_docstring(ast.parse(module.read_text())) or "–").split("\n\n")[0]
    return " ".join(first.split()).replace("|", r"\|").replace("<", "&lt;")


def source_page(path: Path) -> str:
    """The page that shows a source file."""
    text = path.read_text()
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    title = path.relative_to(ROOT).as_posix()
    return "\n".join([*_unsearched(title), f"{fence}{LANGUAGES.get(path.suffix, 'text')}", text.rstrip(), fence, ""])


def _unsearched(title: str) -> list[str]:
    # Whole sources would bury the pages that explain them in the search's answers.
    return ["---", f"title: {title}", "search: {exclude: true}", "hide: [toc]", "---", "", f"# `{title}`", ""]


def public_names(package: str = "gspo_rllib") -> dict[str, str]:
    """Every public name of a package to the module it comes from, as the package itself imports them."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {a.name: str(node.module) for node in imports if node.module.startswith(f"{package}.") for a in node.names}


def api_pages() -> dict[str, str]:
    """The pages of the API reference: name to Markdown."""
    rooms: dict[str, dict[str, str]] = {}
    for name, module in public_names().items():
        rooms.setdefault(module.split(".")[1], {})[name] = f"{module}.{name}"
    rooms["ops"] = {name: f"{module}.{name}" for name, module in public_names("gspo_rllib.ops").items()}
    made = {"index": _api_index(rooms)}
    for room, homes in sorted(rooms.items(), key=lambda item: TITLES[item[0]]):
        made[room] = f"# {TITLES[room]}\n\n" + "\n".join(f"::: {home}\n" for home in homes.values())
    for module, title in MODULES.items():
        options = "    options: {show_root_heading: false, show_root_toc_entry: false}"
        made[module] = f"# {title}\n\n::: gspo_rllib.{module}\n{options}\n"
    return made


def _api_index(rooms: dict[str, dict[str, str]]) -> str:
    rows = [
        f"| [{TITLES[room]}]({room}.md) | " + ", ".join(f"[`{name}`][{home}]" for name, home in homes.items()) + " |"
        for room, homes in sorted(rooms.items(), key=lambda item: TITLES[item[0]])
    ]
    rows += [f"| [{title}]({module}.md) | all of `gspo_rllib.{module}` |" for module, title in MODULES.items()]
    head = (
        "# API\n\nWhat `from gspo_rllib import …` gives, and the mathematics in `gspo_rllib.ops`; made from the "
        "docstrings. What a config's builder calls take is in a table of its own: [settings](../docs/settings.md).\n\n"
        "| page | names |\n|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"
