"""Shell: search a tree of folders for the file that holds a value, one command per turn.

The tree is full: every folder down to `depth` has `fanout` folders in it, and `files` files. Each file is one line, a
name and a number; one name is asked for. There is neither `find` nor `grep`, so that searching takes turns.

Observation  str, the task at first, e.g. "what is kob? ls, cd, cat, answer"; then what the command prints, e.g.
             "ba/ du/ fi mo" (folders end in /), "kob=37" or "/ba/du"
Action       str, "ls", "ls ba", "cd ba", "cd ..", "pwd", "cat fi" or "answer 37"; paths may be long ("/ba/du/fi")
Reward       1.0 for the right answer, else 0.0
Ends         terminated by an answer, right or wrong; truncated after `max_turns` turns, twice what a search of
             the whole tree takes, plus 2
Info         {"task_id": str, "answer": int, "path": str} from reset, the latter of the file; from step {"valid_action":
             bool, "obs_role": "tool"}, and at the end {"success": bool}, with {"truncated_by": "turns"} when truncated
Settings     depth: 1 to 3; fanout: 1 to 3; files: 1 to 3
Expert       looks into every folder and file, deepest first, until it has read the value
Ladder       depth/fanout/files   turn limit   expert: return, turns (most)   random valid   random text
             1/2/2                30           1.00, 7.7 (13)                0.01           0.00
             2/2/2 (default)      70           1.00, 16 (32)                 0.01           0.00
             2/3/2                130          1.00, 30 (62)                 0.02           0.00
             3/3/2                400          1.00, 104 (196)               0.02           0.00
             3/3/3                480          1.00, 113 (236)               0.01           0.00
Versions     v0
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gspo_rllib.envs.tasks import checked_integer, numbered_task
from gspo_rllib.envs.text_task import TextTaskEnv
from gspo_rllib.types import ChatSpec

Folder = dict[str, Any]
"""Names to folders, or to the text of a file."""

_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aeiou"
_SYLLABLES = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
_COMMAND = re.compile(r"\s*(ls|cd|cat|pwd|answer)(?:\s+([a-z0-9./]{1,64}))?\s*")
_ASKED = re.compile(r"what is ([a-z]+)\?")
_COMPLAINTS = {
    "ls": "ls: no such folder",
    "cd": "cd: no such folder",
    "cat": "cat: no such file",
    "pwd": "pwd: takes no argument",
    "answer": "answer: needs a number, such as answer 37",
}
_LOWEST, _HIGHEST = 10, 99


def folders(depth: int, fanout: int) -> int:
    """How many folders a full tree has, the root among them.

    Example:
        >>> folders(depth=1, fanout=2), folders(depth=3, fanout=3)
        (3, 40)
    """
    return sum(fanout**level for level in range(depth + 1))


def most_turns(depth: int, fanout: int, files: int) -> int:
    """Commands that a search of the whole tree takes: list and read all, enter and leave all folders, answer.

    Example:
        >>> most_turns(depth=1, fanout=1, files=1)
        7
    """
    count = folders(depth, fanout)
    return count * (1 + files) + 2 * (count - 1) + 1


def resolve(here: tuple[str, ...], path: str) -> tuple[str, ...]:
    """The place that a path names, seen from a folder.

    Example:
        >>> resolve(("ba",), "du"), resolve(("ba",), ".."), resolve(("ba",), "/mo/./fi"), resolve((), "..")
        (('ba', 'du'), (), ('mo', 'fi'), ())
    """
    place = [] if path.startswith("/") else list(here)
    for part in path.split("/"):
        if part == "..":
            del place[-1:]
        elif part not in ("", "."):
            place.append(part)
    return tuple(place)


def lookup(root: Folder, place: tuple[str, ...]) -> Folder | str | None:
    """What is at a place: a folder, the text of a file, or nothing.

    Example:
        >>> tree = {"ba": {"fi": "kob=37"}}
        >>> lookup(tree, ("ba", "fi")), lookup(tree, ("ba",)), lookup(tree, ("mo",)), lookup(tree, ("ba", "fi", "x"))
        ('kob=37', {'fi': 'kob=37'}, None, None)
    """
    found: Folder | str | None = root
    for part in place:
        found = found.get(part) if isinstance(found, dict) else None
    return found


def build_tree(task: int, depth: int, fanout: int, files: int) -> tuple[Folder, str]:
    """The tree of a task, and the path of the file that is asked for.

    Args:
        task: The task's number.
        depth: Levels of folders below the root.
        fanout: Folders in every folder that is not on the last level.
        files: Files in every folder.

    Example:
        >>> tree, path = build_tree(task=1, depth=1, fanout=1, files=1)
        >>> tree == build_tree(task=1, depth=1, fanout=1, files=1)[0]
        True
        >>> lookup(tree, resolve((), path)) is not None
        True
    """
    draw = random.Random(task)
    count = folders(depth, fanout) * files
    keys = draw.sample([first + last for first in _SYLLABLES for last in _CONSONANTS], count)
    lines = iter([f"{key}={draw.randint(_LOWEST, _HIGHEST)}" for key in keys])
    paths: list[str] = []

    def fill(level: int, path: str) -> Folder:
        names = draw.sample(_SYLLABLES, (fanout if level < depth else 0) + files)
        folder: Folder = {name: next(lines) for name in names[:files]}
        paths.extend(f"{path}/{name}" for name in folder)
        return folder | {name: fill(level + 1, f"{path}/{name}") for name in names[files:]}

    return fill(0, ""), draw.choice(paths)


class ShellEnv(TextTaskEnv):
    """See the card at the top of this file.

    Args:
        depth: Levels of folders below the root, 1 to 3.
        fanout: Folders in a folder, 1 to 3.
        files: Files in a folder, 1 to 3.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: A setting is out of range.
    """

    obs_role = "tool"
    chat = ChatSpec(
        system_prompt="Find the file that holds the value. Reply with one command alone: ls, cd ba, cd .., cat fi, or "
        "answer 37."
    )

    def __init__(self, depth: int = 2, fanout: int = 2, files: int = 2, render_mode: str | None = None) -> None:
        self.depth = checked_integer("depth", depth, 1, 3)
        self.fanout = checked_integer("fanout", fanout, 1, 3)
        self.files = checked_integer("files", files, 1, 3)
        super().__init__(max_turns=2 * most_turns(depth, fanout, files) + 2, render_mode=render_mode)
        self._root: Folder = {}
        self._here: tuple[str, ...] = ()
        self._answer = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Fills the folders; the same seed or ``options["task_id"]`` (a number) fills them the same.

        Raises:
            EnvError: ``options["task_id"]`` is no number of a task.
        """
        super().reset(seed=seed)
        task = numbered_task(options, self.np_random)
        self._root, path = build_tree(task, self.depth, self.fanout, self.files)
        line = lookup(self._root, resolve((), path))
        assert isinstance(line, str)
        key, _, value = line.partition("=")
        self._here, self._answer = (), int(value)
        asked = f"what is {key}? ls, cd, cat, answer"
        return self._begin_task(asked, {"task_id": str(task), "answer": self._answer, "path": path})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Runs a command; any other text costs the turn."""
        command = _COMMAND.fullmatch(action)
        name, argument = command.groups() if command else ("", None)
        if name == "answer" and argument is not None and argument.isdigit():
            success = argument == str(self._answer)
            return self._finish("right" if success else "wrong", float(success), success)
        printed = self._run(name, argument)
        if printed is None:
            complaint = _COMPLAINTS.get(name, "not a command: ls, cd ba, cat fi, pwd, answer 37")
            return self._go_on(complaint, valid=False)
        return self._go_on(printed)

    def expert(self) -> Callable[[str], str]:
        """A policy that searches all folders and sees only observations; ask for a new one per episode."""
        return _Search()

    def random_action(self, rng: np.random.Generator) -> str:
        """Any command that works here: looking, reading, moving, or answering with any number."""
        here = lookup(self._root, self._here)
        assert isinstance(here, dict)
        moves = [f"cd {name}" if isinstance(entry, dict) else f"cat {name}" for name, entry in here.items()]
        moves += ["ls", "cd ..", f"answer {rng.integers(_LOWEST, _HIGHEST + 1)}"]
        return moves[rng.integers(len(moves))]

    def _run(self, name: str, argument: str | None) -> str | None:
        place = resolve(self._here, argument or ".")
        entry = lookup(self._root, place)
        if name == "pwd" and argument is None:
            return "/" + "/".join(self._here)
        if name == "cat" and isinstance(entry, str):
            return entry
        if not isinstance(entry, dict):
            return None
        if name == "ls":
            return " ".join(sorted(f"{key}/" if isinstance(value, dict) else key for key, value in entry.items()))
        if name == "cd":
            self._here = place
            return "/" + "/".join(place)
        return None


class _Search:
    """Depth first; what it knows is what the commands have printed."""

    def __init__(self) -> None:
        self._key = ""
        self._commands = self._visit()
        self._observation = ""

    def __call__(self, observation: str) -> str:
        self._observation = observation
        if asked := _ASKED.match(observation):
            self._key = asked[1]
        elif observation.startswith(f"{self._key}="):
            return f"answer {observation.partition('=')[2]}"
        return next(self._commands, "pwd")

    def _visit(self) -> Iterator[str]:
        yield "ls"
        names = self._observation.split()
        for name in names:
            if not name.endswith("/"):
                yield f"cat {name}"
        for name in names:
            if name.endswith("/"):
                yield f"cd {name.removesuffix('/')}"
                yield from self._visit()
                yield "cd .."
