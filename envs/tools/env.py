"""Tool environments: a task, functions the policy may call, and a verifier of its answer.

Observation  str, the task's question, then what the called tools returned
Action       str, one or more tool calls (see ``calls`` for the formats), or the answer: a reply without a call
Reward       for an answer what ``verify`` returns, by default 1.0 if it equals the task's, else 0.0; for calls 0.0
Ends         terminated by an answer, right or wrong; truncated after ``max_turns``
Info         {"task_id": str, "answer": the task's} from reset; from step {"valid_action": bool, "obs_role": "tool"},
             and at the end {"success": bool}, with {"truncated_by": "turns"} when truncated

A malformed call, an unknown tool, arguments that do not fit the schema and a tool that raises cost the turn, and the
policy is told. The calls of a turn run one after the other, in the order they were written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from gspo_rllib.envs.tasks import checked_integer, numbered_task
from gspo_rllib.envs.text_task import TextTaskEnv
from gspo_rllib.envs.tools.calls import (
    TOOL_FORMATS,
    ToolCall,
    ToolCallError,
    ToolFormat,
    parse_tool_calls,
    render_tool_call,
    typed,
    without_reasoning,
)
from gspo_rllib.envs.tools.declare import Tool, tools_of
from gspo_rllib.errors import EnvError, GSPOError, SettingError, described, did_you_mean
from gspo_rllib.types import ChatSpec

_MAX_ERROR_CHARS = 200


@dataclass(frozen=True, slots=True)
class Task:
    """What the policy is to do.

    Attributes:
        question: The first observation.
        answer: The right one; JSON-able.

    Example:
        >>> Task("How many letters has 'tool'?", "4").answer
        '4'
    """

    question: str
    answer: Any = None


class ToolEnv(TextTaskEnv):
    """An environment made of tools and tasks; see the top of this file.

    Subclass it and write ``draw_task``, and ``verify`` where equality is not enough; or pass both as arguments. Tools
    with state are ``@tool`` methods of the subclass, whose state ``draw_task`` starts anew, or come from a factory that
    is called for each episode.

    Args:
        tools: Tools beside the ``@tool`` methods of the class; or a function that makes them, called for each episode.
            Where they have a ``close()``, it is called with the environment's, so give them to one environment alone.
        tasks: Tasks, or pairs of question and answer; the ``task_id`` is the index. None for ``draw_task``.
        verify: Reward of an answer, 1.0 for a right one; takes the task and the answer. None for the method.
        system_prompt: What the policy is told first.
        max_turns: Turns after which a trajectory is truncated, 1 to 10,000.
        max_calls_per_turn: Most calls of one turn, 1 to 1,000; of a turn with more, none is run.
        max_result_chars: Length to which the result of a call is cut, 1 to 1,000,000 characters.
        max_tokens_per_turn: Most tokens the policy may write in a turn; None for the run's own limit.
        stop: Strings that end a turn.
        tool_format: How calls are written.
        render_mode: None or ``"ansi"``.

    Attributes:
        obs_role: Role in which results are shown; ``"user"`` for models whose chat template knows no tools.

    Raises:
        SettingError: A setting is out of range, or there is no tool.
    """

    obs_role: ClassVar[str] = "tool"

    def __init__(
        self,
        tools: Sequence[Tool] | Callable[[], Sequence[Tool]] = (),
        tasks: Sequence[Task | tuple[str, Any]] | None = None,
        verify: Callable[[Task, str], float] | None = None,
        *,
        system_prompt: str | None = None,
        max_turns: int = 10,
        max_calls_per_turn: int = 8,
        max_result_chars: int = 2000,
        max_tokens_per_turn: int | None = None,
        stop: Sequence[str] = (),
        tool_format: ToolFormat = "auto",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(checked_integer("max_turns", max_turns, 1, 10_000), render_mode)
        self.max_calls_per_turn = checked_integer("max_calls_per_turn", max_calls_per_turn, 1, 1000)
        self.max_result_chars = checked_integer("max_result_chars", max_result_chars, 1, 1_000_000)
        if tool_format not in TOOL_FORMATS:
            raise SettingError(f"tool_format={tool_format!r}: unknown. {did_you_mean(str(tool_format), TOOL_FORMATS)}")
        self.tool_format: ToolFormat = tool_format
        self._tasks = None if tasks is None else [_checked_task(task, "tasks") for task in tasks]
        if self._tasks == []:
            raise SettingError("tasks is empty; give at least one, or None to use draw_task().")
        self._verify = verify
        self._framing = ChatSpec(
            system_prompt=system_prompt,
            tool_syntax=_syntax(tool_format),
            stop=tuple(stop),
            max_turns=max_turns,
            max_tokens_per_turn=max_tokens_per_turn,
        )
        self._make_tools = tools if callable(tools) and not isinstance(tools, Tool) else None
        self._given: Any = ()
        self._take_tools(self._make_tools() if self._make_tools else tools)
        self._task = Task("")

    def draw_task(self, random: np.random.Generator) -> Task:
        """Makes a task; called once per episode, so state that tools keep on the environment starts anew here.

        Args:
            random: The only source of randomness; the same state of it makes the same task.
        """
        raise EnvError(f"{type(self).__name__} has no tasks: write draw_task(), or pass `tasks`.")

    def verify(self, task: Task, answer: str) -> float:
        """The reward of an answer: 1.0 for a right one, less for any other.

        Args:
            task: What ``draw_task`` returned.
            answer: The reply, without its reasoning and the spaces around it.
        """
        return float(answer == str(task.answer))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draws a task; the same seed or ``options["task_id"]`` (a number) gives the same one.

        Raises:
            EnvError: ``options["task_id"]`` is no number of a task, or there are no tasks.
        """
        super().reset(seed=seed)
        if self._make_tools is not None:
            self._take_tools(self._make_tools())
        if self._tasks is not None:
            number = numbered_task(options, self.np_random, len(self._tasks))
            self._task = self._tasks[number]
        else:
            number = numbered_task(options, self.np_random)
            self._task = _checked_task(
                self.draw_task(np.random.default_rng(number)), f"{type(self).__name__}.draw_task"
            )
        return self._begin_task(self._task.question, {"task_id": str(number), "answer": self._task.answer})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Runs the calls of a reply, or verifies it as the answer; any text is a legal action.

        Raises:
            EnvError: The verifier is broken, or a tool said that its environment is.
        """
        calls = parse_tool_calls(action, self.tool_format, self._tools)
        if not calls:
            reward = self._reward(without_reasoning(action))
            success = reward >= self.optimal_return
            return self._finish("right" if success else "wrong", reward, success)
        told, went_well = self._run(calls)
        return self._go_on(told, valid=went_well)

    def close(self) -> None:
        """Closes the tools that can be closed; harmless when repeated."""
        close = getattr(self._given, "close", None)
        if close is not None:
            close()

    def _take_tools(self, given: Any) -> None:
        self.close()
        self._given = (given,) if isinstance(given, Tool) else given
        tools = [*self._given, *tools_of(self)]
        if not tools or not all(isinstance(one, Tool) for one in tools):
            raise SettingError(
                f"tools={str(self._given)[:120]}: must be at least one tool, made by @tool from a function; or write "
                f"@tool methods in {type(self).__name__}."
            )
        self._tools = {one.name: one for one in tools}
        self.chat = replace(self._framing, tools=tuple(one.declaration() for one in tools))
        about = {name: getattr(given, name) for name in ("deterministic", "picklable") if hasattr(given, name)}
        if about or any(one.blocking for one in tools):
            blocking = self.metadata["blocking"] or any(one.blocking for one in tools)
            self.metadata = {**self.metadata, **about, "blocking": blocking}

    def _reward(self, answer: str) -> float:
        verify = self._verify or self.verify
        try:
            reward = float(verify(self._task, answer))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise EnvError(
                f"{type(self).__name__}: verify() raised {described(error, 300)}. It must return a number for any "
                "answer."
            ) from error
        if not math.isfinite(reward):
            raise EnvError(f"{type(self).__name__}: verify() returned {reward}; it must return a finite number.")
        return reward

    def _run(self, calls: list[ToolCall] | ToolCallError) -> tuple[str, bool]:
        """What the policy is told of its calls, and whether all of them went well."""
        if isinstance(calls, ToolCallError):
            return f"error: {calls.message}", False
        if len(calls) > self.max_calls_per_turn:
            return f"error: {len(calls)} calls in one turn; at most {self.max_calls_per_turn} are allowed", False
        results = [self._call(call) for call in calls]
        texts = [
            text if len(calls) == 1 else f"{call.name}: {text}" for call, (text, _) in zip(calls, results, strict=True)
        ]
        return "\n".join(texts), all(well for _, well in results)

    def _call(self, call: ToolCall) -> tuple[str, bool]:
        called = self._tools.get(call.name)
        if called is None:
            return f"error: no tool {call.name!r}. {did_you_mean(call.name, self._tools)}", False
        arguments = typed(call, called.parameters)
        fault = _argument_fault(arguments, called.parameters)
        if fault:
            return f"error: {call.name}: {fault}", False
        try:
            return _cut(_as_text(called(**arguments)), self.max_result_chars), True
        except (GSPOError, KeyboardInterrupt):
            raise  # the first says that the environment itself is broken, e.g. its server is gone
        except BaseException as error:  # noqa: BLE001, whatever a tool raises is told to the policy
            return f"error: {call.name}: {described(error, _MAX_ERROR_CHARS)}", False


def _checked_task(task: Any, where: str) -> Task:
    made = Task(*task) if isinstance(task, tuple) and len(task) == 2 else task
    if not isinstance(made, Task) or not isinstance(made.question, str):
        raise EnvError(f"{where}: got {str(task)[:120]!r}; must be Task(question: str, answer), or the pair of both.")
    return made


def _argument_fault(arguments: dict[str, Any], parameters: Mapping[str, Any]) -> str | None:
    # Imported here because an environment without tools needs none of it.
    import referencing
    from jsonschema import Draft202012Validator

    # An empty registry: a reference to elsewhere is never fetched.
    error = next(Draft202012Validator(parameters, registry=referencing.Registry()).iter_errors(arguments), None)
    if error is None:
        return None
    place = ".".join(str(part) for part in error.absolute_path)
    return f"{place}{': ' if place else ''}{error.message}"[:_MAX_ERROR_CHARS]


def _as_text(result: Any) -> str:
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most} more characters)"


def _syntax(tool_format: ToolFormat) -> str:
    written = render_tool_call("NAME", {"ARGUMENT": "VALUE"}, tool_format)
    return f"To call a tool, write: {written}"
