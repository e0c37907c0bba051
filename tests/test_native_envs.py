"""What each native environment does: rules, grading, difficulty; the contract they share has its own file."""

from __future__ import annotations

import itertools
import json
from typing import Any

import gymnasium
import numpy as np
import pytest

from benchmarks.envs import main as measure_envs
from gspo_rllib.envs.arithmetic import ArithmeticEnv, last_integer
from gspo_rllib.envs.bisection import BisectionEnv
from gspo_rllib.envs.calculator import CalculatorEnv
from gspo_rllib.envs.mastermind import MastermindEnv, feedback
from gspo_rllib.envs.quest import COLOURS, QuestEnv, build_world, describe, look, neighbour, reachable
from gspo_rllib.envs.recall import RecallEnv, draw_prompts
from gspo_rllib.errors import EnvError, SettingError

TINY = [
    ArithmeticEnv(digits=1),
    BisectionEnv(),
    CalculatorEnv(operations=3),
    MastermindEnv(),
    QuestEnv(rooms=4, locks=0),
    QuestEnv(),
    RecallEnv(turns=8, keys=2, values=4),
]


def play(env: Any, policy: Any, **reset: Any) -> tuple[float, list[Any]]:
    observation, _ = env.reset(**reset)
    steps: list[Any] = []
    while not steps or not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(policy(observation)))
        observation = steps[-1][0]
    return sum(step[1] for step in steps), steps


def named(env: Any) -> str:
    return type(env).__name__


@pytest.mark.parametrize("env", TINY, ids=named)
def test_a_tiny_preset_fits_a_short_context(env) -> None:
    rng = np.random.default_rng(0)
    for seed in range(50):
        for policy in (env.expert(), lambda _: env.random_action(rng)):
            told, _ = env.reset(seed=seed)
            over = False
            while not over:
                assert len(told.encode()) <= 60
                action = policy(told)
                assert len(action.encode()) <= 20
                told, _, terminated, truncated, _ = env.step(action)
                over = terminated or truncated


@pytest.mark.parametrize("env", TINY, ids=named)
def test_an_expert_knows_nothing_but_what_it_is_shown(env) -> None:
    stranger = type(env)()
    for seed in range(20):
        assert play(env, stranger.expert(), seed=seed)[0] == 1.0


@pytest.mark.parametrize("env", [MastermindEnv(tries=30), QuestEnv(rooms=12, locks=3)], ids=named)
def test_an_expert_goes_on_from_actions_that_were_not_its_own(env) -> None:
    draw = np.random.default_rng(0)
    for seed in range(30):
        expert, other = env.expert(), seed % 2

        def careless(observation: str, expert: Any = expert, other: int = other) -> str:
            action = expert(observation)
            if draw.random() > 0.1:
                return action
            return env.random_action(draw) if other else "?"

        assert play(env, careless, seed=seed)[0] == 1.0, "there are turns to spare"


def test_the_tasks_of_a_seed_never_change() -> None:
    expressions = [CalculatorEnv().reset(seed=seed)[0] for seed in range(4)]
    assert expressions == ["8-5+3+1+2*7-5", "5-4*2+8*3+8-3", "8+1+4*4+4-8*2", "8+2+2*8-1+2+2"]
    hidden = [BisectionEnv().reset(seed=seed)[1]["answer"] for seed in range(8)]
    assert hidden == [14, 8, 14, 13, 12, 11, 8, 16]
    assert [MastermindEnv().reset(seed=seed)[1]["task_id"] for seed in range(3)] == ["433", "234", "421"]
    for env, first, second in (
        (ArithmeticEnv(), ("86 + 67 = ?", "86+67"), ("52 - 56 = ?", "52-56")),
        (RecallEnv(), ("k3=v10", "1826701615"), ("k2=v8", "1016164991")),
        (QuestEnv(), ("c6: south, west, black key", "1826701615"), ("b8: east, west", "1016164991")),
    ):
        starts = [env.reset(seed=seed) for seed in range(2)]
        assert [(told, info["task_id"]) for told, info in starts] == [first, second]


@pytest.mark.parametrize("task_id", ["2147483648", "99999999999", "-1", "+1", "01", "1.0", " 1", "\u0661"])
def test_a_number_that_no_task_has_is_refused(task_id) -> None:
    for env in (RecallEnv(), QuestEnv()):
        assert env.reset(options={"task_id": "2147483647"})[1]["task_id"] == "2147483647"
        with pytest.raises(EnvError, match="a number from '0' to '2147483647'"):
            env.reset(options={"task_id": task_id})


