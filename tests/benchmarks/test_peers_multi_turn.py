"""The comparison over many turns gives every side the same work, and counts it right."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.group_names import training_group
from gspo_rllib.env_runners.group_scheduler import GroupScheduler

FOLDER = Path(__file__).parents[2] / "benchmarks"
CHILD = """
import sys
sys.path.insert(0, {folder!r})
from side import Pace
pace = Pace()
print("noise of a library")
number = 0
while pace.wait():
    number += 1
    sum(range(2_000_000))
    pace.done(number=number)
    if number == 2:
        raise RuntimeError("on purpose")
"""


SIDE = """
import sys
sys.path.insert(0, {folder!r})
from side import Pace
job, model, seed, success = sys.argv[1:]
pace = Pace()
while pace.wait():
    sum(range(3_000_000))  # CPU time comes in hundredths of a second
    pace.done(success=float(success), turns=9, sampled=40, trained=20, **{{"return": 0.5}})
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``import side`` and its neighbours, as the scripts do it that lie beside them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(FOLDER) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_a_side_is_timed_step_by_step_and_its_end_is_told(scripts: None, tmp_path: Path) -> None:
    from side import Child

    script = tmp_path / "child.py"
    script.write_text(CHILD.format(folder=str(FOLDER)))
    child = Child("it", [sys.executable, str(script)], tmp_path / "it.log")
    try:
        first, second = child.step(), child.step()
        with pytest.raises(RuntimeError, match=r"(?s)it ended early.*on purpose"):
            child.step()
    finally:
        child.stop()
    assert (first["number"], second["number"]) == (1, 2)
    assert first["ready_wall_s"] == second["ready_wall_s"] > 0.0
    assert 0.0 < first["cpu_s"] <= first["wall_s"] + 0.05 and first["peak_mb"] > 5.0
    assert "noise" in (tmp_path / "it.log").read_text()


class Expert:
    """Stands for TRL's trainer: replies as the environment's expert does, and notes every prompt down."""

    def __init__(self, tokenizer: Any, replies: list[str]) -> None:
        self._tokenizer, self._replies = tokenizer, iter(replies)
        self.prompts: list[list[int]] = []

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: None, fields: dict[str, Any], num_generations: int
    ) -> tuple[list[list[int]], None]:
        assert num_generations == 1
        self.prompts.append(list(prompt_ids[0]))
        ids = self._tokenizer(next(self._replies), add_special_tokens=False)["input_ids"]
        return [ids for _ in prompt_ids], None


def test_peers_are_given_the_tasks_of_our_own_runs(scripts: None) -> None:
    import peers_job

    groups = [training_group(number) for number in (0, 7)]
    scheduler: GroupScheduler[Any] = GroupScheduler(groups, group_size=1, run_seed=3, role="train")
    drawn = [assignment.task_seed for assignment in iter(scheduler.next_assignment, None)]
    assert drawn == [peers_job.task_seed(3, 0), peers_job.task_seed(3, 7)]


@pytest.mark.parametrize("job_name", ["one_turn", "many_turns", "long_turns"])
def test_trl_is_shown_the_tokens_that_our_own_runner_shows(job_name: str, scripts: None, tiny_dense: str) -> None:
    import peers_job
    from peers_trl import Rollout

    job = peers_job.JOBS[job_name]
    tokenizer = AutoTokenizer.from_pretrained(tiny_dense)
    played = peers_job.Played(job)
    renderer = ChatRenderer(tokenizer, played.chat)
    expert = played.expert()
    # What our runner would show, and the expert's replies; the second one runs out of tokens.
    observation, _ = played.reset(seed=7)
    context, prompts, replies = list(renderer.first_prompt(observation)), [], []
    while not played.done:
        prompts.append(list(context))
        replies.append(expert(observation) + ("" if len(replies) == 1 else tokenizer.eos_token))
        ids = tokenizer(replies[-1], add_special_tokens=False)["input_ids"]
        observation, _, _, _, info = played.step(tokenizer.decode(ids, skip_special_tokens=True))
        context += ids
        if not played.done:
            context += renderer.prompt_after(ids, observation, role=info["role"])

    rollout = Rollout(job, tokenizer)
    trainer = Expert(tokenizer, replies)
    given = [[{"role": "user", "content": "7"}]] * job.trajectories
    found = rollout(given, trainer)

    assert trainer.prompts == prompts and len(prompts) == played.turns
    assert found["prompt_ids"][0] + found["completion_ids"][0] == context
    assert len(found["env_mask"][0]) == len(found["completion_ids"][0])
    sampled = sum(len(tokenizer(reply, add_special_tokens=False)["input_ids"]) for reply in replies)
    assert sum(found["env_mask"][0]) == sampled and rollout.sampled == sampled * job.trajectories
    assert found["env_return"] == [played.total] * job.trajectories == [pytest.approx(1.0)] * job.trajectories


def _steps(cpu_s: float, ready_s: float, successes: list[float]) -> list[dict[str, float]]:
    step = {
        "wall_s": 2 * cpu_s,
        "cpu_s": cpu_s,
        "ready_wall_s": ready_s,
        "ready_cpu_s": ready_s,
        "peak_mb": 100.0,
        "sampled": 600.0,
        "trained": 300.0,
        "turns": 50.0,
        "return": 0.5,
    }
    return [{**step, "cpu_s": cpu_s * (3 if i == 0 else 1), "success": s} for i, s in enumerate(successes)]


