"""Quest: explore rooms that are seen from inside only, find coloured keys for locked doors, and take the treasure.

Rooms are squares of a chessboard, so north of c4 is c5 and east of it is d4; only some neighbours are connected, and
without a loop. Every door has a colour of its own, its key lies behind the door before it, and the treasure behind the
last: each lock must be passed, in an order that only exploring tells.

Observation  str, what is in the room now: exits, locked doors, keys and treasure, e.g. "c4: north, west, red door
             south, blue key"; after an invalid action the same, after a hint; at the end "you have the treasure"
Action       str, "go north", "take red key", "open south" (the door, with its key) or "take treasure"; spaces around
             and between words do not matter
Reward       1.0 for taking the treasure, else 0.0; with `milestones` that much of it is paid on the way, in equal parts
             for every key taken and every door opened, and the rest for the treasure
Ends         terminated when it is taken; truncated after (locks + 2) * (rooms + 2) + 4 turns
Info         {"task_id": str, "treasure": str} from reset, the latter a room; from step {"valid_action": bool,
             "obs_role": "user"}, and at the end {"success": bool}, with {"truncated_by": "turns"} when truncated
Settings     rooms: 2 to 40; locks: 0 to 8 and fewer than rooms; milestones: 0.0 (default) to 1.0
Expert       knows only what it has seen: walks depth-first through what is open, then to the nearest door it has a key
             for. That takes at most 2 * (rooms - 1) moves, rooms - 1 more for each lock, two turns for each lock (take,
             open) and one for the treasure, which is less than the limit
Ladder       rooms/locks      limit   expert: return, turns avg (max)   random valid   random text
             4/0                 16   1.00, 4 (6)                       0.70           0.00
             8/1 (default)       34   1.00, 12 (20)                     0.20           0.00
             12/3                74   1.00, 26 (38)                     0.04           0.00
             20/5               158   1.00, 53 (79)                     0.00           0.00
             40/8               424   1.00, 116 (159)                   0.00           0.00
Versions     v0
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gspo_rllib.envs.tasks import checked_integer, numbered_task
from gspo_rllib.envs.text_task import TextTaskEnv
from gspo_rllib.errors import SettingError
from gspo_rllib.types import ChatSpec

COLOURS = ("red", "blue", "green", "gold", "pink", "grey", "black", "white")
STEPS = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
MOST_ROOMS = 40

_OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
_COLUMNS = "abcdefgh"
# How often the next room is built onto the newest one: more makes longer corridors, fewer make more branches.
_CORRIDOR = 0.5
_LONGEST_ACTION = 40
_ACTION = re.compile(r"(go|open) (north|east|south|west)|take (?:([a-z]+) key|(treasure))")
_ITEM = re.compile(r"(?:([a-z]+) door )?(north|east|south|west)|([a-z]+) key|(treasure)")


@dataclass(slots=True)
class Room:
    """What is in a room.

    Attributes:
        exits: Directions one can go.
        doors: Directions behind a locked door, and its colour.
        keys: Colours of the keys that lie here.
        treasure: Whether the treasure does.
    """

    exits: list[str] = field(default_factory=list)
    doors: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    treasure: bool = False


def neighbour(square: str, direction: str) -> str:
    """The square next to one, which may be off the board.

    Example:
        >>> neighbour("c4", "north"), neighbour("c4", "west")
        ('c5', 'b4')
    """
    across, up = STEPS[direction]
    return f"{chr(ord(square[0]) + across)}{int(square[1:]) + up}"


def describe(square: str, room: Room) -> str:
    """What is seen in a room.

    Example:
        >>> describe("c4", Room(exits=["north", "west"], doors={"south": "red"}, keys=["blue"]))
        'c4: north, west, red door south, blue key'
        >>> describe("a1", Room(exits=["east"], treasure=True))
        'a1: east, treasure'
    """
    items = [direction for direction in STEPS if direction in room.exits]
    items += [f"{room.doors[direction]} door {direction}" for direction in STEPS if direction in room.doors]
    items += [f"{colour} key" for colour in room.keys]
    items += ["treasure"] * room.treasure
    return f"{square}: {', '.join(items)}"


def look(text: str) -> tuple[str, Room]:
    """The room that a text describes: the inverse of ``describe``; a hint before it is left out.

    Example:
        >>> look("no red key here; c4: north, red door south, blue key")
        ('c4', Room(exits=['north'], doors={'south': 'red'}, keys=['blue'], treasure=False))
    """
    square, _, items = text.rpartition("; ")[2].partition(": ")
    room = Room()
    for item in items.split(", "):
        if parsed := _ITEM.fullmatch(item):
            colour, direction, key, treasure = parsed.groups()
            if key:
                room.keys.append(key)
            elif treasure:
                room.treasure = True
            elif colour:
                room.doors[direction] = colour
            else:
                room.exits.append(direction)
    return square, room


def reachable(world: dict[str, Room], start: str) -> set[str]:
    """The rooms one can get to by taking every key found on the way: a task is solvable if the treasure's is one.

    Example:
        >>> locked = {"a1": Room(doors={"east": "red"}), "b1": Room(doors={"west": "red"}, treasure=True)}
        >>> reachable(locked, "a1")
        {'a1'}
        >>> locked["a1"].keys.append("red")
        >>> sorted(reachable(locked, "a1"))
        ['a1', 'b1']
    """
    found: set[str] = set()
    keys: set[str] = set()
    shut: list[tuple[str, str]] = []
    frontier = [start]
    while frontier:
        square = frontier.pop()
        if square in found:
            continue
        found.add(square)
        room = world[square]
        keys.update(room.keys)
        shut += [(colour, neighbour(square, direction)) for direction, colour in room.doors.items()]
        frontier += [neighbour(square, direction) for direction in room.exits]
        frontier += [behind for colour, behind in shut if colour in keys]
    return found


def build_world(task: int, rooms: int, locks: int) -> tuple[str, dict[str, Room]]:
    """The start and the rooms of a task.

    Args:
        task: The task's number.
        rooms: How many rooms.
        locks: How many of the passages between them are locked.

    Example:
        >>> start, world = build_world(0, rooms=12, locks=3)
        >>> len(world), len(reachable(world, start)), sum(len(room.doors) for room in world.values())
        (12, 12, 6)
        >>> [square for square, room in world.items() if room.treasure]
        ['e5']
    """
    # Python's own generator draws single numbers ten times as fast as NumPy's.
    draw = random.Random(task)
    start = f"{draw.choice(_COLUMNS)}{draw.randint(1, len(_COLUMNS))}"
    world = {start: Room()}
    entrances: dict[str, tuple[str, str]] = {}
    newest = start
    while len(world) < rooms:
        square = newest if draw.random() < _CORRIDOR else draw.choice(list(world))
        direction = draw.choice(list(STEPS))
        built = neighbour(square, direction)
        if built in world or built[0] not in _COLUMNS or not 1 <= int(built[1:]) <= len(_COLUMNS):
            newest = draw.choice(list(world))
            continue
        world[built] = Room()
        entrances[built] = (square, direction)
        newest = built
    colours = draw.sample(COLOURS, locks)
    locked = dict(zip(draw.sample(list(entrances), locks), colours, strict=True))
    for built, (square, direction) in entrances.items():
        if built in locked:
            world[square].doors[direction] = world[built].doors[_OPPOSITE[direction]] = locked[built]
        else:
            world[square].exits.append(direction)
            world[built].exits.append(_OPPOSITE[direction])
    _place_keys(world, start, entrances, locked, draw)
    return start, world


def _place_keys(
    world: dict[str, Room],
    start: str,
    entrances: dict[str, tuple[str, str]],
    locked: dict[str, str],
    draw: random.Random,
) -> None:
    """Opens the doors in a random order, each with a key that lies behind the door before it; the treasure is last.

    So every lock has to be passed, in an order that only exploring tells.
    """
    inside = {start}
    unlocked = start
    while True:
        newest = [unlocked]
        # A room is listed after the room it was built onto, so one pass finds all rooms that are now within reach.
        for square, (before, _) in entrances.items():
            if square not in inside and before in inside and square not in locked:
                inside.add(square)
                newest.append(square)
        doors = [square for square in locked if square not in inside and entrances[square][0] in inside]
        if not doors:
            # The room that was built last is usually far from the start.
            world[newest[-1]].treasure = True
            return
        unlocked = draw.choice(doors)
        world[draw.choice(newest)].keys.append(locked[unlocked])
        inside.add(unlocked)


class QuestEnv(TextTaskEnv):
    """See the card at the top of this file.

    Args:
        rooms: How many rooms, 2 to 40.
        locks: How many locked doors, 0 to 8 and fewer than ``rooms``.
        milestones: Share of the return that keys and doors pay, 0 to 1; 0 without locks.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: A setting is out of range.
    """

    chat = ChatSpec(
        system_prompt="Find and take the treasure. Rooms are named like squares of a chessboard; you see what is in "
        "yours. Reply with one action: go north, take red key, open east (a door, with its key) or take treasure."
    )

    def __init__(self, rooms: int = 8, locks: int = 1, milestones: float = 0.0, render_mode: str | None = None) -> None:
        self.rooms = checked_integer("rooms", rooms, 2, MOST_ROOMS)
        self.locks = checked_integer("locks", locks, 0, len(COLOURS))
        if locks >= rooms:
            raise SettingError(f"locks={locks}: must be fewer than rooms={rooms}, one per passage at most.")
        if isinstance(milestones, bool) or not isinstance(milestones, (int, float)) or not 0.0 <= milestones <= 1.0:
            raise SettingError(f"milestones={milestones!r}: must be a number from 0 to 1.")
        self._milestone = milestones / (2 * locks) if locks else 0.0
        super().__init__(max_turns=(locks + 2) * (rooms + 2) + 4, render_mode=render_mode)
        self._world: dict[str, Room] = {}
        self._square = ""
        self._keys: set[str] = set()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Builds the rooms; the same seed or ``options["task_id"]`` (a number) builds the same ones.

        Raises:
            EnvError: ``options["task_id"]`` is no number of a task.
        """
        super().reset(seed=seed)
        task = numbered_task(options, self.np_random)
        self._square, self._world = build_world(task, self.rooms, self.locks)
        self._keys = set()
        treasure = next(square for square, room in self._world.items() if room.treasure)
        view = describe(self._square, self._world[self._square])
        return self._begin_task(view, {"task_id": str(task), "treasure": treasure})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Does one thing in the room; what cannot be done costs the turn."""
        words = " ".join(action.split()) if len(action) <= _LONGEST_ACTION else ""
        if words == "take treasure" and self._world[self._square].treasure:
            return self._finish("you have the treasure", 1.0 - 2 * self.locks * self._milestone, success=True)
        hint = self._act(words)
        view = describe(self._square, self._world[self._square])
        passed = hint is None and words.startswith(("take ", "open "))
        reward = self._milestone if passed else 0.0
        return self._go_on(f"{hint}; {view}" if hint else view, reward, valid=hint is None)

    def expert(self) -> Callable[[str], str]:
        """A policy that explores and sees only observations; ask for a new one per episode."""
        return _Explorer()

    def random_action(self, rng: np.random.Generator) -> str:
        """Anything that can be done in this room."""
        room = self._world[self._square]
        actions = [f"go {direction}" for direction in room.exits]
        actions += [f"open {direction}" for direction, colour in room.doors.items() if colour in self._keys]
        actions += [f"take {colour} key" for colour in room.keys]
        actions += ["take treasure"] * room.treasure
        return actions[int(rng.integers(len(actions)))]

    def _act(self, words: str) -> str | None:
        """Does what an action says; where that is impossible, says why."""
        action = _ACTION.fullmatch(words)
        if action is None:
            return "not an action such as go north"
        verb, direction, key, _ = action.groups()
        room = self._world[self._square]
        if verb is None:
            if key not in room.keys:
                return "it is not here"
            room.keys.remove(key)
            self._keys.add(key)
            return None
        if verb == "go" and direction in room.exits:
            self._square = neighbour(self._square, direction)
            return None
        if direction not in room.doors:
            return f"no {'exit' if verb == 'go' else 'locked door'} {direction}"
        if verb == "go":
            return "the door is locked"
        if room.doors[direction] not in self._keys:
            return f"you have no {room.doors[direction]} key"
        for square, way in ((self._square, direction), (neighbour(self._square, direction), _OPPOSITE[direction])):
            del self._world[square].doors[way]
            self._world[square].exits.append(way)
        return None


class _Explorer:
    """Depth-first: on a tree, the nearest room that was not entered yet is the one that a depth-first walk enters."""

    def __init__(self) -> None:
        self._seen: dict[str, Room] = {}
        self._keys: set[str] = set()

    def __call__(self, observation: str) -> str:
        square, room = look(observation)
        # A key that is gone from its room has been taken by this policy, as nobody else is in the house.
        self._keys.update(set(self._seen.get(square, room).keys) - set(room.keys))
        self._seen[square] = room
        if room.treasure:
            return "take treasure"
        if room.keys:
            return f"take {room.keys[0]} key"
        for direction, colour in room.doors.items():
            if colour in self._keys:
                return f"open {direction}"
        return f"go {self._way(square, self._is_new) or self._way(square, self._is_useful) or 'north'}"

    def _is_new(self, square: str) -> bool:
        return square not in self._seen

    def _is_useful(self, square: str) -> bool:
        room = self._seen[square]
        return room.treasure or bool(room.keys) or any(colour in self._keys for colour in room.doors.values())

    def _way(self, start: str, wanted: Callable[[str], bool]) -> str | None:
        """First direction of the shortest known way to a room that is wanted."""
        queue = deque([(start, "")])
        passed = {start}
        while queue:
            square, first = queue.popleft()
            if first and wanted(square):
                return first
            for direction in self._seen[square].exits if square in self._seen else ():
                beyond = neighbour(square, direction)
                if beyond not in passed:
                    passed.add(beyond)
                    queue.append((beyond, first or direction))
        return None
