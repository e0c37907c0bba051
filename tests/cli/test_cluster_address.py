"""Which cluster a command runs on: what is no address, and where nobody answers, is said at once, in one sentence."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from gspo_rllib.cli import cluster_address
from gspo_rllib.cli.cluster_address import address_of
from gspo_rllib.cli.main import main
from gspo_rllib.errors import SettingError


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def grpc_port() -> Iterator[int]:
    """A port that begins as gRPC does, and then says no more."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
                    connection.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as once:
        once.bind(("127.0.0.1", 0))
        return int(once.getsockname()[1])


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def _given(address: str | None) -> SimpleNamespace:
    return SimpleNamespace(address=address)


def test_without_an_address_a_command_has_a_ray_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address_of(_given(None)) is None
    for word in ("", " ", "local"):
        monkeypatch.setenv("RAY_ADDRESS", word)
        assert address_of(_given(None)) is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert address_of(_given(None)) == "auto"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "host",
        "host:",
        ":6379",
        "host:port",
        "host:0",
        "host:65536",
        "host:-1",
        "ray://host:10001",
        "http://h:1",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"--address.*expected HOST:PORT"):
        address_of(_given(text))


def test_an_unknown_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    with pytest.raises(SettingError, match=r"'nohost:6379': the host 'nohost' is not known here"):
        address_of(_given("nohost:6379"))


def test_the_environment_is_named_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port}")
    with pytest.raises(SettingError, match=f"RAY_ADDRESS .*nobody answers at 127.0.0.1 port {free_port}"):
        address_of(_given(None))


@pytest.mark.parametrize("command", [["train", "x.yaml"], ["sweep", "x.yaml"], ["evaluate", "x"], ["rollout", "x"]])
def test_nobody_there_ends_every_command_at_once(
    command: list[str], free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.process_time()
    assert main([*command, "--address", f"127.0.0.1:{free_port}"]) == 2
    assert time.process_time() - started < 2, "no framework is imported for it"
    (line,) = capsys.readouterr().err.splitlines()
    assert f"nobody answers at 127.0.0.1 port {free_port} (Connection refused)" in line and "ray start" in line


def test_somebody_who_is_no_ray_head_is_found_out(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_address.CONNECT_S <= 5
    monkeypatch.setattr(cluster_address, "CONNECT_S", 0.2)
    with pytest.raises(SettingError, match="does not answer as a Ray head does"):
        address_of(_given(f"127.0.0.1:{silent_port}"))


def test_what_speaks_grpc_and_is_no_head_is_found_out(grpc_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_address, "ANSWER_S", 0.2)
    monkeypatch.setattr(cluster_address, "_ASK", "import time; print(flush=True); time.sleep(60)")
    with pytest.raises(SettingError, match="does not answer as a Ray head does"):
        address_of(_given(f"127.0.0.1:{grpc_port}"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken",
            r"another token than .*Set RAY_AUTH_MODE=token",
        ),
        (
            "RuntimeError: Ray version mismatch: cluster has Ray version 2.59.0 but local Ray version is 2.60.0",
            r"2\.59\.0 .*2\.60\.0\. Install the same version on both",
        ),
        ("", "cannot be used: no reason given"),
    ],
)
def test_what_a_head_refuses_is_said_in_our_words(
    error: str, said: str, grpc_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_address, "_ASK", f"import sys; print(); sys.stderr.write({error!r}); sys.exit(1)")
    with pytest.raises(SettingError, match=said):
        address_of(_given(f"127.0.0.1:{grpc_port}"))
