"""`gspo-rllib export`: the trained weights, and no pickle."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from gspo_rllib import checkpoints
from gspo_rllib.cli.main import main


def test_an_exported_folder_holds_the_trained_weights_and_no_pickle(trained: SimpleNamespace, tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(["export", str(trained.checkpoint), str(tmp_path / "model")]) == 0
    assert not list((tmp_path / "model").glob("*.pkl"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    saved = load_file(checkpoints.policy_folder(trained.checkpoint) / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if name in saved:
            assert (tensor.numpy() == saved[name]).all()
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template


def test_an_export_is_written_in_the_dtype_that_is_asked_for(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "model"
    assert main(["export", str(trained.checkpoint), str(folder), "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: bfloat16; load it with transformers.AutoModelForCausalLM")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    saved = load_file(checkpoints.policy_folder(trained.checkpoint) / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, saved[name].bfloat16())


def test_a_weight_that_is_too_large_for_a_dtype_is_refused_and_no_part_of_a_model_is_left(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(trained.checkpoint, checkpoint)
    file = checkpoint / checkpoints.POLICY / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] = -70_000.0
    save_file(weights, file, metadata={"format": "pt"})
    checkpoints.write_manifest(checkpoint)
    folder = tmp_path / "model"
    assert main(["export", str(checkpoint), str(folder), "--dtype", "float16"]) == 2
    assert capsys.readouterr().err == (
        "gspo-rllib: model.norm.weight holds a weight of 7e+04, more than float16 can. Export as bfloat16 or float32.\n"
    )
    assert not folder.exists()
    assert main(["export", str(checkpoint), str(folder)]) == 0


def test_the_model_card_says_how_the_policy_was_trained_and_how_well_it_did(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    import yaml

    assert main(["export", str(trained.checkpoint), str(tmp_path / "model")]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "transformers" and "gspo" in header["tags"]
    # The base model is a folder of this machine, which is nobody's business but its name.
    assert "base_model" not in header and str(tmp_path.parent) not in card and "`tiny_dense`" in card
    record = json.loads((trained.folder / "run.json").read_text())
    assert "| `training.lr` | `0.0001` |" in card and f"ray {record['versions']['ray']}" in card
    last = json.loads((trained.folder / "result.json").read_text().splitlines()[1])["env_runners"]
    assert f"| sampled in training, iteration 2 | success | {100 * last['success_mean']:.0f}" in card
    assert "from_pretrained" in card and "(GSPO) on `gspo_rllib.envs:gspo_rllib/Calculator-v0`" in card


def test_a_model_card_tells_no_score_of_a_later_policy(trained: SimpleNamespace, tmp_path: Path) -> None:
    first = trained.checkpoint.parent / "iteration_000001"
    assert main(["export", str(first), str(tmp_path / "model")]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert "iteration 1 |" in card and "iteration 2 |" not in card
    # Away from its run nothing is known of it, and nothing is said.
    shutil.copytree(first, tmp_path / "iteration_000001")
    assert main(["export", str(tmp_path / "iteration_000001"), str(tmp_path / "alone")]) == 0
    card = (tmp_path / "alone" / "README.md").read_text()
    assert "## Scores" not in card and "the run's own record is not there" in card


def test_a_policy_is_exported_as_it_came_but_for_its_weights(trained: SimpleNamespace, tmp_path: Path) -> None:
    source = Path(json.loads((trained.folder / "run.json").read_text())["config"]["rl_module"]["model_config"]["path"])
    assert main(["export", str(trained.checkpoint), str(tmp_path / "model")]) == 0
    left = {file.name for file in source.iterdir()} - {file.name for file in (tmp_path / "model").iterdir()}
    assert not left
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config.get("use_cache", True) is True


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    asked: ClassVar[list[tuple[str, bytes]]] = []
    refuses: ClassVar[bool] = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.path, body))
        if self.refuses:
            self._answer({"error": "no"}, 403)
        elif self.path.endswith("/create"):
            self._answer({"url": f"http://{self.headers['Host']}/me/small", "name": "me/small"})
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer({"files": files})
        else:
            self._answer(
                {"commitUrl": f"http://{self.headers['Host']}/me/small/commit/1", "commitOid": "1", "success": True}
            )

    def do_GET(self) -> None:
        self._answer({"id": "me/small", "sha": "0", "siblings": []})

    def _answer(self, answer: object, status: int = 200) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    import huggingface_hub.constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    huggingface_hub.close_session()
    monkeypatch.setattr(_Hub, "asked", [])
    yield _Hub
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


def test_a_pushed_policy_reaches_the_hub_whole(
    trained: SimpleNamespace, tmp_path: Path, hub: type[_Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    assert main(["export", str(trained.checkpoint), str(folder), "--push", "me/small", "--private"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("pushed to http://127.0.0.1:")
    (created,) = [json.loads(body) for path, body in hub.asked if path.endswith("/create")]
    assert created["name"] == "small" and created["organization"] == "me"
    assert created.get("private") is True or created.get("visibility") == "private"
    (commit,) = [body for path, body in hub.asked if "/commit/" in path]
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in map(json.loads, commit.splitlines())
        if line["key"] == "file"
    }
    assert sent == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert sent["README.md"].decode().count("me/small") == 3


def test_a_push_that_cannot_be_is_one_sentence_and_the_folder_stays(
    trained: SimpleNamespace,
    tmp_path: Path,
    hub: type[_Hub],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["export", str(trained.checkpoint), str(tmp_path / "model"), "--push"]
    assert main([*arguments, "me//small"]) == 2 and not (tmp_path / "model").exists()
    assert "Expected NAME or OWNER/NAME" in capsys.readouterr().err
    assert main(["export", str(trained.checkpoint), str(tmp_path / "model"), "--private"]) == 2
    assert "give --push NAME" in capsys.readouterr().err
    monkeypatch.setattr(hub, "refuses", True)
    assert main([*arguments, "me/small"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "was written, but not pushed" in error and "hf auth login" in error
    assert (tmp_path / "model" / "model.safetensors").is_file()
