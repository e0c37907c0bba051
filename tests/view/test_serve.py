"""The page is served to this machine only, made anew with every request."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest

from gspo_rllib.errors import RecordError, SettingError
from gspo_rllib.view.serve import server


@contextmanager
def _served(make) -> Iterator[str]:
    serving = server(make, port=0)
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}"
    finally:
        serving.shutdown()
        serving.server_close()
        thread.join()


def test_a_reload_shows_what_is_new_and_nothing_else_is_served() -> None:
    numbers = count()
    with _served(lambda: f"page {next(numbers)} é") as address:
        for number in range(2):
            with urllib.request.urlopen(f"{address}/") as answer:
                assert answer.read().decode() == f"page {number} é"
                assert answer.headers["X-Frame-Options"] == "DENY"
                assert answer.headers["Cache-Control"] == "no-store"
        for path in ("/etc/passwd", "/../x", "/?a"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{address}{path}")
        # Under another name: a page of elsewhere that had its name lead here could read what is shown.
        request = urllib.request.Request(f"{address}/", headers={"Host": "evil.example:80"})
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(request)


def test_what_cannot_be_read_any_more_is_said_as_text() -> None:
    def gone() -> str:
        raise RecordError("<script>'x'</script>: no such file")

    with _served(gone) as address, pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{address}/")
    text = caught.value.read().decode()
    assert "&lt;script&gt;" in text and "<script>" not in text


def test_a_port_that_is_taken_is_refused() -> None:
    with server(lambda: "", port=0) as taken, pytest.raises(SettingError, match=f"--port {taken.server_port}: nothing"):
        server(lambda: "", port=taken.server_port)
    with pytest.raises(SettingError, match="--port 70000"):
        server(lambda: "", port=70000)
