"""Environments in processes of their own: nothing that is played changes, and no process outlives its use."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.util.debug import reset_log_once

from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.engines.transformers import TransformersEngine
from gspo_rllib.env_pool.factory import check_language_env_spec
from gspo_rllib.env_pool.pool import EnvPool
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.group_scheduler import GroupScheduler
from gspo_rllib.env_runners.rollout import Rollout
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import EnvError
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.types import turns
from tests.env_pool.answers import MakePool, collect
from tests.ray_exports import exported
from tests.toy_envs.faulty_envs import EchoEnv
from tests.toy_envs.process_envs import GlobalRandomEnv, Lock, ProcessEnv


@pytest.fixture(scope="module")
def play(tiny_dense: str) -> Iterator[Callable[..., Any]]:
    """Plays one group of three; returns the episodes and the statistics."""
    from transformers import AutoModelForCausalLM

    renderer = ChatRenderer(load_tokenizer(tiny_dense))
    engine = TransformersEngine(EngineSpec("transformers", tiny_dense, "float32", 256, 4, renderer.stop_token_ids))
    state = AutoModelForCausalLM.from_pretrained(tiny_dense, dtype="float32").state_dict()
    engine.load_weights({name: tensor.numpy() for name, tensor in state.items()}, 1)

    def run(pool: EnvPool) -> Any:
        scheduler: GroupScheduler[Any] = GroupScheduler(["it/0"], group_size=3, run_seed=0, role="train")
        settings = GenerationSettings(temperature=1.0, max_tokens_per_turn=5)
        stats = Rollout(engine, pool, lambda chat: renderer, settings, run_seed=0).run(scheduler)
        return stats.episodes, stats

    yield run
    engine.close()


def has_ended(pid: int) -> bool:
    """Whether a process ends, given a minute on a machine that has other things to do."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_a_process_of_its_own_changes_nothing_that_is_played(
    make_pool: MakePool, play: Callable, ray_local: None
) -> None:
    def played(process: bool) -> list[Any]:
        episodes, stats = play(make_pool(ProcessEnv, 3, blocking=False, process=process))
        assert stats.failures == {}
        pids = {episode.get_infos(0)["pid"] for episode in episodes}
        assert (os.getpid() not in pids and len(pids) == 3) if process else pids == {os.getpid()}
        return [
            (e.get_observations(), e.get_rewards(), [t.action_token_ids.tolist() for t in turns(e)]) for e in episodes
        ]

    assert str(played(process=True)) == str(played(process=False))


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("hang", "timeout", "step_timeout_s=3"),
        ("crash", "raised", "os._exit"),
        ("raise", "raised", "ValueError: not this time"),
    ],
)
def test_what_goes_wrong_in_a_process_is_counted_and_retried(
    make_pool: MakePool, play: Callable, ray_local: None, tmp_path: Path, fault: str, kind: str, words: str
) -> None:
    timeout = 3.0 if fault == "hang" else 60.0  # only what hangs is to be out of time
    pool = make_pool(lambda: ProcessEnv(fault, str(tmp_path)), 2, process=True, timeout=timeout)
    episodes, stats = play(pool)
    assert len(episodes) == 3
    assert stats.failures == {kind: 1}
    assert stats.num_retries == 1
    assert words in stats.errors[0]


@pytest.mark.parametrize("fault", [pytest.param("hang", marks=pytest.mark.slow), "crash"])
def test_a_hung_or_crashed_process_is_gone_and_its_slot_gets_another(
    make_pool: MakePool, ray_local: None, tmp_path: Path, fault: str
) -> None:
    pool = make_pool(lambda: ProcessEnv(fault, str(tmp_path)), process=True, timeout=3.0 if fault == "hang" else 60.0)
    slot = pool.acquire()
    assert slot is not None
    pool.reset(slot, 5)
    pid, given_to_ray = collect(pool)[0].info["pid"], exported()
    pool.step(slot, "a")
    [answer] = collect(pool)
    assert answer.failure is not None
    assert answer.failure.lost_process == (fault == "crash")
    assert has_ended(pid)
    pool.reset(slot, 5)
    [again] = collect(pool)
    assert again.failure is None
    assert again.info["pid"] not in (pid, os.getpid())
    assert exported() == given_to_ray, "a class of its own for each process, which Ray keeps"
    pool.step(slot, "a")
    assert collect(pool)[0].failure is None


