"""Checkpoints as data: which folder is one of ours, whether all of it is there, and what is in it.

A checkpoint is JSON and safetensors and nothing else: the policy as a Hugging Face folder, one ``state.json`` with its
``state.safetensors`` per component, the config with code in it by name only, and a manifest that is written last.
Loading one runs none of its bytes. Checkpoints of 0.1 hold pickles, which load with ``trust_pickle=True`` only.
"""

from __future__ import annotations

from gspo_rllib.checkpoints.code import register as register
from gspo_rllib.checkpoints.manifest import MANIFEST as MANIFEST
from gspo_rllib.checkpoints.manifest import POLICY as POLICY
from gspo_rllib.checkpoints.manifest import REFERENCE as REFERENCE
from gspo_rllib.checkpoints.manifest import is_pickled as is_pickled
from gspo_rllib.checkpoints.manifest import policy_folder as policy_folder
from gspo_rllib.checkpoints.manifest import verify as verify
from gspo_rllib.checkpoints.manifest import weights_version as weights_version
from gspo_rllib.checkpoints.manifest import write_manifest as write_manifest
from gspo_rllib.checkpoints.manifest import write_reference as write_reference
from gspo_rllib.checkpoints.pickled import RENAMED_SETTINGS as RENAMED_SETTINGS
from gspo_rllib.checkpoints.pickled import self_contained_config as self_contained_config