def test_a_wrong_calculator_call_is_worked_out_and_spoils_the_answer() -> None:
    env = CalculatorEnv(operations=2)
    observation, info = env.reset(seed=0)
    head = env.expert()(observation)
    rest = observation.removeprefix(head)
    left = int(head[0])
    assert env.step("50 + 7")[0] == f"57{rest}" != f"{left}{rest}"
    total = float(env.step(f"answer {info['answer']}")[1])
    assert total == 1.0, "the answer itself is what counts, however it was found"


def test_a_calculator_call_that_leaves_the_display_is_explained_and_changes_nothing() -> None:
    env = CalculatorEnv(operations=2)
    expression, _ = env.reset(seed=0)
    observation, reward, terminated, _, info = env.step("99*99")
    assert observation.endswith(f": {expression}")
    assert (reward, terminated, info["valid_action"]) == (0.0, False, False)
    assert env.expert()(observation) == env.expert()(expression)


@pytest.mark.parametrize(
    "task_id", ["3+4", "3+4*2-5+1", "3+4*2/5", "9*9*9+1", "1-2+5+1", " 3+4*2-5", "3+4*2-5\n", "0+4*2-5", "33+4*2-5"]
)
def test_an_expression_that_is_no_task_is_refused(task_id) -> None:
    env = CalculatorEnv(operations=3)
    assert env.reset(options={"task_id": "3+4*2-5"}) == ("3+4*2-5", {"task_id": "3+4*2-5", "answer": 9})
    with pytest.raises(EnvError, match="an expression of one-digit numbers and 3 of"):
        env.reset(options={"task_id": task_id})


@pytest.mark.parametrize("task_id", ["0", "17", "05", "5 ", "10000", "\u0665"])
def test_a_number_out_of_the_range_is_no_task(task_id) -> None:
    with pytest.raises(EnvError, match="a number from '1' to '16'"):
        BisectionEnv().reset(options={"task_id": task_id})


@pytest.mark.parametrize(
    ("code", "guess", "black", "white"),
    [
        ("1234", "1234", 4, 0),
        ("1234", "4321", 0, 4),
        ("1122", "1221", 2, 2),
        ("1112", "2111", 2, 2),
        ("1123", "1111", 2, 0),
        ("1111", "1123", 2, 0),
        ("1233", "3312", 0, 4),
        ("1233", "3331", 1, 2),
        ("1223", "2242", 1, 1),
        ("1234", "5656", 0, 0),
        ("11", "12", 1, 0),
    ],
)
def test_each_symbol_of_the_code_is_counted_once(code, guess, black, white) -> None:
    assert feedback(code, guess) == (black, white)


def test_feedback_is_the_same_with_code_and_guess_exchanged() -> None:
    codes = ["".join(code) for code in itertools.product("123", repeat=4)]
    for code, guess in itertools.product(codes, codes):
        black, white = feedback(code, guess)
        assert (black, white) == feedback(guess, code)
        assert 0 <= black + white <= 4 and (black, white) != (3, 1)
        assert (black == 4) == (code == guess)


@pytest.mark.parametrize(("settings", "most"), [({}, 5), ({"positions": 4, "colours": 6, "tries": 8}, 7)])
def test_mastermind_s_expert_finds_every_code(settings, most) -> None:
    env = MastermindEnv(**settings)
    codes = ["".join(code) for code in itertools.product("123456"[: env.colours], repeat=env.positions)]
    turns = []
    for code in codes:
        total, steps = play(env, env.expert(), options={"task_id": code})
        assert total == 1.0
        turns.append(len(steps))
    assert max(turns) == most


def test_a_guess_is_read_without_its_spaces_and_scored_with_it() -> None:
    env = MastermindEnv(positions=4, colours=6)
    env.reset(options={"task_id": "1123"})
    assert env.step(" 1 2 1 3 ")[0] == "1213: 2 black, 2 white"
    for wrong in ("123", "11234", "1127", "112\u0663", "code 1123"):
        observation, reward, *_, info = env.step(wrong)
        assert (observation, reward, info["valid_action"]) == ("not a code of 4 symbols from 123456", 0.0, False)
    assert env.max_turns == 6, "and all of those were tries"


def test_more_codes_than_the_expert_can_think_about_are_refused() -> None:
    with pytest.raises(SettingError, match="at most 20736"):
        MastermindEnv(positions=6, colours=6)
    with pytest.raises(EnvError, match="a code of 3 symbols from 1234"):
        MastermindEnv().reset(options={"task_id": "115"})


