"""Quest: locks, keys, and a way that always leads to the treasure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_rllib.envs.quest import COLOURS, QuestEnv, build_world, describe, look, neighbour, reachable
from gspo_rllib.errors import SettingError
from tests.envs.play import play


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


def test_milestones_pay_for_keys_and_doors_and_a_solved_task_returns_one_all_the_same() -> None:
    env = QuestEnv(rooms=8, locks=2, milestones=0.4)
    observation, _ = env.reset(seed=3)
    expert, rewards = env.expert(), {}
    terminated = False
    while not terminated:
        action = expert(observation)
        observation, reward, terminated, _, _ = env.step(action)
        rewards.setdefault(action.split()[0] if action != "take treasure" else action, []).append(reward)
    assert set(rewards.pop("go")) == {0.0}
    assert rewards == {"take": [0.1, 0.1], "open": [0.1, 0.1], "take treasure": [pytest.approx(0.6)]}


def test_what_cannot_be_done_pays_nothing() -> None:
    env = QuestEnv(rooms=8, locks=2, milestones=1.0)
    env.reset(seed=3)
    for action in ("take red key", "open north", "take the key"):
        _, reward, _, _, info = env.step(action)
        assert (reward, info["valid_action"]) == (0.0, False)


@pytest.mark.parametrize("milestones", [-0.1, 1.5, True, "all"])
def test_milestones_are_a_share(milestones: Any) -> None:
    with pytest.raises(SettingError, match=r"milestones=.*must be a number from 0 to 1"):
        QuestEnv(milestones=milestones)
