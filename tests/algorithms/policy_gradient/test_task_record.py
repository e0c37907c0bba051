"""What a checkpoint says of its run's tasks."""

from __future__ import annotations

import json
from pathlib import Path

from gspo_rllib import GSPOConfig
from gspo_rllib.algorithms.policy_gradient.task_record import FILE, changed_tasks, task_sets, write_tasks

DATASET = "gspo_rllib.envs:gspo_rllib/Dataset-v0"
ROWS = [{"question": f"{n} + 1?", "answer": n + 1} for n in range(5)]


def _file(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_file_that_was_changed_is_noticed_in_training_evaluation_stages_and_records(tmp_path: Path) -> None:
    file = _file(tmp_path / "rows.jsonl", ROWS)
    groups = _file(tmp_path / "groups.jsonl", [{}])
    config = (
        GSPOConfig()
        .environment(DATASET, env_config={"path": file})
        .training(curriculum=[{"limit": 2}], recorded_groups=groups)
        .evaluation(
            evaluation_interval=1,
            evaluation_config={"env": DATASET, "env_config": {"rows": ROWS[:3]}},
        )
    )
    before = task_sets(config)
    assert {name: tasks.count for name, tasks in before.items()} == {
        "recorded_groups": 1, "training": 5, "curriculum[0]": 2, "evaluation": 3
    }  # fmt: skip
    write_tasks(tmp_path, before)
    assert changed_tasks(tmp_path, task_sets(config)) is None

    _file(tmp_path / "rows.jsonl", [*ROWS, *ROWS])
    _file(tmp_path / "groups.jsonl", [{"a": 1}])
    assert changed_tasks(tmp_path, task_sets(config)) == (
        "recorded_groups: 1 groups then and now, but not the same ones; training: 5 tasks then, 10 now"
    )


def test_an_agents_tasks_are_told_apart() -> None:
    config = GSPOConfig().agent(play="json:loads", tasks=[{"question": "1"}])
    other = GSPOConfig().agent(play="json:loads", tasks=[{"question": "2"}])
    (one,), (two,) = task_sets(config).values(), task_sets(other).values()
    assert two.change(one) == "1 tasks then and now, but not the same ones"
    assert task_sets(GSPOConfig().agent(play="json:loads")) == {}


def test_what_is_not_counted_is_not_compared(tmp_path: Path) -> None:
    assert task_sets(GSPOConfig().environment("gspo_rllib.envs:gspo_rllib/Arithmetic-v0")) == {}
    assert changed_tasks(tmp_path, {}) is None, "a checkpoint of an older version"
    write_tasks(tmp_path, {})
    assert json.loads((tmp_path / FILE).read_text()) == {}


def test_no_environment_is_made_where_the_runners_count_nothing() -> None:
    config = GSPOConfig().environment("there:is/none-v0")
    assert task_sets(config, counted=[None, object()]) == {}
