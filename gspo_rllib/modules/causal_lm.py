"""The policy: any Hugging Face causal language model as an RLlib ``TorchRLModule``.

It scores sampled tokens and never returns logits: the head runs on the positions that predict them, chunk by chunk.
For algorithms that want one it carries a critic, which says what the state before each sampled token is worth.

Shapes: see ``columns``; D hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import tempfile
from typing import Any

import pyarrow.fs
import torch
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor
from transformers import PreTrainedModel

from gspo_rllib import columns
from gspo_rllib.errors import GSPOError, ModelError, SettingError
from gspo_rllib.model_files import ModelFiles, copy_files
from gspo_rllib.model_folder import load_tokenizer, model_path
from gspo_rllib.modules.adapter import Adapter
from gspo_rllib.modules.compilation import compile_layers
from gspo_rllib.modules.critic import Critic
from gspo_rllib.modules.exactness import Wanted, exact_scoring, take_attention
from gspo_rllib.modules.frozen import Reach, freeze_unreached
from gspo_rllib.modules.hidden_states import trunk_of
from gspo_rllib.modules.loading import load_causal_lm, load_first_layers
from gspo_rllib.modules.lora_settings import LoraSettings
from gspo_rllib.modules.model_config import check_model_config
from gspo_rllib.modules.named_attention import check_attention_runs
from gspo_rllib.modules.prefix_attention import MIN_TOKEN_RATIO, PrefixSharing
from gspo_rllib.modules.recomputation import Recomputation
from gspo_rllib.modules.sampling_mode import checked_pass
from gspo_rllib.modules.saved_policy import read_policy
from gspo_rllib.modules.scoring import Rows, Scoring, check_length, num_cells, score, short_row, trunk_states
from gspo_rllib.modules.sharding import is_sharded, shard, shares_of, whole_state
from gspo_rllib.modules.share_files import write_shares
from gspo_rllib.modules.shares import loaded_as_shares, loads_shares
from gspo_rllib.modules.varlen_attention import serves_dtype
from gspo_rllib.precision import learner_dtype


class CausalLMModule(TorchRLModule, InferenceOnlyAPI, ValueFunctionAPI):
    """A causal language model that scores the tokens it sampled, and values the states it sampled them in.

    ``model_config`` keys: see ``MODEL_CONFIG``; ``temperature``, ``use_critic``, ``max_model_len`` and ``compiled`` are
    the algorithm's. Without ``use_critic`` there is no critic and not one parameter of it.
    """

    writes_itself = True
    """As data: see ``checkpoints.components``."""

    def setup(self) -> None:
        """Loads the model in float32, and builds the critic if there is to be one.

        Raises:
            ModelError: The folder holds no causal language model.
        """
        given = dict(self.model_config)
        self.temperature = float(given.pop("temperature", 1.0))
        use_critic, compiled = bool(given.pop("use_critic", False)), given.pop("compiled", None)
        # The longest context of a run; a module that no run made has none.
        self._is_of_a_run, self._max_model_len = "max_model_len" in given, given.pop("max_model_len", None)
        self.settings = settings = check_model_config(given)
        path, trust = model_path(settings), settings["trust_remote_code"]
        self.tokenizer = load_tokenizer(path, trust_remote_code=trust)
        if loads_shares():
            # Found out before anything else is in memory, and with whole layers: shares compute together only.
            self.scoring = self._found_with_few(path, trust)
        self.model: PreTrainedModel = self._load(path, trust)
        if not self.inference_only:
            check_attention_runs(self.model, settings["attn_implementation"])
        # Sampling needs no critic; never building it there saves its memory too.
        use_critic = use_critic and not self.inference_only
        self.critic = Critic(self.model, share_layers=settings["vf_share_layers"]) if use_critic else None
        # Which layers compute their activations again in the backward pass; None where all keep them.
        self.recomputation = Recomputation.wanted(settings, self._hugging_face_models())
        if loads_shares():
            take_attention(self._hugging_face_models(), self.scoring)
        elif not self.inference_only:
            _ = self.scoring  # refused here, if at all
        # What is exact was found with the model as it is loaded: an adapter's layers see no other token either.
        self.adapter: Adapter | None = None
        if settings["lora"] is not None:
            self.adapter = Adapter(self.model, LoraSettings(**settings["lora"]), path=path)
        # By whether gradients flow: the longest segment in a pass that was watched for what no policy may do.
        self._longest_checked = {True: 0, False: 0}
        self.reach = Reach((), may_miss=False)  # what only scores has no gradient to wait for
        if not self.inference_only and not loads_shares():
            self._freeze_unreached()
        if compiled and not self.inference_only:
            compile_layers(self._hugging_face_models(), self.scoring, *compiled)

    def _found_with_few(self, path: str, trust_remote_code: bool) -> Scoring:
        few = load_first_layers(path, trust_remote_code=trust_remote_code)
        if few is not None:
            with contextlib.suppress(GSPOError):
                return self._found_with(few)
        # What a part is refused for may be that it is one.
        with loaded_as_shares(None):
            return self._found_with(load_causal_lm(path, trust_remote_code=trust_remote_code)[0])

    def _found_with(self, model: PreTrainedModel) -> Scoring:
        model.config.use_cache = False
        check_attention_runs(model, None if self.inference_only else self.settings["attn_implementation"])
        Recomputation.wanted(self.settings, [model])
        return self._exact_scoring([model])

    def _freeze_unreached(self) -> None:
        attention = self.settings["attn_implementation"]
        self.reach = freeze_unreached(self, self._hugging_face_models(), self._forward, attention=attention)
        if self.adapter is not None:
            self.adapter.check_reached()

    def _load(self, path: str, trust_remote_code: bool) -> PreTrainedModel:
        model, config_class = load_causal_lm(path, trust_remote_code=trust_remote_code)
        self._files = ModelFiles.of(path, model, config_class=config_class)
        model.config.use_cache = False
        return model

    def _hugging_face_models(self) -> list[PreTrainedModel]:
        trunk = None if self.critic is None else self.critic.trunk
        return [self.model] if trunk is None else [self.model, trunk]

    @functools.cached_property
    def scoring(self) -> Scoring:
        """How tokens are scored: the fastest way that is exact for this model. Where only sampling is, not needed.

        Raises:
            ModelError: No way is.
            SettingError: None that the settings allow.
        """
        return self._exact_scoring(self._hugging_face_models())

    def _exact_scoring(self, models: list[PreTrainedModel]) -> Scoring:
        settings, text_config = self.settings, models[0].config.get_text_config()
        longest = self._max_model_len or getattr(text_config, "max_position_embeddings", None)
        wanted = Wanted(
            packing=settings["packing"],
            attention=settings["attn_implementation"],
            shared_prefixes=settings["shared_prefixes"],
            exact_head=settings["head_dtype"] == "float32",
            temperature=self.temperature,
            max_tokens=longest if self._is_of_a_run else None,
            recomputes=Recomputation.is_wanted(settings),
        )
        return exact_scoring(models, self.tokenizer, wanted)

    def train(self, mode: bool = True) -> CausalLMModule:
        """Marks the module; what it scores with stays in evaluation mode, in which a policy is what it samples with."""
        self.training = mode
        return self

    def prefix_sharing(self) -> PrefixSharing | None:
        """When trajectories of a group are to share their prompt in a row; None for never.

        Raises:
            SettingError: ``shared_prefixes`` is True on a device where nothing can be shared.
        """
        device, wanted = next(self.model.parameters()).device, self.settings["shared_prefixes"]
        dtype = learner_dtype(self.settings)
        if device.type != "cpu" and not serves_dtype(getattr(torch, dtype), device):
            if wanted:
                raise SettingError(
                    f"rl_module.model_config['shared_prefixes'] is True, but this learner's device is {device.type!r} "
                    f"and it multiplies in {dtype}; prompts can be shared on a CPU, and in "
                    "bfloat16 on a CUDA GPU of compute capability 8.0. Set it to None or False."
                )
            return None
        if not self.scoring.shares_prefixes:
            return None
        return PrefixSharing(1.0 if wanted else MIN_TOKEN_RATIO, max_segment_tokens=self.scoring.window)

    def get_non_inference_attributes(self) -> list[str]:
        """What sampling does not need and engines are never sent: the critic."""
        return [] if self.critic is None else ["critic"]

    def policy_parameters(self) -> list[torch.nn.Parameter]:
        """The language model's parameters, of one with an adapter the adapter's alone.

        Those a critic shares are here and not in ``critic_parameters``.
        """
        return list(self.model.parameters()) if self.adapter is None else self.adapter.parameters()

    def get_state(self, *args: Any, inference_only: bool = False, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state; of a policy with an adapter, what sampling needs is the merged model."""
        if inference_only and self.adapter is not None:
            merged = whole_state(self.model, self.adapter.merged_state())
            return {f"model.{name}": convert_to_numpy(tensor) for name, tensor in merged.items()}
        if is_sharded(self):
            left_out = tuple(f"{name}." for name in self.get_non_inference_attributes() if inference_only)
            return {n: convert_to_numpy(t) for n, t in whole_state(self).items() if not n.startswith(left_out)}
        state: dict[str, Any] = super().get_state(*args, inference_only=inference_only, **kwargs)
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """RLlib's, which passes over names that it does not know: of the policy, all must be there.

        Raises:
            ModelError: They are not; with an adapter the names are others than without.
        """
        missing = [name for name in self.state_dict() if name.startswith("model.") and name not in state]
        if missing:
            raise ModelError(
                f"the state lacks {len(missing)} of this policy's tensors, {missing[0]!r} for one: it was taken with "
                "other targets of rl_module.model_config['lora'], or with None. Set it as it was."
            )
        if is_sharded(self):
            self.load_state_dict(shares_of(self, convert_to_torch_tensor(state)), strict=False)
            return
        super().set_state(state)

    def shard(self, device: torch.device | str) -> None:
        """Leaves this process its share of the parameters; every learner calls it. See ``modules.sharding``.

        Raises:
            ModelError: The model cannot be sharded; nothing else would be as exact, or end.
        """
        name = type(self.model).__name__
        if self.scoring.rows is Rows.SINGLE and not self.inference_only:
            raise ModelError(
                f"{name} cannot be sharded: it is scored in one forward pass for each segment, and learners that share "
                "their weights must make the same number of them. Train it with learners(sharding='none')."
            )
        was_cut = is_sharded(self)
        self._check_none_may_miss()
        shard(self, self._hugging_face_models(), passes=("_forward", "compute_values"), device=device)
        if was_cut and not self.inference_only:  # only now can it compute
            self._freeze_unreached()
            self._check_none_may_miss()

    def _check_none_may_miss(self) -> None:
        if self.reach.may_miss:
            raise ModelError(
                f"{type(self.model).__name__} cannot be sharded: a pass may leave a trained parameter without a "
                "gradient, as an expert without a token, and learners that share their weights must exchange the same "
                "ones. Train it with learners(sharding='none')."
            )

    def critic_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that are the critic's alone; none without a critic, the value head's with shared layers."""
        return [] if self.critic is None else list(self.critic.parameters())

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Values the state before each sampled token, without scoring the tokens.

        Args:
            batch: One packed row; see ``columns``.
            embeddings: [L, D] last hidden states at the loss positions, if they are known already: of the critic's own
                trunk, or of the policy's when layers are shared. None computes them.

        Returns:
            float32 [L], in units of return.

        Raises:
            SettingError: The algorithm has no critic.
        """
        if self.critic is None:
            raise SettingError(
                "compute_values: this algorithm has no critic, so its module (model_config without use_critic, or "
                "built for inference only) values nothing. Use an algorithm with a critic, such as LanguagePPO."
            )
        with self._autocast(batch):
            if embeddings is None:
                trunk = trunk_of(self.model) if self.critic.trunk is None else self.critic.trunk
                embeddings = trunk_states(trunk, batch, self.scoring)
            values_L: Tensor = self.critic(embeddings)
        return values_L

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """``_forward``, with as few activations recomputed as the limit on them allows."""
        if self.recomputation is not None and torch.is_grad_enabled():
            longest = max(batch[columns.SEGMENT_LENGTHS], default=0)
            self.recomputation.fit(
                num_cells(batch, self.scoring), lambda tokens: self._scores(short_row(batch, tokens)), longest
            )
        return self._forward(batch, **kwargs)

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """Scores one packed row; see ``columns`` for names and shapes.

        Returns:
            ``logp`` and ``entropy``, float32 [L], at the policy's sampling temperature; with a critic also ``values``,
            float32 [L]: of the state *before* each sampled token, the one the policy chose it in.

        Raises:
            ModelError: A segment is longer than the model's log-probabilities are defined for.
        """
        check_length(batch, self.scoring, type(self.model).__name__)
        # A pass that is longer than any before is watched: models take shortcuts by length, too.
        longest, gradient = max(batch[columns.SEGMENT_LENGTHS]), torch.is_grad_enabled()
        if longest <= self._longest_checked[gradient]:
            return self._scores(batch)
        self._longest_checked[gradient] = longest
        models = self._hugging_face_models()
        return checked_pass(models, lambda: self._scores(batch), may_repeat=not is_sharded(self))

    def _scores(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        with self._autocast(batch):
            logp_L, entropy_L, hidden_LD = score(
                self.model,
                batch,
                self.scoring,
                temperature=self.temperature,
                exact_head=self.settings["head_dtype"] == "float32",
                keep_states=self.critic is not None and self.critic.trunk is None,
            )
            out = {columns.LOGP: logp_L, columns.ENTROPY: entropy_L}
            # In the same forward pass: DistributedDataParallel must see every parameter at work.
            if self.critic is not None:
                if self.critic.trunk is not None:
                    hidden_LD = trunk_states(self.critic.trunk, batch, self.scoring)
                out[columns.VALUES] = self.critic(hidden_LD)
        return out

    def _autocast(self, batch: dict[str, Any]) -> torch.autocast:
        device = batch[columns.TOKEN_IDS].device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=learner_dtype(self.settings) == "bfloat16")

    def save_to_path(
        self,
        path: str | pathlib.Path | None = None,
        *,
        state: dict[str, Any] | None = None,
        filesystem: Any = None,
        use_msgpack: bool = False,
    ) -> str:
        """Saves a Hugging Face folder: float32 weights, and all else as it was loaded.

        Of a policy with an adapter, the adapter as peft saves it. A critic goes to ``critic.CRITIC_FILE`` below it.
        ``state`` and ``use_msgpack`` are RLlib's; what is written is always the module as it is, and always the same
        files.
        """
        saved = pathlib.Path(tempfile.mkdtemp() if path is None else path)
        if filesystem is None or isinstance(filesystem, pyarrow.fs.LocalFileSystem):
            saved.mkdir(parents=True, exist_ok=True)
            self._write(saved)
        else:
            with tempfile.TemporaryDirectory() as folder:
                self._write(pathlib.Path(folder))
                filesystem.create_dir(str(saved), recursive=True)
                copy_files(folder, str(saved), filesystem)
        return str(saved)

    def _write(self, folder: pathlib.Path) -> None:
        self.write_folder(folder)
        if self.critic is not None:
            self.critic.save(folder)

    @classmethod
    def from_checkpoint(cls, path: str | pathlib.Path, filesystem: Any = None, **_: Any) -> CausalLMModule:
        """A module with the policy that ``save_to_path`` wrote, to sample and score with; a critic is left out.

        Raises:
            ModelError: The folder holds no causal language model.
        """
        if filesystem is None:
            return cls(inference_only=True, model_config={"path": str(path)})
        with tempfile.TemporaryDirectory() as folder:
            copy_files(str(path), folder, None, source_filesystem=filesystem)
            return cls(inference_only=True, model_config={"path": folder})

    def write_folder(self, folder: str | pathlib.Path) -> None:
        """Writes the policy into an existing local folder: its weights, and all else as it was loaded.

        Of a policy with an adapter, the adapter; the model it belongs to is named, not copied.
        """
        if self.adapter is not None:
            self.adapter.write(folder)
            return
        if is_sharded(self.model):
            write_shares(self._files, self.model, folder)
        else:
            self._files.write(self.model, folder)

    def restore_from_path(
        self, path: str | pathlib.Path, *, component: str | None = None, filesystem: Any = None, **_: Any
    ) -> None:
        """Loads the weights of a folder that ``save_to_path`` wrote, or without a critic of any Hugging Face folder.

        A critic in the folder is passed over by a module that has none.

        Raises:
            ModelError: The folder holds another architecture or adapter, or no critic where this module has one.
        """
        if filesystem is None or isinstance(filesystem, pyarrow.fs.LocalFileSystem):
            read_policy(self, pathlib.Path(path), source=str(path))
            return
        with tempfile.TemporaryDirectory() as folder:
            copy_files(str(path), folder, None, source_filesystem=filesystem)
            read_policy(self, pathlib.Path(folder), source=str(path))
