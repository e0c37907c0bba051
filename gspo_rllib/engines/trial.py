"""What to use instead of an engine that cannot serve a model: nothing is recommended that was not tried.

A trial runs another engine in a process of its own, gives it the model's weights, and compares what it samples with the
model's full logits. It takes as long as that engine's start, and only where a run ends otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.errors import GSPOError, described

_LARGEST_BYTES = 4 << 30  # of a model on trial: it is in memory three times
_LONGEST_S = 300.0


def untried(engine: str) -> str:
    """The sentence that stands for the result of a trial, in a message of an engine that cannot serve a model.

    Example:
        >>> untried("vllm")
        "Whether engine='vllm' serves it was not tried."
    """
    return f"Whether engine={engine!r} serves it was not tried."


def with_alternatives(message: str, spec: EngineSpec) -> str:
    """The message of an engine that cannot serve a model, and what every other engine that is installed made of it.

    Args:
        message: Why it cannot; a sentence of ``untried`` in it is replaced.
        spec: How it was to be built.
    """
    others = [name for name in registry.available_engines() if name != spec.engine]
    for name in others:
        message = message.replace(f" {untried(name)}", "")
    found = " ".join(_outcome(spec, name) for name in others)
    return f"{message} {found or 'No other engine is installed.'}"


def _outcome(spec: EngineSpec, engine: str) -> str:
    size = sum(file.stat().st_size for file in pathlib.Path(spec.model).glob("*.safetensors"))
    if not size or size > _LARGEST_BYTES:
        return untried(engine)
    error = _try(spec, engine)
    if error is None:
        return f"engine={engine!r} does: it was tried with this model just now, and its log-probabilities are exact."
    return f"engine={engine!r} was tried just now and cannot serve it either: {error}"


def _try(spec: EngineSpec, engine: str) -> str | None:
    """What is wrong with an engine for this model; None if nothing is."""
    # In float32, so that "exact" means something; on the CPU where it can be, beside whatever fills the accelerator.
    device = spec.device if engine == "vllm" else "cpu"
    alone: dict[str, Any] = {"dtype": "float32", "options": {}, "max_num_seqs": 2, "colocated_bytes": None}
    other = dataclasses.replace(spec, engine=engine, device=device, **alone)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", __name__ if __name__ != "__main__" else "gspo_rllib.engines.trial"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(dataclasses.asdict(other)),
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            env=environment,
            check=False,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"it gave no answer within {_LONGEST_S:.0f} s."
    except (OSError, ValueError, IndexError):
        return f"its process ended without an answer ({done.stderr.strip()[-200:]!r})."
    error: str | None = answer["error"]
    return error


def run(spec: EngineSpec) -> str | None:
    """Builds an engine, gives it the model's weights and checks what it samples.

    Args:
        spec: How the engine is built.

    Returns:
        What went wrong, in words; None if it samples from the model's own distribution.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from gspo_rllib.engines.proof import Conversation, Gap, check_gap, converse, model_log_probs
    from gspo_rllib.model_folder import load_model_config

    engine = None
    try:
        engine = registry.acquire(spec)
        model = AutoModelForCausalLM.from_pretrained(
            spec.model,
            config=load_model_config(spec.model, trust_remote_code=spec.trust_remote_code),
            dtype=torch.float32,
            trust_remote_code=spec.trust_remote_code,
        ).eval()
        with registry.failing_as_itself(engine):
            engine.load_weights({name: tensor.numpy() for name, tensor in model.state_dict().items()}, 1)
            vocab_size = model.get_input_embeddings().num_embeddings
            asked = Conversation.of(model.config, vocab_size, temperature=1.0, learner_dtype="float32")
            sample = converse(engine, spec, asked)
        check_gap(sample, Gap.between(sample, model_log_probs(model, sample), "float32"))
    except GSPOError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001, whatever a foreign model's code raises is the answer
        return described(error)
    finally:
        if engine is not None:
            registry.release(engine)
    return None


def main() -> None:
    """Reads a spec as JSON from the standard input, and writes what went wrong to the standard output."""
    given = json.loads(sys.stdin.read())
    spec = EngineSpec(**{**given, "stop_token_ids": tuple(given["stop_token_ids"])})
    print(json.dumps({"error": run(spec)}))  # noqa: T201, the answer to the process that asked


if __name__ == "__main__":
    main()
