"""The SQL environment: its tasks, its verifier and its turns."""

from __future__ import annotations

import pickle

import pytest

from gspo_rllib.envs.sql import Question, SQLEnv, Table, build_task, solve
from gspo_rllib.errors import EnvError


def test_every_environment_row_comes_from_the_task_s_number() -> None:
    tables, questions = build_task(task=3, questions=4, tables=3, rows=30)
    assert (tables, questions) == build_task(task=3, questions=4, tables=3, rows=30)
    assert tables != build_task(task=4, questions=4, tables=3, rows=30)[0]


def test_the_answer_is_worked_out_by_hand() -> None:
    tables = {
        "stores": Table(("id", "town"), ((1, "kobo"), (2, "lima"), (3, "kobo"))),
        "items": Table(("id", "kind"), ((1, "tea"), (2, "salt"))),
        "sales": Table(("store_id", "item_id", "cost"), ((1, 1, 5), (3, 1, 9), (2, 1, 7), (1, 2, 50), (3, 1, 1))),
    }
    conditions = (("town", "kobo"), ("kind", "tea"))
    answers = [solve(tables, Question(name, "cost", "sales", conditions)) for name in ("sum", "max", "min")]
    assert answers == [15, 9, 1]
    with pytest.raises(ValueError, match="no row"):
        solve(tables, Question("sum", "cost", "sales", (("town", "lima"), ("kind", "salt"))))


@pytest.mark.parametrize("tables", [2, 3])
def test_sql_and_the_verifier_agree(tables) -> None:
    env = SQLEnv(tables=tables, questions=20)
    for seed in range(5):
        observation, info = env.reset(seed=seed)
        expert, shown = env.expert(), []
        over = False
        while not over:
            observation, _, over, _, _ = env.step(expert(observation))
            if observation.isdigit():
                shown.append(int(observation))
        assert shown == info["answers"]


def test_a_wrong_answer_ends_the_episode_and_a_right_one_brings_the_next_question() -> None:
    env = SQLEnv(questions=2)
    first, info = env.reset(seed=0)
    second, reward, terminated, _, step_info = env.step(f"answer {info['answers'][0]}")
    assert second.endswith("?") and second != first
    assert (reward, terminated, "success" in step_info) == (0.0, False, False)
    assert env.step(f" answer  {info['answers'][1]} ")[:4] == ("right", 1.0, True, False)
    env.reset(seed=0)
    observation, reward, terminated, _, step_info = env.step(f"answer {info['answers'][0] + 1}")
    assert (observation, reward, terminated, step_info["success"]) == ("wrong", 0.0, True, False)


def test_a_failed_query_costs_the_turn_and_says_why() -> None:
    env = SQLEnv()
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step("select x from nowhere")
    assert observation == "error: no such table: nowhere"
    assert (reward, terminated, truncated, info["valid_action"]) == (0.0, False, False, False)
    assert env.step("select sql from sqlite_master")[4]["valid_action"]


def test_the_schema_changes_from_task_to_task() -> None:
    env = SQLEnv()
    schemas = set()
    for seed in range(30):
        env.reset(seed=seed)
        schemas.add(env.step("select sql from sqlite_master")[0])
    assert len(schemas) > 15


def test_a_copy_goes_on_from_the_same_turn_with_a_database_of_its_own() -> None:
    env = SQLEnv()
    observation, _ = env.reset(seed=4)
    expert = env.expert()
    observation = env.step(expert(observation))[0]
    copy = pickle.loads(pickle.dumps(env))
    query = expert(observation)
    assert copy.step(query) == env.step(query)
    env.close()
    assert copy.step(query)[4]["valid_action"]


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(EnvError, match="task_id='monday'"):
        SQLEnv().reset(options={"task_id": "monday"})
