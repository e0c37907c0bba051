"""What vLLM is started with whatever the device: what the engine sets itself, defaults, and what a user may set."""

from __future__ import annotations

import dataclasses
from typing import Any

from vllm import EngineArgs
from vllm.platforms import current_platform

from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.errors import SettingError, did_you_mean

FROM_SPEC = ("model", "dtype", "max_model_len", "max_num_seqs", "seed", "trust_remote_code")
FIXED: dict[str, Any] = {
    # Log-probabilities of the distribution that was sampled from; vLLM's default is before temperature.
    "logprobs_mode": "processed_logprobs",
    # The learner sends all weights before the first request.
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "worker_extension_cls": "gspo_rllib.engines.vllm_worker.WeightSyncExtension",
}
DEFAULTS: dict[str, Any] = {
    "disable_log_stats": True,
    "use_tqdm_on_load": False,
    "enable_prefix_caching": True,
    "generation_config": "vllm",
}
_EXTRA_OPTIONS = {"enable_multiprocessing"}


def checked_options(spec: EngineSpec) -> dict[str, Any]:
    """A user's options for vLLM.

    Args:
        spec: How the engine is built.

    Raises:
        SettingError: One is unknown, or the engine's own to set.
    """
    if current_platform.is_cpu() and spec.options.get("enable_chunked_prefill"):
        raise SettingError(
            "engine option enable_chunked_prefill=True cannot be combined with seeded requests on vLLM's CPU backend; "
            "leave it out."
        )
    known = {field.name for field in dataclasses.fields(EngineArgs)} | _EXTRA_OPTIONS
    if spec.options.get("enable_lora"):
        raise SettingError(
            "engine option 'enable_lora' is set by the engine itself; use generation.adapter_sync='swap' and "
            "rl_module.model_config['lora']."
        )
    for name in spec.options:
        if name in FROM_SPEC or name in FIXED:
            remedy = f"set EngineSpec.{name} instead" if name in FROM_SPEC else "leave it out"
            raise SettingError(f"engine option {name!r} is set by the engine itself; {remedy}.")
        if name not in known:
            raise SettingError(f"engine option {name!r} is unknown to vllm. {did_you_mean(name, known)}")
    return dict(spec.options)
