"""The critic: what a state is worth, read from hidden states of a language model.

Shapes:  L sampled tokens of a row · D hidden.
Source:  Schulman et al. 2017, arXiv:1707.06347v2, section 5: the value function, with or without shared layers.
"""

from __future__ import annotations

import copy
import pathlib

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor
from transformers import PreTrainedModel

from gspo_rllib.errors import ModelError
from gspo_rllib.modules.hidden_states import trunk_of
from gspo_rllib.modules.sharding import device_of_shares, is_sharded, share_of, together, whole_state

CRITIC_FILE = pathlib.PurePosixPath("critic/critic.safetensors")
"""Where a saved policy's folder keeps the critic. Not beside the policy's own files: engines such as vLLM load every
``*.safetensors`` they find there, and would take the critic's weights for the policy's."""


class Critic(torch.nn.Module):
    """A value head, on a trunk of its own or on the policy's hidden states.

    Attributes:
        trunk: The policy's layers without its head, copied as they are loaded; None when the policy's are shared.
        value_head: From a hidden state to its value. Zero at first: an untrained critic says 0, not noise.
    """

    def __init__(self, policy: PreTrainedModel, *, share_layers: bool) -> None:
        """Builds an untrained critic.

        Args:
            policy: A freshly loaded model; the trunk has its own attention and keeps its activations.
            share_layers: Read the policy's hidden states instead of a copy's: half the memory, but the two losses
                pull at the same weights.
        """
        super().__init__()
        self.trunk: PreTrainedModel | None = None if share_layers else copy.deepcopy(trunk_of(policy))
        head = policy.get_output_embeddings()
        # What the head multiplies is what the last layer returns, also where config.hidden_size is another width.
        width = policy.config.get_text_config().hidden_size if head is None else head.weight.shape[-1]
        self.value_head = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)

    def forward(self, hidden_LD: Tensor) -> Tensor:
        """The values of states.

        Args:
            hidden_LD: Last hidden states of the trunk (of the policy's, when shared), at the states' last tokens.

        Returns:
            float32 [L], in units of return, also under autocast: bfloat16 could not tell nearby returns apart.
        """
        with torch.autocast(hidden_LD.device.type, enabled=False):
            values_L: Tensor = self.value_head(hidden_LD.float()).squeeze(-1)
        return values_L

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes ``CRITIC_FILE`` into a folder."""
        file = pathlib.Path(folder) / CRITIC_FILE
        if is_sharded(self):
            state = whole_state(self)
            with together(device_of_shares(self)):
                if state:  # in the first process
                    file.parent.mkdir(parents=True, exist_ok=True)
                    save_file(state, file)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        save_model(self, str(file))

    def load(self, folder: str | pathlib.Path, *, source: str) -> None:
        """Reads back what ``save`` wrote.

        Args:
            folder: Local folder with ``CRITIC_FILE`` in it.
            source: What to call the folder in errors.

        Raises:
            ModelError: The file is damaged, or holds another critic.
        """
        try:
            file = pathlib.Path(folder) / CRITIC_FILE
            if is_sharded(self):
                own = self.state_dict()
                with safe_open(file, framework="pt") as saved:
                    shares = {n: share_of(saved.get_tensor(n), own.get(n)) for n in saved.keys()}  # noqa: SIM118
                self.load_state_dict(shares)
            else:
                load_model(self, file)
        except (RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{source}/{CRITIC_FILE} holds another critic than this module's (is vf_share_layers the one it was "
                f"saved with?), or is damaged: {str(error)[:400]}"
            ) from error
