"""`gspo-rllib view`: the page of a run, a checkpoint or a file, written or served, without loading what trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gspo_rllib.cli.main import main
from gspo_rllib.trajectory_table import files_of


def test_a_run_becomes_one_file(trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.html"
    assert main(["view", str(trained.folder), "--export", str(file)]) == 0
    assert capsys.readouterr().out == f"{trained.folder.name}: {file}\n"
    text = file.read_text()
    assert text.startswith("<!DOCTYPE html>") and f">{trained.folder.name}</h1>" in text
    assert [path.name for path in files_of(trained.folder)] == ["iteration_000001.parquet", "iteration_000002.parquet"]
    assert main(["view", str(files_of(trained.folder)[0]), "--export", str(file)]) == 0


def test_checkpoints_play_the_same_tasks(trained: SimpleNamespace, tmp_path: Path) -> None:
    from gspo_rllib.view import page

    seen = []
    original = page.page
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "page", lambda sources, title: seen.append(sources) or original(sources, title=title))
        both = [str(trained.checkpoint.parent / name) for name in ("iteration_000001", "iteration_000002")]
        command = ["view", *both, "--episodes", "2", "--samples", "2", "--export", str(tmp_path / "both.html")]
        assert main(command) == 0
    (sources,) = seen
    tasks = [[(row["group_id"], row["index"], row["task_seed"]) for row in source.rows] for source in sources]
    assert tasks[0] == tasks[1] and len(set(tasks[0])) == 4
    firsts = [[row["turns"][0]["observation"] for row in source.rows] for source in sources]
    assert firsts[0] == firsts[1]
    assert [source.rows[0]["turns"][0]["version"] for source in sources] == [1, 2]
    assert all(source.tokenizer is not None for source in sources)


def test_it_is_served_without_torch_and_ray(trained: SimpleNamespace) -> None:
    code = (
        "import sys, threading, urllib.request\n"
        "from http.server import ThreadingHTTPServer\n"
        "served = ThreadingHTTPServer.serve_forever\n"
        "def once(self):\n"
        "    threading.Thread(target=served, args=(self,), daemon=True).start()\n"
        "    text = urllib.request.urlopen(f'http://127.0.0.1:{self.server_port}/').read().decode()\n"
        "    print(len(text) > 10_000, [m for m in ('torch', 'ray', 'transformers', 'vllm') if m in sys.modules])\n"
        "    self.shutdown()\n"
        "ThreadingHTTPServer.serve_forever = once\n"
        "from gspo_rllib.cli.main import main\n"
        f"sys.exit(main(['view', {str(trained.folder)!r}, '--no-browser']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    served, seen = done.stdout.splitlines()
    assert served.startswith(f"{trained.folder.name}: http://127.0.0.1:")
    assert seen == "True []"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "'nowhere': no such file or folder; it must be a run, a checkpoint, .jsonl or .parquet."),
        (["."], "'.' is neither a run's folder, with a result.json, nor a checkpoint, nor a file."),
        (["nowhere", "--export", "page.txt"], "--export: 'page.txt' must end in .html."),
        (["nowhere", "--export", "no/page.html"], "--export: there is no folder 'no' to write 'page.html' into."),
        (["nowhere", "--tokenizer", "no"], "--tokenizer: 'no' is no folder with a tokenizer.json."),
        (["nowhere", "--seed", "1"], "--seed is for a checkpoint, which plays when it is looked at; here is none."),
        (["nowhere", "--env-config", "a=1"], "--env-config is for a checkpoint"),
        (["nowhere", "--episodes", "0"], "--episodes: expected a whole number >= 1, got 0."),
    ],
)
def test_what_cannot_be_shown_is_said(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["view", *options]) == 2
    assert message in capsys.readouterr().err
