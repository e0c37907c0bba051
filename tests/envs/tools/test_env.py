"""Tools and tasks are an environment, and no reply of the policy crashes it."""

from __future__ import annotations

import functools
import json
import pickle
import re
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from gspo_rllib.envs import check_language_env
from gspo_rllib.envs.tools import tool
from gspo_rllib.envs.tools.declare import Tool, tools_of
from gspo_rllib.envs.tools.env import Task, ToolEnv
from gspo_rllib.errors import EnvError, SettingError
from tests.toy_envs.faulty_envs import RAISED
from tests.toy_envs.tool_envs import SumEnv, add, call, play


class NotesEnv(ToolEnv):
    """Tools with a state, kept on the environment."""

    def draw_task(self, random: np.random.Generator) -> Task:
        self.lines: list[str] = []
        return Task("Write two lines.", int(random.integers(5)))

    @tool
    def write(self, line: str) -> int:
        """Writes a line down; says how many there are."""
        self.lines.append(line)
        return len(self.lines)

    def verify(self, task: Task, answer: str) -> float:
        return float(len(self.lines) == 2)


def test_gymnasium_s_checker_has_no_complaint() -> None:
    check_env(SumEnv(render_mode="ansi"))


def test_the_declared_tools_are_in_the_chat() -> None:
    env = SumEnv(system_prompt="Add.", stop=["</tool_call>"], max_turns=3, max_tokens_per_turn=50)
    assert [declared["function"]["name"] for declared in env.chat.tools] == ["add", "look", "fail", "repeat"]
    assert (env.chat.system_prompt, env.chat.stop) == ("Add.", ("</tool_call>",))
    assert (env.chat.max_turns, env.chat.max_tokens_per_turn) == (3, 50)
    json.dumps(env.chat.tools)


def test_calls_are_run_and_an_answer_ends_the_episode() -> None:
    env = SumEnv()
    question, info = env.reset(seed=3)
    one, other = question.split()
    observation, reward, terminated, truncated, said = env.step(call("add", {"a": int(one), "b": int(other)}))
    assert (observation, reward, terminated, truncated) == (str(info["answer"]), 0.0, False, False)
    assert said == {"valid_action": True, "obs_role": "tool"}
    _, reward, terminated, _, said = env.step(f"<think>so</think> {observation}\n")
    assert (reward, terminated, said["success"]) == (1.0, True, True)


def test_a_wrong_answer_ends_the_episode_too() -> None:
    (step,) = play(SumEnv(), "I do not know.")
    assert step[1:4] == (0.0, True, False)
    assert step[4]["success"] is False


def test_the_calls_of_a_turn_run_in_the_order_they_were_written() -> None:
    env = NotesEnv()
    (step,) = play(env, call("write", {"line": "a"}) + " and " + call("write", {"line": "b"}))
    assert step[0] == "write: 1\nwrite: 2"
    assert env.lines == ["a", "b"]


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("<tool_call>{", "error: tool call 1 is not valid JSON"),
        (call("ad", {"a": 1}), "error: no tool 'ad'. Did you mean 'add'?"),
        (call("add", {}), "error: add: 'a' is a required property"),
        (call("add", {"a": "one"}), "error: add: a: 'one' is not of type 'integer'"),
        (call("add", {"a": True}), "error: add: a: True is not of type 'integer'"),
        (call("add", {"a": 1, "c": 2}), "'c' was unexpected"),
        (call("add", {"a": "x" * 10_000}), "error: add: a: 'xxx"),
        (call("fail", {"how": "so"}), "error: fail: KeyError: 'so'"),
        (call("fail", {"how": "y" * 10_000}), "error: fail: KeyError"),
        (call("fail", {"how": "exit"}), "error: fail: SystemExit: bye"),
        (call("add", {"a": 1}) * 9, "error: 9 calls in one turn; at most 8"),
        (call("__class__", {}), "error: no tool '__class__'"),
    ],
)
def test_a_call_that_goes_wrong_is_told_to_the_policy(action, told) -> None:
    env = SumEnv()
    step, after = play(env, action, call("add", {"a": 1}))
    assert told in step[0]
    assert len(step[0]) < 300, "an observation must not echo what it was sent"
    assert step[1:4] == (0.0, False, False)
    assert step[4]["valid_action"] is False
    assert after[0] == "2" and after[4]["valid_action"] is True


def test_one_failed_call_of_several_makes_the_turn_invalid_and_the_others_count() -> None:
    (step,) = play(SumEnv(), call("add", {"a": 1}) + call("fail", {"how": "so"}))
    assert step[0] == "add: 2\nfail: error: fail: KeyError: 'so'"
    assert step[4]["valid_action"] is False


def test_a_tool_that_says_its_environment_is_broken_is_no_matter_of_the_policy() -> None:
    with pytest.raises(EnvError, match="the server is gone"):
        play(SumEnv(), call("fail", {"how": "env"}))


def test_arguments_written_as_text_get_the_types_of_the_schema() -> None:
    (step,) = play(SumEnv(), call("add", {"a": "3", "b": "4"}, "qwen_xml"))
    assert step[0] == "7"


