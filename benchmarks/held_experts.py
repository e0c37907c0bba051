"""Routing replay of every family of mixtures that transformers has: do tokens go where they are held to?

    .venv/bin/python benchmarks/held_experts.py
    .venv/bin/python benchmarks/held_experts.py --only gpt_oss,deepseek_v3

Tiny random models in float32 on a CPU (``family_models.py``). While the weights are those of the pass that was noted, a
pass that is held must have its log-probabilities and gradient: *gap* is the largest difference, 0 to the bit. Then
every router is turned round, so that tokens would go elsewhere: *held* says that they go where they went. Some minutes.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from family_models import build, families
from family_play import made_up
from torch import Tensor
from transformers.utils import logging as transformers_logging

from gspo_rllib import columns
from gspo_rllib.errors import GSPOError
from gspo_rllib.modules.causal_lm import CausalLMModule
from gspo_rllib.modules.routing import expert_layers, experts_of
from gspo_rllib.modules.routing_replay import RoutingReplay
from gspo_rllib.packing import empty_row, pack


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each mixture, and returns how many were not held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="families, separated by commas")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    found = [line for family in (args.only.split(",") if args.only else families()) if (line := of(family))]
    for kind in ("held,", "refused:", "WRONG"):
        print(f"{sum(kind in line for line in found)} {kind.rstrip(',:')}")
    return sum("WRONG" in line for line in found)


def of(family: str) -> str | None:
    """What was found of a family, printed too; None where it is no mixture or was not built."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            expert_layers(build(family, pathlib.Path(folder)))
            module = CausalLMModule(model_config={"path": folder})
        except Exception:  # noqa: BLE001  # no mixture that tells its experts; what else is refused is in families.py
            return None
        try:
            said = looked_at(module)
        except GSPOError as error:
            said = f"refused: {error}".replace(folder, "MODEL")[:160]
        except Exception as error:  # noqa: BLE001  # whatever else a foreign model raises
            said = f"WRONG {type(error).__name__}: {error}"[:160]
    line = f"{family:24} {module.scoring.rows.value:32} {said}"
    print(line, flush=True)
    return line


def looked_at(module: CausalLMModule) -> str:
    """Notes a row of four trajectories, holds it, and turns the routers round."""
    row = pack([made_up("a", i, [4, 4 + 4 * i, 3, 8 - i]) for i in range(4)])
    free = scored(module, row)
    replay = RoutingReplay(module, empty_row())
    with replay.noted(row), torch.no_grad():
        module.forward_train(row)
    before = experts_of(module, row)
    with replay.held(row):
        held = scored(module, row)
    gap = max(float((a - b).abs().max()) for a, b in zip(free, held, strict=True))
    with torch.no_grad():
        for parameter in {p for router in replay.routers for p in router.parameters()}:
            parameter.neg_()
    turned = experts_of(module, row)
    with replay.held(row):
        after = experts_of(module, row)
    share = sum(float((a != b).any(dim=-1).sum()) for a, b in zip(before, turned, strict=True))
    share /= sum(len(layer) for layer in before)
    stays = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    word = "held" if stays and share and len(held) == len(free) else "WRONG"
    return f"{word}, gap {gap:.1e}; {share:.0%} of the tokens would go elsewhere"


def scored(module: CausalLMModule, row: dict[str, Any]) -> list[Tensor]:
    """Log-probabilities of sampled tokens, and every gradient."""
    module.zero_grad(set_to_none=True)
    logp_L = module.forward_train(row)[columns.LOGP]
    (logp_L * row[columns.ADVANTAGES]).sum().backward()
    return [logp_L.detach(), *(p.grad.clone() for p in module.model.parameters() if p.grad is not None)]


if __name__ == "__main__":
    sys.exit(main())
