"""The student of a warm start: a new model, the expert it watches, and the engine it plays with."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from gspo_rllib.engines import registry
from gspo_rllib.engines.compute_threads import ComputeThreads, compute_threads
from gspo_rllib.engines.protocol import Engine, EngineSpec
from gspo_rllib.env_pool.factory import check_language_env_spec
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.errors import EnvError
from gspo_rllib.model_folder import load_tokenizer, quiet_transformers
from gspo_rllib.warmstart.demonstrations import Demonstration, demonstrate, has_expert, render, tokenizer_texts
from gspo_rllib.warmstart.models import Architecture, build_model, train_tokenizer
from gspo_rllib.warmstart.success import Player, PlayReport, held_out_seeds

_TOKENIZER_TASKS = 200
# Copying from the context takes two layers of attention; deeper models need as many steps, and each costs more.
_SIZES = {"vocab_size": 512, "num_layers": 2}
_LEAST_CONTEXT = 512
_CONTEXT_STEP = 256
_MOST_TASKS = 2**30
_TOKENS_PER_BATCH = 3072
_LEAST_BATCH = 8
_GRAD_CLIP = 1.0
# Attention costs as the square of the length, and what is learnt first stands at the beginning of every episode: of
# demonstrations longer than twice this, only so many tokens are imitated at first. Small batches of them make as much
# of a minute as possible: what is learnt early takes steps, not tokens.
_FIRST_REACH = 256
_LEAST_BATCH_OF_LONG = 4
_MOST_SEQUENCES = 128
_TOKENS_PER_PART, _LEAST_PART = 2**16, 32


class Student:
    """A randomly initialised model that learns an environment from its expert.

    Args:
        env: Gymnasium id or class of a text environment with an ``expert()``.
        env_config: Keyword arguments of the environment.
        folder: Where the model is built and saved.
        architecture: ``"qwen3"`` or ``"qwen3_moe"``.
        sizes: Keyword arguments of ``build_model``; the context defaults to twice the longest of 200 demonstrations,
            512 tokens at least.
        seed: Fixes weights, tasks and samples.
        held_out: Numbers of the tasks that are played, and so never demonstrated.
        device: Torch device.
        state: What ``state`` returned of a student in the same folder, to go on from there; None builds a new one.

    Attributes:
        num_parameters: Number of parameters of the model.
        tokens_per_demonstration: Mean length of the expert's contexts, in tokens.
        is_long: Whether that is more than 512: then beginnings of demonstrations are imitated first.
        turns_per_demonstration: Mean number of turns of the expert.
        mistake_rate: Probability that a demonstrated reply is a mistake: one that is right elsewhere. 0 at first.
        reach: How many tokens of a demonstration are imitated; None for all of them.

    Raises:
        EnvError: The environment is no text environment, or has no ``expert()``.
    """

    def __init__(
        self,
        env: str | type,
        env_config: Mapping[str, Any],
        folder: Path,
        *,
        architecture: Architecture,
        sizes: Mapping[str, Any],
        seed: int,
        held_out: range,
        device: str,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        spec = check_language_env_spec(env, env_config)
        self._env_spec = spec
        self._env = spec.make()
        if not has_expert(self._env):
            raise EnvError(
                f"environment {env!r} has no expert() to imitate. Give it one that returns a policy (observation in, "
                "action out), or start from a pretrained chat model instead."
            )
        self.mistake_rate = 0.0
        replies = [demonstrate(self._env, task).replies for task in range(_TOKENIZER_TASKS)]
        self._wrong_replies = [reply for episode in replies for reply in episode]
        self.turns_per_demonstration = len(self._wrong_replies) / len(replies)
        self.reach: int | None = None
        options = {**_SIZES, **sizes}
        if state is None:
            texts = tokenizer_texts(self._env, range(_TOKENIZER_TASKS))
            tokenizer = train_tokenizer(texts, vocab_size=options["vocab_size"])
        else:
            tokenizer = load_tokenizer(str(folder))
        self._renderer = ChatRenderer(tokenizer, spec.chat)
        lengths = [len(self._demonstration(task).token_ids) for task in range(_TOKENIZER_TASKS)]
        self.tokens_per_demonstration = float(np.mean(lengths))
        self.is_long = self.tokens_per_demonstration > 2 * _FIRST_REACH
        if self.is_long:
            self.reach = _FIRST_REACH
        options.setdefault("max_position_embeddings", _context_for(max(lengths)))
        self._folder = folder
        if state is None:
            build_model(folder, tokenizer=tokenizer, architecture=architecture, seed=seed, **options)
        with quiet_transformers():
            self._model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
        # It stays in evaluation mode: what is imitated with is what is evaluated and saved, without dropout.
        self._model.eval()
        self.num_parameters = self._model.num_parameters()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        self._held_out = held_out_seeds(held_out, seed)
        self._engine: Engine | None = None
        self._player: Player | None = None
        self._version = 0
        if state is not None:
            self._set_state(state)
        self._threads = ComputeThreads(compute_threads(str(folder), 1) if device == "cpu" else None)

    @property
    def batch_size(self) -> int:
        """Demonstrations of the next batch."""
        if not self.is_long:
            return max(_LEAST_BATCH, round(_TOKENS_PER_BATCH / self.tokens_per_demonstration))
        length = min(self.reach or math.inf, self.tokens_per_demonstration)
        return max(_LEAST_BATCH_OF_LONG, round(_TOKENS_PER_BATCH / length))

    @property
    def seconds_per_task(self) -> float | None:
        """Wall time of a task when some were last played; None before."""
        return self._player.seconds_per_task if self._player is not None else None

    def look_further(self) -> None:
        """Imitates twice as much of a demonstration from now on."""
        if self.reach is not None:
            self.reach = None if 2 * self.reach >= self.tokens_per_demonstration else 2 * self.reach

    def next_batch(self) -> list[Demonstration]:
        """Fresh demonstrations, of tasks that are never played.

        Batches are not bucketed by length: that saves little padding, and batches of one kind of task each made
        learning half as fast.
        """
        tasks = self._rng.integers(_MOST_TASKS, size=self.batch_size).tolist()
        return [self._demonstration(task).beginning(self.reach) for task in tasks if task not in self._held_out]

    def learn(self, batch: Sequence[Demonstration], lr: float) -> tuple[float, float]:
        """One optimiser step towards the expert's replies.

        Args:
            batch: B demonstrations.
            lr: Learning rate of this step.

        Returns:
            Before the step: the mean loss per reply token in nats, and the mean probability of all replies of a
            demonstration, over the demonstrations without a mistake.
        """
        ids_BT, is_reply_BT = _stack(batch, self._model.device)
        # No attention mask: padding stands on the right, where causal attention never looks.
        hidden_BTD = self._model.model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
        target_BT = is_reply_BT[:, 1:]
        logits_TV = self._model.lm_head(hidden_BTD[target_BT])
        loss_T = torch.nn.functional.cross_entropy(logits_TV, ids_BT[:, 1:][target_BT], reduction="none")
        loss = loss_T.mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), _GRAD_CLIP)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        rows_T = target_BT.nonzero()[:, 0]
        log_probability_B = torch.zeros(len(batch), device=loss.device).index_add_(0, rows_T, -loss_T.detach())
        flawless = [row for row, demonstration in enumerate(batch) if not demonstration.mistakes]
        probability = log_probability_B[flawless].exp().mean().item() if flawless else 0.0
        return loss.item(), probability

    def play(
        self,
        tasks: range,
        temperature: float,
        *,
        bound: float | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> PlayReport | None:
        """Plays held-out tasks with the present weights; see ``Player.play``.

        Args:
            tasks: Which of the held-out tasks.
            temperature: Sampling temperature of every turn.
            bound: A success rate; playing ends as soon as there is no doubt on which side of it success is.
            stop: Asked all the time; once it is true, playing ends.
        """
        if self._engine is None:
            self._engine = registry.acquire(self._engine_spec())
        self._version += 1
        self._engine.load_weights({n: t.detach() for n, t in self._model.state_dict().items()}, self._version)
        if self._player is None:
            self._player = Player(
                self._engine, self._env_spec, self._renderer, num_slots=_MOST_SEQUENCES, run_seed=self._seed
            )
        part = max(_LEAST_PART, round(_TOKENS_PER_PART / self.tokens_per_demonstration))
        return self._player.play(tasks, temperature, at_a_time=part, bound=bound, stop=stop)

    def save(self) -> None:
        """Writes the present weights to the folder, each file in one move."""
        with tempfile.TemporaryDirectory(dir=self._folder) as new, quiet_transformers():
            self._model.save_pretrained(new)
            for file in Path(new).iterdir():
                os.replace(file, self._folder / file.name)

    def restore_saved(self) -> None:
        """Takes the weights that ``save`` last wrote."""
        with quiet_transformers():
            saved = AutoModelForCausalLM.from_pretrained(self._folder, dtype=torch.float32)
        self._model.load_state_dict(saved.state_dict())

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on."""
        return {
            "weights": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": json.dumps(self._rng.bit_generator.state),
            "mistake_rate": self.mistake_rate,
            "reach": self.reach,
        }

    def close(self) -> None:
        """Lets go of the engine and the environments."""
        if self._player is not None:
            self._player.close()
            self._player = None
        if self._engine is not None:
            registry.release(self._engine)
            self._engine = None
        self._threads.release()
        self._env.close()

    def _engine_spec(self) -> EngineSpec:
        return EngineSpec(
            engine="transformers",
            model=str(self._folder),
            dtype="float32",
            max_model_len=self._model.config.max_position_embeddings,
            max_num_seqs=_MOST_SEQUENCES,
            stop_token_ids=self._renderer.stop_token_ids,
            device=str(self._model.device),
        )

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._model.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._rng.bit_generator.state = json.loads(state["random"])
        self.mistake_rate = state["mistake_rate"]
        self.reach = state["reach"]

    def _demonstration(self, task: int) -> Demonstration:
        return render(
            demonstrate(self._env, task, mistake_rate=self.mistake_rate, wrong_replies=self._wrong_replies),
            self._renderer,
        )


def _context_for(longest: int) -> int:
    """Room for twice the longest demonstration: a student wastes turns that an expert does not."""
    return max(_LEAST_CONTEXT, -(-2 * longest // _CONTEXT_STEP) * _CONTEXT_STEP)


def _stack(batch: Sequence[Demonstration], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and reply masks, [B, T] each, padded on the right."""
    shape = (len(batch), max(len(d.token_ids) for d in batch))
    ids, is_reply = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for row, demonstration in enumerate(batch):
        length = len(demonstration.token_ids)
        ids[row, :length] = demonstration.token_ids
        is_reply[row, :length] = demonstration.is_reply
    return torch.from_numpy(ids).to(device), torch.from_numpy(is_reply).to(device)
