"""Gymnasium environments in plain text, one per file.

Importing this module registers them, so an id that names the module works in any process, a fresh Ray worker too:
``gymnasium.make("gspo_rllib.envs:gspo_rllib/Calculator-v0", operations=6)``.

For an environment of your own: ``UnicodeText`` and ``check_language_env`` here, tools and ``ToolEnv`` in
``gspo_rllib.envs.tools``, the checks of answers in ``gspo_rllib.envs.verifiers``.
"""

from __future__ import annotations

import gymnasium

from gspo_rllib.envs.checker import LanguageEnvReport as LanguageEnvReport
from gspo_rllib.envs.checker import check_language_env as check_language_env
from gspo_rllib.envs.spaces import UnicodeText as UnicodeText

if __name__ != "gspo_rllib.envs":
    raise ImportError(
        f"imported as {__name__!r}: this folder is the package 'gspo_rllib.envs', and a second copy under another name "
        "would register every environment twice. Import gspo_rllib.envs."
    )

gymnasium.register(id="gspo_rllib/Arithmetic-v0", entry_point="gspo_rllib.envs.arithmetic:ArithmeticEnv")
gymnasium.register(id="gspo_rllib/Bisection-v0", entry_point="gspo_rllib.envs.bisection:BisectionEnv")
gymnasium.register(id="gspo_rllib/Calculator-v0", entry_point="gspo_rllib.envs.calculator:CalculatorEnv")
gymnasium.register(id="gspo_rllib/Dataset-v0", entry_point="gspo_rllib.envs.dataset:DatasetEnv")
gymnasium.register(id="gspo_rllib/Mastermind-v0", entry_point="gspo_rllib.envs.mastermind:MastermindEnv")
gymnasium.register(id="gspo_rllib/PythonTool-v0", entry_point="gspo_rllib.envs.python_tool:PythonToolEnv")
gymnasium.register(id="gspo_rllib/Quest-v0", entry_point="gspo_rllib.envs.quest:QuestEnv")
gymnasium.register(id="gspo_rllib/Recall-v0", entry_point="gspo_rllib.envs.recall:RecallEnv")
gymnasium.register(id="gspo_rllib/SQL-v0", entry_point="gspo_rllib.envs.sql:SQLEnv")
gymnasium.register(id="gspo_rllib/Shell-v0", entry_point="gspo_rllib.envs.shell:ShellEnv")

# Other packages' environments: each package is imported when its environment is made.
gymnasium.register(id="gspo_rllib/BabyAI-v0", entry_point="gspo_rllib.envs.adapters.babyai:BabyAIEnv")
gymnasium.register(id="gspo_rllib/OpenEnv-v0", entry_point="gspo_rllib.envs.adapters.openenv:OpenEnvEnv")
gymnasium.register(
    id="gspo_rllib/ReasoningGym-v0", entry_point="gspo_rllib.envs.adapters.reasoning_gym:ReasoningGymEnv"
)
gymnasium.register(id="gspo_rllib/ScienceWorld-v0", entry_point="gspo_rllib.envs.adapters.scienceworld:ScienceWorldEnv")
gymnasium.register(id="gspo_rllib/TextArena-v0", entry_point="gspo_rllib.envs.adapters.textarena:TextArenaEnv")
gymnasium.register(
    id="gspo_rllib/TextWorldExpress-v0", entry_point="gspo_rllib.envs.adapters.textworld_express:TextWorldExpressEnv"
)
