"""GSPO for multi-turn language agents on Ray RLlib, with vLLM-backed env runners.

    from gspo_rllib import GSPOConfig

The names below are for training and for extending: environment, agent, tool, verifier, engine, loss, algorithm.
Importing this package loads neither ray, torch, transformers nor vllm: each public name is imported when it is first
used. Using any algorithm or its config also registers all of them with Ray Tune.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Every public name, once. Type checkers and editors take these imports as they are. At run time they are not executed:
# the functions below read the same lines to know which module has a name. A table of names for the run time or __all__
# would be a second list to keep equal, and a stub file would hide this file from type checkers.
if TYPE_CHECKING:
    from gspo_rllib.agents.agent_session import AgentSession as AgentSession
    from gspo_rllib.agents.result import AgentResult as AgentResult
    from gspo_rllib.algorithms import CISPO as CISPO
    from gspo_rllib.algorithms import DAPO as DAPO
    from gspo_rllib.algorithms import GMPO as GMPO
    from gspo_rllib.algorithms import GRPO as GRPO
    from gspo_rllib.algorithms import GSPO as GSPO
    from gspo_rllib.algorithms import RLOO as RLOO
    from gspo_rllib.algorithms import CISPOConfig as CISPOConfig
    from gspo_rllib.algorithms import DAPOConfig as DAPOConfig
    from gspo_rllib.algorithms import DrGRPO as DrGRPO
    from gspo_rllib.algorithms import DrGRPOConfig as DrGRPOConfig
    from gspo_rllib.algorithms import GMPOConfig as GMPOConfig
    from gspo_rllib.algorithms import GRPOConfig as GRPOConfig
    from gspo_rllib.algorithms import GSPOConfig as GSPOConfig
    from gspo_rllib.algorithms import LanguagePPO as LanguagePPO
    from gspo_rllib.algorithms import LanguagePPOConfig as LanguagePPOConfig
    from gspo_rllib.algorithms import PolicyGradient as PolicyGradient
    from gspo_rllib.algorithms import PolicyGradientConfig as PolicyGradientConfig
    from gspo_rllib.algorithms import RLOOConfig as RLOOConfig
    from gspo_rllib.algorithms.policy_gradient.learner import PolicyGradientLearner as PolicyGradientLearner
    from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings as TrainingSettings
    from gspo_rllib.configs import load_config as load_config
    from gspo_rllib.driver.group_file import load_groups as load_groups
    from gspo_rllib.driver.group_file import save_groups as save_groups
    from gspo_rllib.engines.protocol import Engine as Engine
    from gspo_rllib.engines.protocol import EngineSpec as EngineSpec
    from gspo_rllib.engines.protocol import Generation as Generation
    from gspo_rllib.engines.protocol import GenerationRequest as GenerationRequest
    from gspo_rllib.engines.registry import register_engine as register_engine
    from gspo_rllib.envs import UnicodeText as UnicodeText
    from gspo_rllib.envs import check_language_env as check_language_env
    from gspo_rllib.envs.tools import Task as Task
    from gspo_rllib.envs.tools import ToolEnv as ToolEnv
    from gspo_rllib.envs.tools import tool as tool
    from gspo_rllib.envs.verifiers import final_answer as final_answer
    from gspo_rllib.errors import GSPOError as GSPOError
    from gspo_rllib.knobs import with_defaults as with_defaults
    from gspo_rllib.learners.language_learner import LanguageLearner as LanguageLearner
    from gspo_rllib.packing import TokenTable as TokenTable
    from gspo_rllib.types import ChatSpec as ChatSpec
    from gspo_rllib.types import TokenTrajectory as TokenTrajectory
    from gspo_rllib.types import TrajectoryGroup as TrajectoryGroup
    from gspo_rllib.types import Turn as Turn
else:  # hidden from type checkers, which would take a module with __getattr__ to have every name
    import functools
    import importlib

    @functools.cache
    def _homes() -> dict[str, str]:
        """The module of each public name."""
        import ast

        tree = ast.parse(__spec__.loader.get_source(__name__))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        own = [node for node in imports if node.module.startswith(f"{__name__}.")]
        return {alias.name: node.module for node in own for alias in node.names}

    def __getattr__(name: str) -> object:
        if name == "__all__":
            return ["__version__", *_homes()]
        if name not in _homes():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_homes()[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_homes()})
