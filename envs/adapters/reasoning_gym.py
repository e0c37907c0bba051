"""reasoning-gym: about a hundred generators of puzzles with a scorer each, one turn per puzzle.

Observation  str, the question, e.g. "What is 17 + 25?"; then "scored 1.00"
Action       str, the answer: what stands in the last <answer>...</answer>, or else all of it without spaces at its ends
Reward       the dataset's own score, 0.0 to 1.0; many scorers give a part of it, such as 0.01 for any text
Ends         terminated after one turn
Info         {"task_id": str, "answer": str | None} from reset; from step {"valid_action": bool, "obs_role": "user",
             "success": bool}; an action is invalid when it is empty or the scorer cannot read it
Settings     dataset: a name of the suite, e.g. "chain_sum"; params: the dataset's own settings without seed and size
Tasks        "0" to "2147483647": the seed of the dataset, whose first item is played
Expert       gives the suite's own answer: privileged, it does not look at the question. Five datasets (boxnet,
             graph_color, propositional_logic, rubiks_cube, rush_hour) have a scorer but no answer, hence no expert
Cannot       be trusted with any text: nine scorers hand the answer to Python's eval or to SymPy's parser, which uses
             it. For those, only plain literals and plain formulas reach the scorer; the rest scores 0.0. Be a fair
             judge everywhere: game_of_life_halting takes any text but "True" for a "no". Make zebra_puzzles without
             pycosat, which the suite asks for and nothing else in it uses
Versions     v0, for reasoning-gym 0.1
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from gspo_rllib.envs.adapters.randomness import OwnRandomness
from gspo_rllib.envs.adapters.suite import Outcome, SuiteEnv, load_suite
from gspo_rllib.envs.tasks import numbered_task
from gspo_rllib.errors import EnvError, SettingError, did_you_mean

# Their scorers evaluate the answer as Python, hoping for a list …
EVALUATED = frozenset(("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"))
# … or parse it as a formula, which evaluates it too.
PARSED = frozenset(
    ("countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration")
)
# The suite imports its SAT solver at once, and only these use it. pycosat has no wheels: it takes a C compiler.
NEEDS_PYCOSAT = frozenset(("zebra_puzzles",))

_IMPORTING = threading.Lock()
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LONGEST_ANSWER = 10_000
_LONGEST_FORMULA = 500
_FUNCTIONS = frozenset(
    ["sin", "cos", "tan", "exp", "log", "ln", "sqrt", "Abs", "asin", "acos", "atan", "sinh", "cosh", "tanh"]
)
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant, ast.Name, ast.Load, ast.Call)
_LARGEST_POWER = 64


def extract_answer(text: str) -> str:
    """What a reply gives as its answer.

    Example:
        >>> extract_answer("17 + 25 is <answer> 42 </answer>."), extract_answer(" 42\\n")
        ('42', '42')
    """
    marked = _ANSWER.findall(text)
    return (marked[-1] if marked else text).strip()


def is_plain_formula(text: str) -> bool:
    """Whether a formula holds only numbers, one-letter names, known functions and powers that stay small.

    Example:
        >>> [is_plain_formula(text) for text in ("3*(4 + 5)", "x**2/2 + sin(x) + C")]
        [True, True]
        >>> [is_plain_formula(text) for text in ("__import__('os')", "().__class__", "9**9**9", "x.args", "f(3)", "")]
        [False, False, False, False, False, False]
    """
    if len(text) > _LONGEST_FORMULA:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return all(isinstance(node, _NODES) and _is_plain(node, id(node) in called) for node in nodes)


def _is_plain(node: ast.AST, is_called: bool) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS if is_called else len(node.id) == 1 or node.id == "pi"
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and not node.keywords
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _is_small_power(node)
    return not isinstance(node, (ast.LShift, ast.RShift, ast.MatMult))


def _is_small_power(node: ast.BinOp) -> bool:
    inside = list(ast.walk(node.left)) + list(ast.walk(node.right))
    if any(isinstance(part, ast.Pow) for part in inside):
        return False
    exponent = list(ast.walk(node.right))
    numbers: list[Any] = [part.value for part in exponent if isinstance(part, ast.Constant)]
    grows = any(isinstance(part, (ast.Mult, ast.Add)) for part in exponent)
    return not grows and all(type(number) in (int, float) and abs(number) <= _LARGEST_POWER for number in numbers)


def is_literal(text: str) -> bool:
    """Whether a text is a Python literal, so that evaluating it runs nothing.

    Example:
        >>> is_literal("[[0, 1], [1, 0]]"), is_literal("[0] * 10**9"), is_literal("exit()")
        (True, False, False)
    """
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return False
    return True


def _load_factory() -> ModuleType:
    """Imports the suite's table of datasets; an empty module stands in for a missing pycosat while it is imported."""
    with _IMPORTING:
        stand_in = "reasoning_gym" not in sys.modules and importlib.util.find_spec("pycosat") is None
        if stand_in:
            sys.modules["pycosat"] = ModuleType("pycosat")
        try:
            # By way of the package: after an import that failed half-way, its submodules alone would seem to be all.
            factory: ModuleType = load_suite("reasoning_gym", "reasoning-gym").factory
            return factory
        finally:
            if stand_in:
                del sys.modules["pycosat"]


