"""The documentation as a site: every page is in its navigation, nothing is missing, and it asks nobody for anything."""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "docs" / "site" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


repository, check = _script("repository"), _script("check")


def _navigation(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for child in (entry.values() if isinstance(entry, dict) else entry) for page in _navigation(child)]


def test_every_page_is_in_the_navigation_once() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    tops = [top for entry in settings["nav"] for top in entry]
    assert {"Start", "Concepts", "Environments", "Agents", "Objectives", "Models", "Scale", "Reliability"} <= {*tops}
    assert {"Performance", "Baselines", "API"} <= {*tops}
    shown = _navigation(settings["nav"])
    assert sorted(shown) == [path.relative_to(ROOT).as_posix() for path in repository.pages()]


def test_the_reference_has_every_public_name() -> None:
    import gspo_rllib
    from gspo_rllib import ops

    text = "".join(repository.api_pages().values())
    assert not [n for n in gspo_rllib.__all__ if n != "__version__" and not re.search(rf"^::: .*\.{n}$", text, re.M)]
    public = [name for name in vars(ops) if not name.startswith("_") and not isinstance(vars(ops)[name], ModuleType)]
    assert len(public) > 40 and not [name for name in public if not re.search(rf"^::: .*\.{name}$", text, re.M)]


def test_the_functions_that_make_pages_do_what_they_show() -> None:
    outcome = doctest.testmod(repository)
    assert outcome.attempted >= 3 and not outcome.failed


def test_code_blocks_stay_as_they_are() -> None:
    page = ROOT / "docs" / "runs.md"
    text = "see [it](../envs)\n```python\nx = '[it](../envs)'\n```\nand [types](../gspo_rllib/types.py)\n"
    changed = repository.outside_code(text, lambda part: repository.with_page_links(part, page))
    assert changed.splitlines() == [
        "see [it](../envs/README.md)",
        "```python",
        "x = '[it](../envs)'",
        "```",
        "and [types](../gspo_rllib/types.py.md)",
    ]


def test_a_source_with_fences_of_its_own_is_shown_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text('"""\n````\ncode\n````\n"""\n')
    assert "\n`````python\n" in repository.source_page(tmp_path / "a.py")
    assert "[`a.py`](a.py.md)" in repository.folder_page(tmp_path)


def test_what_a_site_lacks_or_fetches_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1><a href="https://example.org">elsewhere</a>')
    (tmp_path / "a.html").write_text('<a href="b.html#here">b</a><a href="#">top</a>')
    assert check.faults(tmp_path) == (2, 3, [])
    (tmp_path / "a.html").write_text(
        '<a href="b.html#gone">b</a><a href="c.html">c</a><script src="https://example.org/x.js"></script>'
        '<link rel="stylesheet" href="https://example.org/x.css"><img src="x.png">'
    )
    (tmp_path / "x.css").write_text("@font-face { src: url(https://example.org/font.woff) }")
    _, _, wrong = check.faults(tmp_path)
    assert [line.partition(": ")[2] for line in wrong] == [
        "b.html#gone is a place that the page does not have",
        "c.html is not there",
        "https://example.org/x.js is fetched",
        "https://example.org/x.css is fetched",
        "x.png is not there",
        "https://example.org/font.woff is fetched",
    ]


@pytest.mark.slow
def test_the_site_is_built_and_works_without_a_network_in_both_themes(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    # The environment of this test names paths of its own; the site's is made as a reader makes it.
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def make(target: str) -> subprocess.CompletedProcess[str]:
        command = ["make", target, f"PYTHON={sys.executable}"]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    installed = make(".venv-docs/.installed")  # of which pip may say what it likes
    assert installed.returncode == 0, installed.stdout + installed.stderr
    made = make("docs")
    assert made.returncode == 0, made.stdout + made.stderr
    assert re.search(r"^\d{3,} pages, [\d,]+ links, 0 of them wrong$", made.stdout, re.M), made.stdout
    assert "WARNING" not in made.stdout + made.stderr

    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    assert found, "this test drives a real browser: install the package chromium (apt-get install chromium)"
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        colours = set()
        for scheme in ("light", "dark"):
            context = browser.new_context(color_scheme=scheme)
            context.set_offline(True)
            shown = context.new_page()
            shown.on("pageerror", lambda error: wrong.append(str(error)))
            shown.on("console", lambda message: wrong.append(message.text))
            shown.on(
                "request", lambda request: request.url.split(":")[0] in ("file", "data") or wrong.append(request.url)
            )
            for name in ("index.html", "objectives.html", "api/ops.html", "gspo_rllib/ops/index.html"):
                shown.goto((ROOT / "site" / name).as_uri())
                shown.wait_for_selector("h1")
            colours.add(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
            shown.goto((ROOT / "site" / "objectives.html").as_uri())
            assert shown.locator("math").count() > 30 and "$" not in shown.locator("main p").first.text_content()
            shown.keyboard.press("s")
            shown.keyboard.type("staleness")
            shown.wait_for_selector(".md-search-result__item")
            context.close()
        browser.close()
    assert len(colours) == 2
    assert not wrong
