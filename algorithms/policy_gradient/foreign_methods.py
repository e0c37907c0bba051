"""Methods of RLlib's ``Algorithm`` that belong to its older ways, and what does the same here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP, COMPONENT_RL_MODULE

from gspo_rllib.algorithms.policy_gradient.rllib_absent import ONE_POLICY, RECORDED
from gspo_rllib.errors import SettingError

_EXPORT = "save_to_path saves a checkpoint, and `gspo-rllib export` makes a Hugging Face folder of one."


def _refusing(name: str, remedy: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise SettingError(f"{name}: {remedy}")

    refuse.__name__, refuse.__doc__ = name, f"Refused: {remedy}"
    return refuse


class RefusesOldCalls:
    """Comes before RLlib's ``Algorithm`` among the bases."""

    set_state: Callable[[dict[str, Any]], None]

    get_policy = _refusing("get_policy", "policies are of RLlib's old API stack; use get_module().")
    compute_actions = _refusing("compute_actions", "use generate([...]) for several conversations at once.")
    add_module = _refusing("add_module", ONE_POLICY)
    remove_module = _refusing("remove_module", ONE_POLICY)
    add_policy = _refusing("add_policy", ONE_POLICY)
    remove_policy = _refusing("remove_policy", ONE_POLICY)
    export_policy_model = _refusing("export_policy_model", _EXPORT)
    export_policy_checkpoint = _refusing("export_policy_checkpoint", _EXPORT)
    export_model = _refusing("export_model", _EXPORT)
    evaluate_offline = _refusing("evaluate_offline", RECORDED)

    def set_weights(self, weights: Mapping[str, Any]) -> None:
        """Gives the learners other weights; every engine holds them before this returns. The optimiser stays.

        Args:
            weights: What ``get_weights`` of a like algorithm returned.
        """
        self.set_state({COMPONENT_LEARNER_GROUP: {COMPONENT_LEARNER: {COMPONENT_RL_MODULE: dict(weights)}}})
