"""Dataset: questions from a file, answered in one reply or a few, and checked by a verifier.

Observation  str, the question of a row; after a wrong answer, if there are attempts left, "wrong; try again"
Action       str, the reply; see ``verifiers`` for what of it counts as the answer
Reward       what the verifier gives the reply that ends the episode, 0 to 1
Ends         terminated by a reply with the full score, or after the last attempt
Info         {"task_id": str, "answer": str} from reset; from step {"valid_action": True, "obs_role": "user"}, and at
             the end {"success": bool}; {"stated_answer": str} where the reply states one, in a form in which equal
             answers are equal texts; {"reason": str} where the verifier found nothing to judge, or could not
Settings     path: a .jsonl, .json, .csv (each also .gz) or .parquet file, a folder saved by the package `datasets`, or
             "hub:NAME", with split; limit: only the first so many rows; question, answer: columns; verifier: "exact",
             "numeric", "math_verify", "module:function" or a function; prompt: text around the question, with
             {question}; system_prompt; attempts: 1 to 100
Versions     v0

GSM8K's own file is a dataset as it is: its answers end in "#### 42", which "numeric" reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gspo_rllib.envs.dataset_cells import Asked, gold_reader, question_of
from gspo_rllib.envs.dataset_rows import Row, check_rows, load_checked_rows, rows_digest
from gspo_rllib.envs.dataset_rows import load_rows as load_rows
from gspo_rllib.envs.tasks import checked_integer, numbered_task
from gspo_rllib.envs.text_task import TextTaskEnv
from gspo_rllib.envs.verifiers import (
    VERIFIERS,
    Verifier,
    answer_key,
    final_answer,
    find_verifier,
    judge,
    math_verify,
)
from gspo_rllib.errors import SettingError, shown
from gspo_rllib.types import STATED_ANSWER, ChatSpec


class DatasetEnv(TextTaskEnv):
    """See the card at the top of this file.

    Args:
        path: Where the rows are; or give ``rows``.
        rows: The rows themselves, each a mapping.
        split: Which split to read where the dataset has several.
        limit: Only the first so many rows, or all if there are fewer; None for all.
        question: Column of the question: text, a number, or a list of messages (in CSV, as JSON), whose system message
            takes the place of ``system_prompt``, and whose last one must not be the assistant's. Several messages
            of user and assistant are shown as one text, each behind its role.
        answer: Column of the gold answer; an expert replies with what it states. A verifier of your own is given a list
            or a mapping as JSON.
        verifier: Scores a reply.
        prompt: Text around a question; ``{question}`` stands for it.
        system_prompt: What the policy is told before the question; None for nothing.
        attempts: Replies per question.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: A setting is illegal, or the rows have no such column.
        EnvError: The rows cannot be read, a row has no question or answer that can be used, or a package is missing.

    Example:
        >>> env = DatasetEnv(rows=[{"question": "6 * 7?", "answer": "so it is #### 42"}], verifier="numeric")
        >>> env.reset(seed=0)[0], env.step("It must be 42.")[1:3]
        ('6 * 7?', (1.0, True))
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        rows: Sequence[Row] | None = None,
        split: str | None = None,
        limit: int | None = None,
        question: str = "question",
        answer: str = "answer",
        verifier: str | Verifier = "exact",
        prompt: str = "{question}",
        system_prompt: str | None = None,
        attempts: int = 1,
        render_mode: str | None = None,
    ) -> None:
        if (path is None) == (rows is None):
            raise SettingError(f"path={path!r} and rows={'given' if rows else rows}: give exactly one of the two.")
        if path is not None and not isinstance(path, str | os.PathLike):
            raise SettingError(f"path={shown(path)}: must be the path of one file or folder, or 'hub:NAME'.")
        if isinstance(rows, str | Mapping) or hasattr(rows, "iterrows"):
            raise SettingError(
                f"rows is a {type(rows).__name__}; it must be a list of mappings, one for each row, as a DataFrame's "
                "to_dict('records') is."
            )
        if rows is not None and split is not None:
            raise SettingError(f"split={split!r}: rows that are given have no splits. Leave split out.")
        self._verifier = find_verifier(verifier)
        self._read_gold = gold_reader(self._verifier)
        if rows is not None:
            self._rows: Sequence[Row] = list(rows)
            check_rows(self._rows, "rows", question, answer, self._read_gold)
        else:
            self._rows = load_checked_rows(str(path), split, question, answer, self._read_gold)
        self._num_rows = len(self._rows)
        if limit is not None:
            self._num_rows = min(self._num_rows, checked_integer("limit", limit, 1, 2**31))
        check_prompt(prompt, self._rows[0], question)
        if not isinstance(system_prompt, str | None):
            raise SettingError(f"system_prompt={shown(system_prompt)}: must be a text, or None for nothing.")
        self._question, self._answer, self._prompt = question, answer, prompt
        super().__init__(max_turns=checked_integer("attempts", attempts, 1, 100), render_mode=render_mode)
        if self._verifier is math_verify:
            self.metadata = {**self.metadata, "blocking": True}  # a verdict may take seconds, in another process
        self._system_prompt = system_prompt
        self.chat = ChatSpec(system_prompt=system_prompt)
        self._begin(self._rows[0])

    def num_tasks(self) -> int:
        """How many rows are asked about."""
        return self._num_rows

    def tasks_digest(self) -> str:
        """A digest of questions and gold answers; with a verifier of your own, which reads them, of whole rows."""
        columns = [self._question, self._answer] if self._verifier in VERIFIERS.values() else None
        return rows_digest(self._rows, columns, self._num_rows)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Asks the question of a row: the one whose number is the task's id, else a random one."""
        super().reset(seed=seed)
        number = numbered_task(options, self.np_random, self._num_rows)
        asked = self._begin(self._rows[number])
        self.chat = ChatSpec(system_prompt=asked.system_prompt or self._system_prompt)
        question = self._prompt.replace("{question}", asked.text)
        return self._begin_task(question, {"task_id": str(number), "answer": final_answer(self._gold)})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Scores a reply.

        Raises:
            EnvError: The verifier is broken.
        """
        verdict = judge(self._verifier, action, self._gold, self._row)
        success = verdict.score == 1.0
        facts = {STATED_ANSWER: answer_key(self._verifier, action), "reason": verdict.reason}
        facts = {name: fact for name, fact in facts.items() if fact is not None}
        if not success and self._turns + 1 < self.max_turns:
            return self._go_on("wrong; try again", facts=facts)
        return self._finish("right" if success else "wrong", verdict.score, success, facts=facts)

    def render(self) -> str | None:
        """The question."""
        return self._text if self.render_mode == "ansi" else None

    def expert(self) -> Callable[[str], str]:
        """A policy that looks the answer up: it reads the row, not the question."""
        return lambda _: final_answer(self._gold)

    def _begin(self, row: Mapping[str, Any]) -> Asked:
        asked = question_of(row[self._question])
        self._row, self._text = row, asked.text
        self._gold = self._read_gold(row[self._answer])
        return asked


def check_prompt(prompt: Any, row: Mapping[str, Any], question: str) -> None:
    """Refuses a prompt without its question, and one that waits for another column, which would stay as it is written.

    Raises:
        SettingError: It is such a prompt.

    Example:
        >>> check_prompt("{question} Put it in \\boxed{}.", {"question": "", "hint": ""}, "question")
        >>> check_prompt("{question} ({hint})", {"question": "", "hint": ""}, "question")
        Traceback (most recent call last):
        gspo_rllib.errors.SettingError: prompt='{question} ({hint})': {hint} would stay as it is: only {question} is \
filled in. Put the column 'hint' into the question's.
    """
    if not isinstance(prompt, str) or "{question}" not in prompt:
        raise SettingError(f"prompt={prompt!r}: must contain {{question}}, which stands for the question.")
    for column in row:
        if column != question and column != "question" and f"{{{column}}}" in prompt:
            raise SettingError(
                f"prompt={prompt!r}: {{{column}}} would stay as it is: only {{question}} is filled in. Put the "
                f"column {column!r} into the question's."
            )