def test_closing_the_pool_closes_idle_environments_and_leaves_no_process(
    make_pool: MakePool, ray_local: None, tmp_path: Path
) -> None:
    pool = make_pool(lambda: ProcessEnv("hang", str(tmp_path)), 3, process=True, timeout=600.0)
    slots = [pool.acquire() for _ in range(3)]
    tickets = {pool.reset(slot or 0, 0): slot for slot in slots}
    pids = {tickets[answer.ticket]: answer.info["pid"] for answer in collect(pool)}
    assert len(set(pids.values())) == 3
    pool.step(slots[0] or 0, "a")
    while not (tmp_path / "failed").exists():
        time.sleep(0.05)
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 60, "close() waits for nobody: the environment answers in ten minutes"
    assert all(map(has_ended, pids.values()))
    idle = {f"closed {pid}" for slot, pid in pids.items() if slot != slots[0]}
    assert {path.name for path in tmp_path.iterdir()} == {"failed", *idle}


def test_giving_up_a_running_call_ends_its_process(make_pool: MakePool, ray_local: None, tmp_path: Path) -> None:
    pool = make_pool(lambda: ProcessEnv("hang", str(tmp_path)), process=True)
    slot = pool.acquire()
    assert slot is not None
    pool.reset(slot, 0)
    pid = collect(pool)[0].info["pid"]
    pool.step(slot, "a")
    pool.release(slot)
    assert not pool.is_waiting
    assert has_ended(pid)


def test_state_that_belongs_to_a_process_is_not_shared_between_processes(make_pool: MakePool, ray_local: None) -> None:
    def rolls(process: bool) -> list[str]:
        """What two interleaved episodes of the same task observe."""
        pool = make_pool(GlobalRandomEnv, 2, blocking=False, process=process)
        seen = {pool.acquire() or 0: [], pool.acquire() or 0: []}
        for slot in seen:
            pool.reset(slot, 11)
            collect(pool)
        for _ in range(2):
            for slot, texts in seen.items():
                pool.step(slot, "a")
                texts.append(collect(pool)[0].observation)
        return list(map(str, seen.values()))

    alone, other = rolls(process=True)
    assert alone == other
    together, other = rolls(process=False)
    assert together != other, "these environments do not clash: this shows nothing"


def test_the_start_of_a_process_is_not_held_against_its_environment(make_pool: MakePool, ray_local: None) -> None:
    # No process imports its modules in 50 ms; from the first answer on, the deadline is meant as it was set.
    pool = make_pool(lambda: ProcessEnv(), process=True, timeout=0.05)
    pool.reset(pool.acquire() or 0, 0)
    [answer] = collect(pool)
    assert answer.failure is None


def test_what_cannot_be_made_in_the_process_is_its_failure(make_pool: MakePool, ray_local: None) -> None:
    pool = make_pool(lambda: ProcessEnv(**{"wrong": 1}), process=True)
    pool.reset(pool.acquire() or 0, 0)
    [answer] = collect(pool)
    assert answer.failure is not None
    assert "unexpected keyword argument 'wrong'" in answer.failure.message


def test_what_cannot_be_sent_to_a_process_is_refused_with_the_remedy(ray_local: None) -> None:
    with pytest.raises(EnvError, match=r"cannot pickle '_thread.lock'.*Keep locks"):
        check_language_env_spec(ProcessEnv, {"fault": None, "folder": "", "turns": Lock()})


def test_metadata_says_whether_an_environment_gets_a_process() -> None:
    assert check_language_env_spec(ProcessEnv).process is True
    assert check_language_env_spec(EchoEnv).process is False


def test_without_ray_a_thread_plays_instead_and_the_log_says_so(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gspo_rllib.env_pool.process.ray.is_initialized", lambda: False)
    reset_log_once("gspo_rllib_process_without_ray")
    with caplog.at_level(logging.WARNING):
        pools = [make_pool(ProcessEnv, blocking=False, process=True) for _ in range(2)]
    assert [record.message for record in caplog.records if "Ray is not running" in record.message] != []
    assert len(caplog.records) == 1
    # Those of earlier tests may be ending right now, so the new one is looked for and not counted.
    earlier = set(threading.enumerate())
    pools[0].reset(pools[0].acquire() or 0, 0)
    assert [thread.name for thread in set(threading.enumerate()) - earlier] == ["gspo-env-0"]
    assert collect(pools[0])[0].info["pid"] == os.getpid()
