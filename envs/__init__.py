"""Gymnasium environments in plain text, one per file.

Importing this module registers them, so an id that names the module works in any process, a fresh Ray worker too:
``gymnasium.make("gspo_rllib.envs:gspo_rllib/Calculator-v0", operations=6)``.
"""

from __future__ import annotations

import gymnasium

from gspo_rllib.envs.spaces import UnicodeText as UnicodeText

if __name__ != "gspo_rllib.envs":
    raise ImportError(
        f"imported as {__name__!r}: this folder is the package 'gspo_rllib.envs', and a second copy under another name "
        "would register every environment twice. Import gspo_rllib.envs."
    )

gymnasium.register(id="gspo_rllib/Calculator-v0", entry_point="gspo_rllib.envs.calculator:CalculatorEnv")
gymnasium.register(id="gspo_rllib/Bisection-v0", entry_point="gspo_rllib.envs.bisection:BisectionEnv")
