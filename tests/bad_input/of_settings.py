"""Bad values of this package's own settings."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.bad_input.case import Case, built, setting, settings

NAN, INF, HUGE, HEX = float("nan"), float("inf"), 10**40, int("f" * 30, 16)
PAIR = np.array([1, 2])
SCHEDULE = "a number, or a schedule [[0, first], [timestep, next], ...] of timesteps that grow and numbers from 0 to 10"
RATE = "float or list, >= 0, <= 10"
WEIGHTS = "names of reward parts and their weights, finite numbers up to 1e6, e.g. {'correct': 1.0, 'format': 0.2}"
NAMED = "a mapping whose keys are names (text)"
COUNT = "int, >= 1"
YEAR = "float, > 0, <= 3.1536e+07"
TEMPERATURE = "float, >= 0.01, <= 100, or 0.0"

NUMBERS: list[Case] = [
    *settings(
        RATE, training__lr=[NAN, INF, -INF, -1, -0.5, 11, HUGE, 1e300, True, None, {"a": 1}, {1}, 1j, b"1", PAIR]
    ),
    *settings(f"{RATE}; it was given as text", training__lr=["1e-5", "", "fast"]),
    *settings(
        SCHEDULE,
        training__lr=[
            *([], [1], [1, 2], [[0, 1e-5]], [[5, 1e-5], [10, 1e-6]], [[0, NAN], [1, 0.1]], [[0, "a"], [1, 0.1]]),
            *([[0, -1], [5, 0.1]], [[0, 1e-5], [5]], [[0, 1e-5], [0, 1e-6]], [[0, 0.1], [9, 0.1], [5, 0.1]]),
            *([[0, True], [1, False]], [[0, 1e-5], [1.5, 1e-6]], [[0, 1e300], [5, 0.1]], [[0, [1]], [5, [1]]]),
            *([[0, 0.1], [HUGE, 0.1]], [[0, None], [1, None]], ["ab", "cd"]),
        ],
    ),
    *settings("int, >= 1, <= 65536", training__group_size=[0, -1, 1.5, True, None, [2], HEX, HUGE, NAN, PAIR, {}]),
    *settings("int, >= 1, <= 65536; it was given as text", training__group_size=["8", "eight"]),
    *settings("int, >= 1, <= 1.04858e+06", training__groups_per_iteration=[0, -4, 2.5, False, HEX, [[4]]]),
    *settings(COUNT, training__num_minibatches=[0, -1, 0.5, True], training__num_epochs=[0, -1, 1.5, [1]]),
    *settings("int, >= 1, <= 2147483647", training__num_epochs=[HEX, HUGE], training__num_minibatches=[2**31]),
    *settings("int, >= 0", training__max_staleness=[-1, 0.5, True, None], training__min_informative_trajectories=[-2]),
    *settings("float, >= 0, <= 1", training__clip_low=[-0.1, 1.1, NAN, 1e300, True, [0.2], PAIR, None]),
    *settings("float, >= 0, <= 1e+06", training__clip_high=[-0.1, NAN, INF, 1e300, True, [0.2], HUGE]),
    *settings("float, >= 0, <= 1", training__gamma=[-1, 1.5, NAN, True], training__lambda_=[-1, 2, INF]),
    *settings("float, >= 1e-30, <= 1", training__adam_epsilon=[0, -1e-8, 1e-300, 2, NAN, True]),
    *settings("two numbers, each >= 0 and < 1", training__adam_betas=[(0.9,), (0.9, 1.0), [0.9, NAN], (True, False)]),
    *settings(
        "two numbers, each >= 0 and < 1", training__adam_betas=[(), (0.9, "0.99"), (0.9, 0.9, 0.9), ([0.9], 0.9)]
    ),
    *settings("tuple or list", training__adam_betas=["0.9", 0.9, {"a": 1}, None, PAIR]),
    *settings("float or None, > 0, <= 1e+12", training__grad_clip=[0, -1, NAN, INF, 1e300, True, [1]]),
    *settings("float or None, > 0, <= 1e+15", training__target_kl=[0, -0.01, NAN, True, 1e300]),
    *settings("float, >= 0, <= 1e+06", training__kl_coeff=[-1, NAN, 1e300], training__entropy_coeff=[-1, INF, HUGE]),
    *settings("float, >= -1e+06, <= 1e+06", training__truncated_return=[NAN, INF, 1e300, HUGE, True, [0]]),
    *settings(TEMPERATURE, generation__temperature=[1e-30, 1e-300, -1, NAN, INF, 101, 1e300, HUGE, True, [1], PAIR]),
    *settings(COUNT, generation__max_tokens_per_turn=[0, -1, 1.5, True, None, [8]]),
    *settings("int, >= 1, <= 2147483647", generation__max_tokens_per_turn=[HEX]),
    *settings("int or None, >= 2", generation__max_model_len=[1, 0, -1, 8.5, True, [64]]),
    *settings(YEAR, generation__step_timeout_s=[0, -1, NAN, INF, 1e300, HUGE, True, None, [1]]),
    *settings(
        YEAR.replace("float", "float or None"), generation__engine_timeout_s=[0, -1, NAN, INF, 1e300, HUGE, True, [1]]
    ),
    *settings(YEAR, agent__idle_timeout_s=[0, -1, NAN, 1e300], agent__trajectory_timeout_s=[0, INF, HUGE]),
    *settings("int, >= 0, <= 1000", generation__trajectory_retries=[-1, 1.5, HEX, True, 1001]),
]

PARTS: list[Case] = [
    *settings("dict or None", training__reward_part_weights=["correct", ["a"], 1.0, True, PAIR]),
    *settings(WEIGHTS, training__reward_part_weights=[{"a": NAN}, {"a": "1"}, {1: 1.0}, {"a": True}, {"a": INF}]),
    *settings(WEIGHTS, training__reward_part_weights=[{"a": [1]}, {"": 1.0}, {"a": None}, {"a": 1e300}, {"a": HUGE}]),
    *settings(
        "dict", generation__template_kwargs=["x", [1], None, 5, PAIR], generation__engine_options=["x", [1], None]
    ),
    *settings(
        NAMED, generation__template_kwargs=[{1: 2}, {"": 1}], generation__engine_options=[{None: 1}, {("a",): 1}]
    ),
    *settings("list", training__curriculum=["x", {"a": 1}, None, 5, PAIR, (1,)]),
    *settings("text that is not empty", generation__engine=["", " ", "a\0b"], training__reference_path=["", "  "]),
    *settings(
        "the name of a torch device, e.g. 'cpu' or 'cuda:0'", generation__engine_device=["gpu", "", "cuda:x", "3"]
    ),
    *settings(
        "bool", generation__ragged_groups=[1, "yes", None, [True], 0.0, PAIR], training__undo_overshoot=[1, "no"]
    ),
    *[
        built(
            f"curriculum {stage!r}",
            lambda c, stage=stage: c.training(curriculum=[stage]),
            f"training.curriculum[0] is {stage!r}; it must be a mapping of settings that replace those of env_config, "
            "e.g. {'rooms': 6}.",
        )
        for stage in (1, "x", {}, {1: 2}, [{"operations": 1}], None)
    ],
]


def _choice(place: str, given: Any, allowed: str, guess: str = "") -> Case:
    return setting(place, given, f"{allowed}.{' ' if guess else ''}{guess}")


LEVELS = "'sequence', 'sequence_token', 'turn', 'token'"
CHOICES: list[Case] = [
    *[
        _choice("training.importance_sampling_level", given, LEVELS)
        for given in (PAIR, np.array("turn"), 1, True, None)
    ],
    *[_choice("training.importance_sampling_level", given, LEVELS) for given in (["turn"], {"turn"}, b"turn", str)],
    _choice("training.importance_sampling_level", "sequense", LEVELS, "Did you mean 'sequence'?"),
    _choice("training.importance_sampling_level", "Turn", LEVELS, "Did you mean 'turn'?"),
    _choice("training.kl_estimator", "k4", "'k1', 'k2', 'k3'", "…"),
    _choice("training.old_log_probs", "learners", "'auto', 'engine', 'learner'", "Did you mean 'learner'?"),
    _choice("training.zero_variance_groups", "dropp", "'keep', 'drop', 'resample'", "Did you mean 'drop'?"),
    _choice("training.clip_scaling", PAIR, "'none', 'length', 'target', 'deviations'"),
    _choice("training.clip_scaling", None, "'none', 'length', 'target', 'deviations'"),
    _choice("generation.engine_dtype", "bfloat", "'float32', 'bfloat16'", "Did you mean 'bfloat16'?"),
    _choice("generation.engine_dtype", PAIR, "'float32', 'bfloat16'"),
    _choice("generation.sync_dtype", "bfloat", "'float32', 'bfloat16'", "Did you mean 'bfloat16'?"),
    _choice("generation.context_overflow", "summarise", "'truncate', 'sliding_window', 'summarize'", "Did you mean …"),
    _choice("generation.weight_update", "never", "'turn', 'token'", "Allowed: token, turn."),
    _choice("agent.workers", PAIR, "'thread', 'process', 'external'"),
    _choice("agent.workers", "threads", "'thread', 'process', 'external'", "Did you mean 'thread'?"),
]

OURS = [*NUMBERS, *PARTS, *CHOICES]
