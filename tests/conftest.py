"""Fixtures shared by all tests; sets the process up before anything imports torch or vLLM."""

from __future__ import annotations

import ast
import functools
import gc
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
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
# Ray's workers let every other process go first (niceness 15); tests wait for them, on a busy machine for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")

# Compiled modules are kept: without them, importing torch and ray costs every process that a test starts 16 s of CPU
# instead of 7 s. Container images often switch that off.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Shapes written in annotations are checked while testing, and cost nothing otherwise. Before the first import of ops.
jaxtyping.install_import_hook("gspo_rllib.ops", "beartype.beartype")

# Set by .ci/run, on a machine that has all a test can need: there, a test that is skipped is one that nobody runs.
NO_SKIPS = "GSPO_RLLIB_NO_SKIPS"

# How long an example may take is the machine's business.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

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


# Of Ray sessions a test run has two, of processes that start vLLM one: fixtures say who needs the first; a mark says
# who needs the second. What needs neither goes by file, for its fixtures.
_RAY_FIXTURES = {"ray_local", "trained"}
_LONG = ("ray", "ray for algorithms", "vllm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts first what takes longest, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: _LONG.index(work) if (work := _work(item.nodeid)) in _LONG else len(_LONG))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported lives as long as the process: looking through it for garbage took 7 % of the time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--numprocesses``: two processes have a Ray session, one has vLLM's engines, one after the other."""
    from xdist.scheduler import LoadScopeScheduling

    class ByWork(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _work(nodeid)

    config.option.loadscopereorder = False
    return ByWork(config, log)


def _work(nodeid: str) -> str:
    """Tests of one work run in one process, one after the other. Only the name is known where work is dealt out."""
    path, _, name = nodeid.partition("::")
    text, fixtures = _source(path)
    if _RAY_FIXTURES & fixtures.get(name.partition("[")[0], set()):
        return "ray for algorithms" if path.startswith("tests/algorithms/") else "ray"
    return "vllm" if "mark.vllm" in text else path


@functools.cache
def _source(path: str) -> tuple[str, dict[str, set[str]]]:
    """The text of a test file, and what its functions ask for by their arguments and decorators."""
    file = Path(__file__).parents[1] / path
    text = file.read_text() if file.is_file() else ""
    asked = {}
    for function in [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]:
        words = [node for decorator in function.decorator_list for node in ast.walk(decorator)]
        asked[function.name] = {argument.arg for argument in function.args.args}
        asked[function.name] |= {word.value for word in words if isinstance(word, ast.Constant)}
    return text, asked


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


@pytest.fixture
def make_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Any]]:
    """Makes a cluster of raylets, whose head has so many CPUs; a test adds the other nodes, and loses some."""
    from tests.raylets import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token-of-the-clusters-of-tests-0123456789")
    # A worker finds this checkout as a command that was started in it does.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    made: list[Cluster] = []

    def make(head_cpus: int) -> Cluster:
        made.append(Cluster(head_cpus))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def _build(tmp_path_factory: pytest.TempPathFactory, name: str, changes: dict[str, Any]) -> str:
    from gspo_rllib.warmstart.models import build_model

    return str(build_model(tmp_path_factory.mktemp("models") / name, **(_TINY | changes)))
