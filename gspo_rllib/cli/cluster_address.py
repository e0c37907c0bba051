"""Which Ray cluster a command runs on, and whether one answers there before Ray is asked to connect.

Ray itself tries an address that nobody answers for minutes (13 of them were measured), so it is asked only about one
that does.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from typing import Any

from gspo_rllib.errors import SettingError

CONNECT_S = 5.0
"""Seconds in which the port must accept a connection, and say that it speaks gRPC."""
ANSWER_S = 90.0
"""Seconds in which what speaks gRPC must answer as a Ray head: many, for a machine that is busy takes long to ask."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How every HTTP/2 connection begins, gRPC's too: the preface and empty settings (RFC 9113, section 3.4)."""
_SETTINGS = 4

_ASK = """
from ray.scripts.scripts import main
print(flush=True)
main()
"""
"""Ray's health check. It says when it begins to ask: on a busy machine importing Ray takes longer than the answer."""


def add_address(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names a cluster."""
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="run on the Ray cluster whose head listens there; default: RAY_ADDRESS, or a Ray of its own",
    )


def address_of(arguments: Any) -> str | None:
    """The cluster that the command line or the environment names, of which it is known that a Ray head answers.

    Args:
        arguments: The parsed command line.

    Returns:
        What ``ray.init`` takes as ``address``; None for a Ray of the command's own.

    Raises:
        SettingError: It is no address, or nobody answers there, or who answers is no Ray head or not ours to use.
    """
    option: str | None = arguments.address
    if option is not None and not option.strip():
        raise SettingError("--address: expected HOST:PORT of a Ray head, e.g. 10.0.0.1:6379, got nothing.")
    source, text = ("--address", option) if option else ("RAY_ADDRESS", os.environ.get("RAY_ADDRESS", ""))
    text = text.strip()
    if not text or text == "local":
        return None
    if text != "auto":  # which finds a cluster of this machine, or fails at once
        _check_answers(f"{source} {text!r}", text)
    return text


def split_address(text: str, named: str) -> tuple[str, int]:
    """Host and port.

    Args:
        text: ``HOST:PORT``; IPv6 hosts in brackets.
        named: What messages call it.

    Raises:
        SettingError: It is something else.

    Example:
        >>> split_address("10.0.0.1:6379", "--address"), split_address("[::1]:80", "--address")
        (('10.0.0.1', 6379), ('::1', 80))
    """
    if "://" in text:
        raise SettingError(
            f"{named}: expected HOST:PORT of the cluster's head, without a scheme (RLlib needs its driver on a node of "
            "the cluster, so Ray Client's ray:// is not supported). Run the command on a node, with the port that "
            "`ray start --head` said, usually 6379."
        )
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingError(f"{named}: expected HOST:PORT of a Ray head, e.g. 10.0.0.1:6379.")
    return host, int(port)


def _check_answers(named: str, text: str) -> None:
    host, port = split_address(text, named)
    remedy = "Start Ray there (`ray start --head --port PORT`), or give the address that its output names."
    silent = f"{named}: something listens at {host} port {port}, but it does not answer as a Ray head does. {remedy}"
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S) as connection:
            if not _speaks_grpc(connection):
                raise SettingError(silent)
    except socket.gaierror as error:
        raise SettingError(f"{named}: the host {host!r} is not known here ({error.strerror}). {remedy}") from error
    except (OSError, UnicodeError) as error:
        said = "no answer" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
        raise SettingError(f"{named}: nobody answers at {host} port {port} ({said}). {remedy}") from error
    # In a process of its own, because Ray's client can be given no deadline.
    with subprocess.Popen(
        [sys.executable, "-c", _ASK, "health-check", "--address", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ""},
    ) as asking:
        try:
            assert asking.stdout is not None
            asking.stdout.readline()
            _, said = asking.communicate(timeout=ANSWER_S)
        except subprocess.TimeoutExpired as error:
            raise SettingError(silent) from error
        finally:
            asking.kill()
    if asking.returncode:
        raise SettingError(f"{named}: {_refusal(said)}")


def _speaks_grpc(connection: socket.socket) -> bool:
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True  # the preface would come encrypted
    try:
        connection.sendall(_PREFACE)
        answer = connection.recv(9, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(answer) == 9 and answer[3] == _SETTINGS


def _refusal(stderr: str) -> str:
    """What the health check's error means to whoever typed the address."""
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no reason given")
    if "AuthenticationError" in stderr:
        return (
            "the cluster asks for another token than this process has. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to "
            "those that its head was started with."
        )
    if "Ray version mismatch" in stderr:
        return f"{last.removeprefix('RuntimeError: ')}. Install the same version on both."
    return f"the Ray head cannot be used: {last[:300]}"