def test_a_fact_that_is_told_again_has_a_new_value_and_only_that_one_counts() -> None:
    prompts = ["k1=v2", "k1?", "k2=v5", "k1=v5", "k2=v2", "k2?"]
    env = RecallEnv(turns=6, keys=2, values=9)
    for last, total in (("v2", 1.0), ("v5", 0.5)):
        told = [env.reset(options={"task_id": "2"})[0]]
        rewards = []
        for reply in ("ok", "v2", "ok", "ok", "ok", last):
            observation, reward, terminated, truncated, info = env.step(reply)
            told.append(observation)
            rewards.append(reward)
        assert told == [*prompts, "done"]
        assert rewards == [0.0, 0.5, 0.0, 0.0, 0.0, total - 0.5]
        assert (terminated, truncated, info["success"]) == (True, False, total == 1.0)


@pytest.mark.parametrize(
    ("turns", "keys", "values"), [(2, 1, 2), (50, 8, 10), (200, 20, 100), (200, 1, 2), (9, 100, 2)]
)
def test_what_is_asked_was_told_and_what_is_told_is_new(turns, keys, values) -> None:
    asked = 0
    for task in range(100):
        prompts = draw_prompts(task, turns, keys, values)
        facts: dict[str, str] = {}
        assert len(prompts) == turns and "=" in prompts[0] and prompts[-1].endswith("?")
        for prompt in prompts:
            key, told, value = prompt.rstrip("?").partition("=")
            assert 1 <= int(key[1:]) <= keys
            if told:
                assert facts.get(key) != value and 1 <= int(value[1:]) <= values
                facts[key] = value
            else:
                assert key in facts
                asked += 1
    assert 0.3 < asked / (100 * turns) < 0.7


def test_shares_sum_to_one_exactly_when_all_are_right_and_to_less_when_one_is_wrong() -> None:
    env = RecallEnv(turns=200, keys=20, values=100)
    for seed in range(50):
        answers = env.reset(seed=seed)[1]["answers"]
        total, steps = play(env, env.expert(), seed=seed)
        assert total == 1.0 and len(steps) == 200
        assert sum(step[1] > 0 for step in steps) == len(answers)
        expert, wrong = env.expert(), iter(["v1" if answers[0] != "v1" else "v2"])
        total, steps = play(env, lambda told, e=expert, w=wrong: r if (r := e(told)) == "ok" else next(w, r), seed=seed)
        assert total == pytest.approx(1 - 1 / len(answers)) and total < 1.0
        assert steps[-1][2] and steps[-1][4]["success"] is False


def test_an_invalid_reply_costs_a_turn_and_the_same_is_said_again() -> None:
    env = RecallEnv(turns=6, keys=2, values=9)
    env.reset(options={"task_id": "2"})
    assert env.step("v2")[0] == "reply ok to a fact; k1=v2"
    assert env.step(" ok\n")[0] == "k1?"
    for reply in ("ok", "v10", "v0", "v02", "2"):
        observation, reward, terminated, truncated, info = env.step(reply)
        assert observation == "not a value such as v1; k1?"
        assert (reward, terminated, info["valid_action"]) == (0.0, False, False)
        if truncated:
            break
    assert (reply, info["truncated_by"], info["success"]) == ("v02", "turns", False)


