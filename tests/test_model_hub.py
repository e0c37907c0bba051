"""A model of the hub: where nobody answers that is known within seconds, and an adapter is told from a model."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from gspo_rllib import model_hub
from gspo_rllib.cli.main import main
from gspo_rllib.errors import ModelError
from gspo_rllib.model_folder import load_tokenizer, model_path


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that asks the hub, with a cache of its own; nobody is there to answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path))):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    _send_to(port, monkeypatch)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    huggingface_hub.close_session()
    model_hub.found.cache_clear()
    yield monkeypatch
    huggingface_hub.close_session()
    model_hub.found.cache_clear()


def _send_to(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )


class _Hub(BaseHTTPRequestHandler):
    """Has a model ``me/small`` and an adapter ``me/adapter``."""

    def do_HEAD(self) -> None:
        files = {"/me/small/resolve/main/config.json", "/me/adapter/resolve/main/adapter_config.json"}
        known = self.path.startswith(("/me/small/", "/me/adapter/"))
        self.send_response(200 if self.path in files else 404)
        if self.path not in files:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(asked: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _send_to(server.server_port, asked)
    yield
    server.shutdown()
    server.server_close()


def test_without_network_and_copy_a_name_is_refused_at_once_in_one_line(
    asked: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "calculator", "rl_module.model_config.path=me/small"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "model path 'me/small': there is no such folder here" in error
    assert "the hub cannot be reached" in error and "hf download me/small" in error and "Retrying" not in error
    begun = time.monotonic()
    with pytest.raises(ModelError):
        model_path({"path": "me/small"})
    assert time.monotonic() - begun < model_hub.PATIENCE_S


def test_a_hub_that_accepts_and_never_answers_is_not_waited_for(asked: pytest.MonkeyPatch) -> None:
    asked.setattr(model_hub, "PATIENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        _send_to(silent.getsockname()[1], asked)
        with pytest.raises(ModelError, match=r"cannot be reached \(.*[Tt]ime"):
            model_path({"path": "me/small"})


def test_without_network_the_copy_in_the_cache_is_used_and_nobody_is_asked_again(
    asked: pytest.MonkeyPatch, tmp_path: Path, tiny_dense: str, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "models--me--small" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_dense, copy)
    (copy.parent.parent / "refs").mkdir()
    (copy.parent.parent / "refs" / "main").write_text("a" * 40)
    begun = time.monotonic()
    assert [model_path({"path": "me/small"}) for _ in range(2)] == [str(copy)] * 2
    load_tokenizer(model_path({"path": "me/small"}))
    assert time.monotonic() - begun < model_hub.PATIENCE_S
    assert caplog.text.count("the copy in the cache is used") == 1


def test_a_hub_that_answers_is_left_to_transformers(hub: None) -> None:
    for name in ("me/small", "me/nothing", "no name", "a" * 200):
        assert model_path({"path": name}) == name


def test_an_adapter_of_the_hub_is_told_from_a_model(hub: None) -> None:
    with pytest.raises(ModelError, match=r"has an adapter of that name.*hf download me/adapter.*'lora'"):
        model_path({"path": "me/adapter"})


def test_the_users_home_may_be_written_short(asked: pytest.MonkeyPatch, tmp_path: Path, tiny_dense: str) -> None:
    (tmp_path / "model").symlink_to(tiny_dense)
    asked.setenv("HOME", str(tmp_path))
    assert model_path({"path": "~/model"}) == str(tmp_path / "model")