def test_the_table_leaves_the_warm_up_out_and_the_start_in(
    scripts: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import machine
    import peers_multi_turn

    monkeypatch.setattr(machine, "sentence", lambda: "this")
    runs = [
        {"ours, vLLM": _steps(1.0, 10.0, [0.4, 0.9, 0.8]), "TRL, generate": _steps(6.0, 5.0, [0.4, 0.5, 0.6])}
        for _ in range(2)
    ]
    rows = peers_multi_turn.summary(runs)
    assert rows["ours, vLLM"]["cpu_s"] == 1.0 and rows["TRL, generate"]["cpu_s"] == 6.0
    assert rows["ours, vLLM"]["sampled_per_cpu_s"] == 600.0 and rows["ours, vLLM"]["trained_per_cpu_s"] == 300.0
    assert rows["ours, vLLM"]["target_cpu_s"] == [10.0 + 3.0 + 1.0] * 2
    assert rows["TRL, generate"]["target_cpu_s"] == [None, None]
    single = peers_multi_turn.summary([{"TRL, generate": _steps(6.0, 5.0, [0.4])}])
    assert single["TRL, generate"]["cpu_s"] == 18.0  # the only one there is
    peers_multi_turn.print_table("many_turns", rows)
    printed = capsys.readouterr().out
    assert "| first ≥ 90 %, CPU s with start | 14 / 14 | not reached / not reached |" in printed
    picture = tmp_path / "picture.png"
    peers_multi_turn.draw(runs, picture, "title")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_ratio_is_to_the_cheapest_of_each_library(scripts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import measure
    import peers_multi_turn

    kept: dict[str, tuple[list[float], dict[str, Any]]] = {}
    monkeypatch.setattr(measure, "record", lambda key, values, **details: kept.update({key: (values, details)}))
    run = {
        "ours, transformers": _steps(1.0, 14.0, [0.4, 0.9]),
        "ours, vLLM": _steps(2.0, 26.0, [0.4, 0.9]),
        "TRL, generate": _steps(9.0, 7.0, [0.4, 0.5, 0.6]),
        "TRL, vLLM": _steps(8.0, 9.0, [0.4, 0.5, 0.6]),
        "AgileRL": _steps(20.0, 7.0, [0.4, 0.5]),
    }
    peers_multi_turn.record("many_turns", [run], peers_multi_turn.summary([run]))
    assert kept["many_turns_over_trl"][0] == [8.0] and kept["many_turns_over_trl"][1]["beside"] == "TRL, vLLM"
    assert kept["many_turns_over_agilerl"][0] == [20.0]
    assert kept["start_up_over_trl"][0] == [9.0 / 14.0]
    assert set(kept) <= set(measure.KEYS)


def test_a_longer_context_changes_nothing_but_the_limit(scripts: None, tiny_dense: str, tmp_path: Path) -> None:
    import json

    import peers_multi_turn

    path = Path(peers_multi_turn.longer_context(tiny_dense, 100_000, str(tmp_path)))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (Path(tiny_dense), path))
    assert {name for name in after if after[name] != before[name]} == {"max_position_embeddings"}
    assert after["max_position_embeddings"] == 100_000


def test_sides_take_turns_until_they_have_learnt_or_were_long_enough_at_it(
    scripts: None, tiny_dense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    import machine
    import peers_job
    import peers_multi_turn

    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "fake.py").write_text(SIDE.format(folder=str(FOLDER)))
    sides = {name: (".venv", [str(tmp_path / "fake.py"), success]) for name, success in (("good", "1"), ("bad", "0.1"))}
    monkeypatch.setattr(peers_multi_turn, "ROOT", tmp_path)
    monkeypatch.setattr(peers_multi_turn, "SIDES", sides)
    monkeypatch.setattr(machine, "sentence", lambda: "this")
    monkeypatch.setattr(machine, "facts", lambda: {"processor": "this"})
    kept = tmp_path / "kept.json"
    arguments = [
        "--jobs",
        "many_turns",
        "--seeds",
        "3",
        "--model",
        tiny_dense,
        "--iterations",
        "7",
        "--json",
        str(kept),
    ]
    monkeypatch.setattr(sys, "argv", ["peers_multi_turn.py", *arguments, "--sides", "good", "bad"])
    peers_multi_turn.main()

    (run,) = json.loads(kept.read_text())["runs"]["many_turns"]
    assert len(run["good"]) == peers_multi_turn.FEWEST and len(run["bad"]) == 7
    lines = [line for line in capsys.readouterr().out.splitlines() if "iteration " in line and "seed 3" in line]
    started = [("good" if " good " in line else "bad") for line in lines]
    assert started == ["good", "bad"] * peers_multi_turn.FEWEST + ["bad"] * 2

    monkeypatch.setattr(sys, "argv", ["peers_multi_turn.py", "--kept", str(kept), "--pictures", str(tmp_path)])
    peers_multi_turn.main()
    assert "| CPU s per iteration | " in capsys.readouterr().out
    assert (tmp_path / "peers_many_turns.png").read_bytes().startswith(b"\x89PNG")

    short = dataclasses.replace(peers_job.JOBS["many_turns"], most_cpu_s=0.01)
    monkeypatch.setitem(peers_job.JOBS, "many_turns", short)
    for job, iterations in (("many_turns", 1), ("one_turn", 2)):  # one_turn is that of peers_learning.py
        assert len(peers_multi_turn.compare(job, tiny_dense, 0, ["bad"], 2)["bad"]) == iterations