def walk(env: QuestEnv, *actions: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
    for action in actions:
        last = env.step(action)
    return last


def test_a_locked_door_stays_locked_without_its_key() -> None:
    env = QuestEnv(rooms=4, locks=1)
    assert env.reset(options={"task_id": "5"})[0] == "e6: north, south, white door west"
    for action, hint in (
        ("go west", "the door is locked"),
        ("open west", "you have no white key"),
        ("take white key", "it is not here"),
        ("take treasure", "it is not here"),
        ("go east", "no exit east"),
        ("open north", "no locked door north"),
        ("GO NORTH", "not an action such as go north"),
    ):
        observation, reward, terminated, _, info = env.step(action)
        assert observation == f"{hint}; e6: north, south, white door west"
        assert (reward, terminated, info["valid_action"]) == (0.0, False, False)
    assert env.step("go south")[0] == "e5: north, white key"


def test_with_the_key_the_door_opens_and_the_treasure_is_behind() -> None:
    env = QuestEnv(rooms=4, locks=1)
    env.reset(options={"task_id": "5"})
    assert walk(env, "go south", " take  white key ")[0] == "e5: north"
    assert env.step("take white key")[4]["valid_action"] is False, "it is taken"
    assert walk(env, "go north", "go west")[0].startswith("the door is locked; ")
    assert env.step("open west")[0] == "e6: north, south, west"
    assert env.step("go west")[0] == "d6: east, treasure", "the door is open from the other side as well"
    assert env.step("take treasure")[:4] == ("you have the treasure", 1.0, True, False)


@pytest.mark.parametrize(("rooms", "locks"), [(2, 0), (2, 1), (8, 1), (9, 8), (20, 5), (40, 0), (40, 8)])
def test_every_quest_is_solvable_and_needs_every_key(rooms, locks) -> None:
    for task in range(30):
        start, world = build_world(task, rooms, locks)
        treasure = next(square for square, room in world.items() if room.treasure)
        assert len(world) == rooms and start != treasure
        assert reachable(world, start) == set(world)
        keys = [colour for room in world.values() for colour in room.keys]
        assert len(keys) == locks and set(keys) <= set(COLOURS)
        for square, room in world.items():
            where, seen = look(describe(square, room))
            assert (where, set(seen.exits)) == (square, set(room.exits))
            assert (seen.doors, seen.keys, seen.treasure) == (room.doors, room.keys, room.treasure)
            for direction in (*room.exits, *room.doors):
                back = {"north": "south", "south": "north", "east": "west", "west": "east"}[direction]
                beyond = world[neighbour(square, direction)]
                assert back in beyond.exits if direction in room.exits else beyond.doors[back] == room.doors[direction]
            for colour in list(room.keys):
                room.keys.remove(colour)
                assert treasure not in reachable(world, start)
                room.keys.append(colour)


@pytest.mark.parametrize(("rooms", "locks"), [(2, 0), (2, 1), (9, 8), (40, 0), (40, 8)])
def test_the_explorer_always_arrives_before_the_limit(rooms, locks) -> None:
    env = QuestEnv(rooms=rooms, locks=locks)
    proven = 2 * (rooms - 1) + locks * (rooms - 1) + 2 * locks + 1
    turns = []
    for seed in range(100):
        total, steps = play(env, env.expert(), seed=seed)
        assert total == 1.0
        turns.append(len(steps))
    assert max(turns) <= proven < env.max_turns
    if (rooms, locks) == (40, 8):
        assert np.mean(turns) > 100


def test_there_are_fewer_locks_than_rooms() -> None:
    with pytest.raises(SettingError, match="locks=2: must be fewer than rooms=2"):
        QuestEnv(rooms=2, locks=2)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("42", 42),
        ("17 + 25 = 42", 42),
        ("First 17, then 25: 42.", 42),
        ("42, not 41", 41),
        ("the answer is **-8**", -8),
        ("\u22128", -8),
        ("50-8", 8),
        ("1,234,567 in all", 1_234_567),
        ("3,42", 42),
        ("007", 7),
        ("42.0", None),
        ("about 41.5", None),
        ("41.5, so 42", 42),
        ("1e3", 3),
        ("forty-two", None),
        ("", None),
        ("\u0664\u0662", None),
        ("9" * 5000, None),
        ("42 " + "9" * 5000, 42),
    ],
)
def test_the_last_integer_of_a_reply_counts(reply, answer) -> None:
    assert last_integer(reply) == answer


def test_a_sum_is_graded_by_its_value() -> None:
    env = ArithmeticEnv(operands=3)
    assert env.reset(options={"task_id": "17+25-58"})[0] == "17 + 25 - 58 = ?"
    observation, reward, terminated, truncated, info = env.step("17 + 25 is 42, so -16")
    assert (observation, reward, terminated, truncated) == ("right", 1.0, True, False)
    assert info["parsed"] == -16 and info["success"] is True
    env.reset(options={"task_id": "17+25-58"})
    assert env.step("16")[:4] == ("wrong", 0.0, True, False)
    for task_id in ("17+25", "17+25-5", "17+25-058", "17 + 25 - 58", "17+25*58"):
        with pytest.raises(EnvError, match="3 numbers of exactly 2 digits"):
            env.reset(options={"task_id": task_id})


class NeedsAnExtra(gymnasium.Env[str, str]):
    def __init__(self) -> None:
        raise EnvError("babel is not installed: pip install 'gspo-rllib[babel]'")


def test_the_benchmark_measures_every_setting_and_goes_on_after_one_that_cannot_be_made(
    tmp_path, capsys, monkeypatch
) -> None:
    broken = "gspo_rllib/Babel-v0"
    monkeypatch.setitem(gymnasium.registry, broken, gymnasium.envs.registration.EnvSpec(broken, NeedsAnExtra))
    rows = measure_envs(["--ids", "Babel", "Bisection", "--seeds", "5", "--json", str(tmp_path / "rows.json")])
    printed = capsys.readouterr().out
    assert [row.setting for row in rows] == ["default", "medium", "hard"]
    assert all(row.expert == 1.0 > row.random_valid and row.turns_max <= row.max_turns for row in rows)
    assert printed.count("| Bisection-v0") == 3
    assert "skipped gspo_rllib/Babel-v0 default: EnvError: babel is not installed: pip install" in printed
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 3
    assert measure_envs(["--ids", "no such id"]) == []
    assert "there are: " in capsys.readouterr().out