def test_only_the_declared_format_is_a_call() -> None:
    (step,) = play(SumEnv(tool_format="llama_json"), call("add", {"a": 1}, "hermes"))
    assert step[2], "in another format this is an answer"
    (step,) = play(SumEnv(tool_format="llama_json"), call("add", {"a": 1}, "llama_json"))
    assert step[0] == "2"


def test_a_long_result_is_cut() -> None:
    (step,) = play(SumEnv(max_result_chars=10), call("repeat", {"text": "é", "times": 50}))
    assert step[0] == "é" * 10 + "… (40 more characters)"


def test_results_that_are_no_text_are_shown_as_json() -> None:
    (step,) = play(SumEnv(), call("look", {"at": "ü", "places": [1]}))
    assert json.loads(step[0]) == {"at": "ü", "how": "near", "places": [1], "weights": None}
    assert "ü" in step[0]


def test_turns_run_out() -> None:
    *_, last = play(SumEnv(max_turns=3), *[call("add", {"a": 1})] * 3)
    assert last[1:4] == (0.0, False, True)
    assert (last[4]["truncated_by"], last[4]["success"]) == ("turns", False)


def test_a_seed_and_a_task_id_fix_the_task() -> None:
    env, other = SumEnv(), SumEnv()
    started = [env.reset(seed=seed) for seed in range(5)]
    assert started == [other.reset(seed=seed) for seed in range(5)]
    assert len({question for question, _ in started}) > 1
    for question, info in started:
        assert other.reset(seed=99, options={"task_id": info["task_id"]}) == (question, info)


def test_tasks_may_be_given_as_a_list_and_verified_by_a_function() -> None:
    env = ToolEnv([add], [("one?", "1"), Task("two?", "2")], verify=lambda task, answer: task.answer in answer)
    assert env.reset(options={"task_id": "1"}) == ("two?", {"task_id": "1", "answer": "2"})
    assert env.step("It is 2.")[1] == 1.0
    assert {env.reset(seed=seed)[0] for seed in range(20)} == {"one?", "two?"}
    for unknown in ("2", "-1", "01", "", "x", 1):
        with pytest.raises(EnvError, match="Allowed: "):
            env.reset(options={"task_id": unknown})


@pytest.mark.parametrize(
    ("verify", "complaint"),
    [
        (lambda task, answer: 1 / 0, "verify.. raised ZeroDivisionError"),
        (lambda task, answer: None, "verify.. raised TypeError"),
        (lambda task, answer: float("nan"), "returned nan"),
    ],
)
def test_a_broken_verifier_is_an_error_of_the_environment(verify, complaint) -> None:
    with pytest.raises(EnvError, match=complaint):
        play(ToolEnv([add], [("q", "a")], verify), "answer")


@pytest.mark.parametrize(
    ("make", "error", "complaint"),
    [
        (lambda: ToolEnv([]), SettingError, "at least one tool"),
        (lambda: ToolEnv([add.function]), SettingError, "at least one tool"),
        (lambda: ToolEnv([add, add]), SettingError, "'add' is declared 2 times"),
        (lambda: ToolEnv([add], []), SettingError, "tasks is empty"),
        (lambda: ToolEnv([add], ["q"]), EnvError, "must be Task"),
        (lambda: ToolEnv([add]).reset(), EnvError, "has no tasks: write draw_task"),
        (lambda: SumEnv(max_turns=0), SettingError, "max_turns=0: must be an integer from 1"),
        (lambda: SumEnv(tool_format="hermès"), SettingError, "Did you mean 'hermes'"),
        (lambda: ToolEnv([Tool("f", "", {"type": "int"}, print)]), SettingError, "tool 'f': its `parameters`"),
    ],
)
def test_an_impossible_environment_is_refused(make, error, complaint) -> None:
    with pytest.raises(error, match=complaint):
        make()


def test_a_single_tool_needs_no_list() -> None:
    (step,) = play(ToolEnv(add, [("q", "a")]), call("add", {"a": 1}))
    assert step[0] == "2"