class ReasoningGymEnv(SuiteEnv):
    """See the card at the top of this file.

    Args:
        dataset: The dataset's name.
        params: The dataset's own settings.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: There is no such dataset, or it refuses its settings.
        EnvError: reasoning-gym is missing, or pycosat for a dataset that needs it.
    """

    def __init__(
        self, dataset: str = "chain_sum", params: Mapping[str, Any] | None = None, render_mode: str | None = None
    ) -> None:
        super().__init__(1, render_mode)
        names = sorted(set(_load_factory().DATASETS) - {"composite"})
        if dataset not in names:
            raise SettingError(f"dataset={dataset!r}: no such dataset. {did_you_mean(str(dataset), names)}")
        if dataset in NEEDS_PYCOSAT and importlib.util.find_spec("pycosat") is None:
            raise EnvError(
                f"dataset={dataset!r} needs pycosat, which is not installed. Install it: pip install pycosat (it is "
                "built from source, so it takes a C compiler), or choose another dataset."
            )
        self.dataset = dataset
        self.params = dict(params or {})
        if taken := {"seed", "size"} & set(self.params):
            raise SettingError(f"params: {sorted(taken)} are set by the task. Leave them out.")
        self._scorer: Any = None
        self._item: dict[str, Any] = {"question": "", "answer": None}
        self._make(0)

    def expert(self) -> Callable[[str], str]:
        """Gives the suite's own answer to the task at hand.

        Raises:
            EnvError: The dataset has none.
        """

        def policy(_observation: str) -> str:
            if self._item["answer"] is None:
                raise EnvError(f"dataset={self.dataset!r} has a scorer, but no answers: there is no expert for it.")
            return str(self._item["answer"])

        return policy

    def __getstate__(self) -> dict[str, Any]:
        # Two of the datasets hold functions, which do not pickle; a copy makes its own.
        return self.__dict__ | {"_scorer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make(int(self._task_id or 0))

    def _make(self, seed: int) -> None:
        factory = _load_factory()
        try:
            with OwnRandomness(seed).active():
                self._scorer = factory.create_dataset(self.dataset, **self.params, seed=seed, size=1)
        except (AssertionError, TypeError, ValueError) as error:
            raise SettingError(f"params={self.params!r}: the dataset {self.dataset!r} refuses them: {error}") from error

    def _begin(self, task_id: str) -> tuple[str, dict[str, Any]]:
        number = numbered_task({"task_id": task_id}, self.np_random)
        self._make(number)
        # One of the datasets seeds NumPy's global generator.
        with OwnRandomness(number).active():
            self._item = self._scorer[0]
        return str(self._item["question"]), {"answer": self._item["answer"]}

    def _play(self, action: str) -> Outcome:
        answer = extract_answer(action)
        valid = bool(answer) and len(answer) <= _LONGEST_ANSWER
        score = 0.0
        if valid and self._may_be_scored(answer):
            try:
                with OwnRandomness(0).active():
                    score = float(self._scorer.score_answer(answer, self._item))
            except Exception:  # noqa: BLE001 - a hundred scorers parse what a model wrote, and raise as they please
                valid = False
        score = min(max(score, 0.0), 1.0)
        return Outcome(f"scored {score:.2f}", score, valid=valid, over=True, success=score >= 1.0)

    def _may_be_scored(self, answer: str) -> bool:
        if self.dataset in EVALUATED:
            return answer == self._item["answer"] or is_literal(answer) or not _looks_like_code(answer)
        return self.dataset not in PARSED or is_plain_formula(answer)


def _looks_like_code(answer: str) -> bool:
    try:
        ast.parse(answer, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
