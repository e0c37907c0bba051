"""Whether the first observation of an environment fits the context: one is looked at before the first actor starts."""

from __future__ import annotations

import logging

from gspo_rllib.env_pool.factory import LanguageEnvSpec
from gspo_rllib.env_pool.pool import EnvPool
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.long_context import Segments
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import ModelError, SettingError

logger = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""Longest that the observation is waited for; what takes longer, or fails, is the run's business, which retries."""

_SEED = 0


def check_first_prompt(
    env: LanguageEnvSpec, renderer: ChatRenderer, settings: GenerationSettings, *, name: str, room: int
) -> None:
    """Refuses an environment whose first observation alone fills the context.

    One that needs a process of its own is not asked.

    Args:
        env: The environment.
        renderer: Renders its conversations.
        settings: How text is sampled.
        name: What to call the environment.
        room: Longest context, in tokens.

    Raises:
        SettingError: No room is left for a reply.
    """
    if env.process:
        return
    patience = min(PATIENCE_S, settings.step_timeout_s)
    pool = EnvPool(env.make, 1, blocking=env.blocking, step_timeout_s=patience)
    try:
        slot = pool.acquire()
        assert slot is not None
        pool.reset(slot, _SEED, None if env.num_tasks is None else "0")
        (answer,) = pool.poll(wait=True)
    finally:
        pool.close()
    if answer.failure is not None:
        logger.debug("The first observation of %s was not looked at: %s", name, answer.failure.message)
        return
    own = renderer if answer.chat == renderer.chat or answer.chat is None else renderer.reframed(answer.chat)
    try:
        length = len(own.first_prompt(answer.observation))
        reserve = Segments(own, settings, budget=0).reserve
    except ModelError:  # a framing of one episode alone, which fails that episode
        return
    if length < room - reserve:
        return
    kept = f", of which {reserve} are kept for a summary" if reserve else ""
    raise SettingError(
        f"environment {name}: with its framing, its first observation has {length} tokens, and the context {room}"
        f"{kept} (generation.max_model_len, or the model's own): there is no room for a reply. Shorten the "
        "observation, raise max_model_len, or use a model that was made for longer contexts."
    )
