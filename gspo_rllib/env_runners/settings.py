"""Every knob of sampling, once: default, range, unit, effect and the source of the default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from gspo_rllib.knobs import Settings, knob, settings_dataclass
from gspo_rllib.precision import PRECISIONS
from gspo_rllib.value_forms import LONGEST_WAIT_S, named, text, torch_device

ContextOverflow = Literal["truncate", "sliding_window", "summarize"]
CONTEXT_OVERFLOWS: tuple[str, ...] = get_args(ContextOverflow)

UPDATES_WITHIN_TURNS: dict[str, bool] = {"turn": False, "token": True}
"""Every ``weight_update``, and whether one turn may be sampled by several versions of the weights."""

CHANGES_THE_SUPPORT = (
    "it samples from another distribution than the one the learner scores, so the ratio would not be one at the start. "
    "Use temperature, which the learner follows."
)


@settings_dataclass
class GroupSettings(Settings):
    """The part of ``.training(...)`` that says how tasks become trajectories."""

    SECTION: ClassVar[str] = "training"

    group_size: int = knob(
        8,
        "Trajectories per task (K); the advantage compares them with each other, so only gae does with 1.",
        low=1,
        high=2**16,
        source="verl, TRL",
    )
    groups_per_iteration: int = knob(
        16, "Tasks per iteration (G); an iteration trains on G·K trajectories.", low=1, high=2**20, source="ours"
    )
    curriculum: list[Any] = knob(
        [],
        "Stages that are trained on before the environment itself, each a mapping of settings that replace those of "
        "env_config, e.g. [{'rooms': 6}, {'rooms': 12}]. Evaluation plays the environment itself.",
        source="ours",
    )
    curriculum_success: float = knob(
        0.7,
        "Share of an iteration's trajectories that must succeed for the next stage to begin; used by curriculum.",
        low=0.0,
        high=1.0,
        low_open=True,
        source="ours",
    )


@settings_dataclass
class GenerationSettings(Settings):
    """``.generation(...)``."""

    SECTION: ClassVar[str] = "generation"
    REFUSED: ClassVar[Mapping[str, str]] = dict.fromkeys(("top_p", "top_k", "min_p"), CHANGES_THE_SUPPORT)

    engine: str | None = knob(
        None,
        "Which engine samples; None takes vLLM where it is installed, but transformers for a small model on a CPU.",
        form=text,
        source="ours",
    )
    temperature: float = knob(
        1.0,
        "Divides the logits while sampling; the learner scores at the same one. Below 0.01 vLLM would sample at 0.01.",
        low=0.01,
        high=100.0,
        also=(0.0,),
        source="verl, TRL",
    )
    template_kwargs: dict[str, Any] = knob(
        {},
        "Handed to the model's chat template, e.g. {'enable_thinking': False}; where the environment's ChatSpec names "
        "one too, these hold.",
        form=named,
        source="ours",
    )
    max_tokens_per_turn: int = knob(64, "Most tokens of one reply.", unit="tokens", low=1, source="ours")
    max_turns: int | None = knob(
        None, "Most turns of a trajectory; None leaves it to the environment.", unit="turns", low=1, source="ours"
    )
    max_model_len: int | None = knob(
        None, "Longest context; None takes the model's own.", unit="tokens", low=2, source="the model's config"
    )
    context_overflow: ContextOverflow = knob(
        "truncate",
        "What happens when a conversation outgrows the context: the trajectory ends (truncate), or it goes on in a new "
        "segment that starts from the first turn and the latest ones (sliding_window) or from a summary the policy "
        "writes, as a turn of its own (summarize). The ratio spans all segments.",
        choices=CONTEXT_OVERFLOWS,
        source="ours",
    )
    segment_share: float = knob(
        0.5, "Share of the context that a new segment may start with.", low=0.0, high=0.9, low_open=True, source="ours"
    )
    max_summary_tokens: int = knob(
        256, "Most tokens of a summary; used by summarize.", unit="tokens", low=1, source="ours"
    )
    engine_dtype: str | None = knob(
        None,
        "Precision of the engine's weights and cache; None: rl_module.model_config.precision.",
        choices=PRECISIONS,
        source="ours",
    )
    sync_dtype: str | None = knob(
        None,
        "Precision in which engines are sent weights of two dimensions and more; None: that of the engine, which "
        "loses nothing. bfloat16 to an engine in float32 halves the bytes, and rounds its weights.",
        choices=PRECISIONS,
        source="ours",
    )
    engine_device: str | None = knob(
        None,
        "Torch device of the transformers engine; None takes a GPU if the runner has one.",
        form=torch_device,
        source="ours",
    )
    engine_options: dict[str, Any] = knob(
        {}, "Handed to the engine as they are, e.g. vLLM's tensor_parallel_size.", form=named, source="ours"
    )
    weight_update: Literal["turn", "token"] = knob(
        "turn",
        "When a runner that plays on while the learners train (max_staleness) takes up new weights: once the turns "
        "that are being sampled have ended, no other starting meanwhile (turn), or at once, within turns (token).",
        choices=tuple(UPDATES_WITHIN_TURNS),
        source="ours: every turn has one version",
    )
    colocate: bool = knob(
        False,
        "Whether an engine and the learner take turns on one device: while the learner trains, the engine holds "
        "neither weights nor a cache, and afterwards it reads the learner's weights where they lie.",
        source="ours",
    )
    adapter_sync: Literal["merged", "swap"] | None = knob(
        None,
        "How engines get a policy with an adapter (model_config['lora']): as the whole model that base and adapter "
        "make (merged), or as vLLM's own adapter beside a base that is loaded once (swap): less to send, slower "
        "tokens. None is merged.",
        choices=(None, "merged", "swap"),
        source="ours: exact on every engine",
    )
    step_timeout_s: float = knob(
        60.0,
        "Longest an environment may take to make, reset or step before it counts as failed.",
        unit="seconds",
        low=0.0,
        high=LONGEST_WAIT_S,
        low_open=True,
        source="ours",
    )
    engine_timeout_s: float | None = knob(
        600.0,
        "Longest that an engine may take for one answer (a step for all that is being sampled, or the loading of "
        "weights) before the process of its env runner is ended, replaced, and its groups are played again; None: for "
        "ever. An engine in the driver's own process is only told of.",
        unit="seconds",
        low=0.0,
        high=LONGEST_WAIT_S,
        low_open=True,
        source="ours",
    )
    trajectory_retries: int = knob(
        1,
        "Fresh attempts at a trajectory whose environment failed before its group is replaced.",
        low=0,
        high=1000,
        source="ours",
    )
    ragged_groups: bool = knob(
        False,
        "Whether a group goes on without the members that kept failing (at least two are left) instead of being "
        "replaced; biased where failing depends on what the policy did.",
        source="ours",
    )

    @property
    def edits_history(self) -> bool:
        """Whether a conversation that fills the context goes on in a new one."""
        return self.context_overflow != "truncate"

    @property
    def asks_for_summaries(self) -> bool:
        """Whether the policy is asked to sum up a conversation that goes on in a new context."""
        return self.context_overflow == "summarize"