class Notes:
    """Tools with a state of their own."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @tool
    def write(self, line: str) -> int:
        """Writes a line down."""
        self.lines.append(line)
        return len(self.lines)


class QuietNotes(Notes):
    """Overrides its tool by something that is none."""

    write = None  # type: ignore[assignment]


def test_a_factory_gives_each_episode_tools_with_a_fresh_state() -> None:
    env = ToolEnv(lambda: tools_of(Notes()), [("q", "a")])
    written = call("write", {"line": "x"})
    assert [step[0] for step in play(env, written, written)] == ["1", "2"]
    assert [step[0] for step in play(env, written)] == ["1"]
    assert tools_of(QuietNotes()) == ()


def test_two_environments_share_no_state() -> None:
    first, second = NotesEnv(), NotesEnv()
    written = call("write", {"line": "x"})
    assert [play(env, written)[0][0] for env in (first, second)] == ["1", "1"]


@pytest.mark.parametrize("make", [SumEnv, NotesEnv])
def test_an_environment_pickles_in_the_middle_of_an_episode(make) -> None:
    env = make()
    actions = call("add", {"a": 1}), call("write", {"line": "x"}), "4"
    env.reset(seed=1)
    env.step(actions[1])
    copy = pickle.loads(pickle.dumps(env))
    assert [copy.step(action) for action in actions] == [env.step(action) for action in actions]


def test_a_tool_that_blocks_asks_for_a_thread() -> None:
    @tool(blocking=True)
    def nap() -> str:
        """Sleeps."""
        return "ok"

    assert ToolEnv([nap], [("q", "a")]).metadata["blocking"] is True
    assert ToolEnv([add], [("q", "a")]).metadata["blocking"] is False


@pytest.mark.parametrize(
    "action", ["", "\0", "x" * 10_000, "\ud800", "<|im_end|>", "[TOOL_CALLS]", "<tool_call>" * 500]
)
def test_hostile_text_earns_nothing_and_raises_nothing(action) -> None:
    (step,) = play(SumEnv(), action)
    assert step[1] == 0.0
    assert len(step[0]) < 300
    json.dumps(step[4])


def test_a_recursive_schema_is_checked_to_the_depth_a_call_may_have() -> None:
    schema = {
        "type": "object",
        "properties": {"inner": {"$ref": "#"}},
        "additionalProperties": False,
    }
    env = ToolEnv(Tool("nest", "Nests.", schema, lambda **arguments: "ok"), [("q", "a")])
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"inner": deep}
    fine, unexpected = play(env, call("nest", deep), call("nest", {"inner": {"outer": 1}}))
    assert fine[0] == "ok"
    assert "error: nest: inner: " in unexpected[0]


@pytest.mark.parametrize("make", [SumEnv, NotesEnv, functools.partial(ToolEnv, add, [("1?", 1), ("2?", 2)])])
def test_tool_environments_keep_the_contract(make) -> None:
    report = check_language_env(make)
    assert "a task can be asked for by its id" in report.passed
    assert "it survives being copied to another process, or is replayed there" in report.passed


@pytest.mark.parametrize("what", RAISED)
def test_whatever_a_tool_raises_is_told_to_the_policy(what) -> None:
    @tool
    def broken() -> str:
        """Breaks."""
        raise RAISED[what][0]

    (step,) = play(ToolEnv([broken], [("q", "a")]), call("broken", {}))
    assert step[0].startswith(f"error: broken: {RAISED[what][1]}")
    assert (len(step[0]) < 300, step[4]["valid_action"]) == (True, False)


@pytest.mark.parametrize("what", RAISED)
def test_whatever_verify_raises_is_an_error_of_the_environment(what) -> None:
    def verify(task: Task, answer: str) -> float:
        raise RAISED[what][0]

    with pytest.raises(EnvError, match=re.escape(f"verify() raised {RAISED[what][1]}")):
        play(ToolEnv([add], [("q", "a")], verify), "answer")


def test_ctrl_c_is_not_told_to_the_policy() -> None:
    @tool
    def stop() -> str:
        """Stops."""
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(ToolEnv([stop], [("q", "a")]), call("stop", {}))


@pytest.mark.parametrize("tool_format", ["auto", "llama_json", "mistral"])
@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "Ann", "parameters": {"age": 5}}',
        '{"name": "Ann", "arguments": {}}',
        '{"type": "function", "name": "f", "parameters": {}}',
        '{"type": "function", "function": {"name": "f", "arguments": {}}}',
        '[{"name": "Ann", "arguments": {}}]',
        '[{"name": "Ann"}]',
        '{"name": "add"}',
        '{"sum": 3}',
        "{1, 2}",
        "[{1, 2}]",
        '{"name": 5, "parameters": {}}',
        'f{"a": 1}',
    ],
)
def test_an_answer_in_json_is_no_call_to_a_tool_that_was_not_declared(tool_format, answer) -> None:
    env = ToolEnv([add], [("q", answer)], tool_format=tool_format)
    (step,) = play(env, answer)
    assert step[1:3] == (1.0, True)


@pytest.mark.parametrize(
    "written",
    [
        '{"type": "function", "name": "add", "parameters": {"a": 1}}',
        '{"type": "function", "function": {"name": "add", "parameters": {"a": 1}}}',
        '{"type": "function", "function": "add", "parameters": {"a": 1}}',
        '{"parameters": {"a": 1}, "name": "add"}',
        '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 1}}',
        '[{"type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1}"}}]',
    ],
)
def test_llama_s_other_ways_to_write_a_call_are_calls(written) -> None:
    (step,) = play(SumEnv(), written)
    assert step[0] == "2"


def test_a_marked_call_to_an_unknown_tool_is_a_mistake_and_no_answer() -> None:
    for marked in ('<|python_tag|>{"name": "ad", "parameters": {}}', '[TOOL_CALLS][{"name": "ad", "arguments": {}}]'):
        (step,) = play(SumEnv(), marked)
        assert step[0] == "error: no tool 'ad'. Did you mean 'add'?"
