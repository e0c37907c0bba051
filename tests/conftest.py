"""Fixtures shared by all tests; sets the process up before anything imports torch or vLLM."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest

# One thread per process: on a shared machine more threads make a tiny model slower, and torch reads this on import.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

# Shapes written in annotations are checked while testing, and cost nothing otherwise. Before the first import of ops.
jaxtyping.install_import_hook("gspo_rllib.ops", "beartype.beartype")

# Set by .ci/run, on a machine that has all a test can need: there, a test that is skipped is one that nobody runs.
NO_SKIPS = "GSPO_RLLIB_NO_SKIPS"

# initializer_range is large so that an untrained model prefers some tokens clearly: a flat distribution would hide
# wrong positions, wrong masks and wrong weights behind equal log-probabilities.
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "intermediate_size": 128,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "seed": 7,
}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a session that would have passed, had it not skipped a test that it must run."""
    if _skipped(session.config) and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says which tests those are, by reason."""
    skipped = _skipped(config)
    if not skipped:
        return
    terminalreporter.section(f"{sum(map(len, skipped.values()))} skipped, but {NO_SKIPS} allows none", red=True)
    for reason, tests in skipped.items():
        terminalreporter.write_line(reason)
        for test in tests:
            terminalreporter.write_line(f"    {test}")


def _skipped(config: pytest.Config) -> dict[str, list[str]]:
    """Tests and modules that were skipped and may not be, by reason; under xdist, those of every worker."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")  # workers of xdist have none
    found: dict[str, list[str]] = defaultdict(list)
    if terminal is not None and os.environ.get(NO_SKIPS):
        for report in terminal.stats.get("skipped", []):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            found[reason.removeprefix("Skipped: ")].append(report.nodeid)
    return found


@pytest.fixture(scope="session")
def tiny_dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random dense Qwen3 with its tokenizer."""
    return _build(tmp_path_factory, "tiny_dense", {})


@pytest.fixture(scope="session")
def tiny_tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random dense Qwen3 whose head is its embedding."""
    return _build(tmp_path_factory, "tiny_tied", {"tie_word_embeddings": True})


@pytest.fixture(scope="session")
def tiny_moe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random Qwen3-MoE, 4 experts, 2 per token."""
    sizes = {"architecture": "qwen3_moe", "num_experts": 4, "num_experts_per_token": 2, "intermediate_size": 64}
    return _build(tmp_path_factory, "tiny_moe", sizes)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of this test session's own, 4 CPUs."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def _build(tmp_path_factory: pytest.TempPathFactory, name: str, changes: dict[str, Any]) -> str:
    from gspo_rllib.warmstart.models import build_model

    return str(build_model(tmp_path_factory.mktemp("models") / name, **(_TINY | changes)))
