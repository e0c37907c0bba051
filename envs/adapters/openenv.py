"""OpenEnv: any server that speaks the OpenEnv protocol over a websocket; one connection per environment is one session.

Observation  str, the field `observation_field` of what the server answers; all of it as JSON where that is None
Action       str, sent as the field `action_field` of the server's action
Reward       the server's, 0.0 where it gives none
Ends         terminated when the server says done; truncated after `max_turns` turns
Info         {"task_id": str} from reset; from step {"valid_action": True, "obs_role": "user"}, and at the end
             {"success": bool}, with {"truncated_by": "turns"} when truncated
Settings     url: e.g. "ws://localhost:8000/ws"; observation_field; action_field; action: dict, sent with every action;
             reset: dict, sent with every reset; success_return: the return from which an episode is a success;
             max_turns: 1 to 10,000; timeout_s: seconds to wait for an answer
Tasks        "0" to "2147483647", sent as the seed of the reset: whether it fixes the task is up to the server
Expert       none: the protocol has none
Cannot       promise that actions replay, nor pickle a connection; say which actions are valid. A lost connection or an
             error the server reports is an EnvError, and the next reset connects anew
Versions     v0, for the protocol of openenv 0.10; needs the package websockets, not openenv
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gspo_rllib.envs.adapters.suite import Outcome, SuiteEnv, encodable, load_suite
from gspo_rllib.envs.tasks import numbered_task
from gspo_rllib.errors import EnvError, SettingError

_CONNECT_TIMEOUT_S = 10.0


class OpenEnvEnv(SuiteEnv):
    """See the card at the top of this file.

    Args:
        url: Address of the server's websocket.
        observation_field: Field of the server's observation that is shown; None for all of it, as JSON.
        action_field: Field of the server's action that the reply is put in.
        action: Further fields of every action.
        reset: Further fields of every reset.
        success_return: Return from which on an episode counts as a success.
        max_turns: Turns until truncation.
        timeout_s: Seconds to wait for an answer.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: A setting is out of range.
        EnvError: websockets is missing.
    """

    metadata = SuiteEnv.metadata | {"deterministic": False, "picklable": False}

    def __init__(
        self,
        url: str,
        observation_field: str | None = None,
        action_field: str = "message",
        action: Mapping[str, Any] | None = None,
        reset: Mapping[str, Any] | None = None,
        success_return: float = 1.0,
        max_turns: int = 100,
        timeout_s: float = 60.0,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(max_turns, render_mode)
        if not isinstance(url, str) or not url.startswith(("ws://", "wss://")):
            raise SettingError(f"url={url!r}: must begin with ws:// or wss://, e.g. ws://localhost:8000/ws.")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not timeout_s > 0:
            raise SettingError(f"timeout_s={timeout_s!r}: must be a number of seconds above 0.")
        self.url, self.timeout_s, self.success_return = url, timeout_s, success_return
        self.observation_field, self.action_field = observation_field, action_field
        self._action, self._reset = dict(action or {}), dict(reset or {})
        self._websockets = load_suite("websockets.sync.client", "openenv")
        self._failures: tuple[type[Exception], ...] = (
            OSError,
            ValueError,
            load_suite("websockets.exceptions", "openenv").WebSocketException,
        )
        self._connection: Any = None
        self._return = 0.0

    def close(self) -> None:
        """Ends the session."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __getstate__(self) -> dict[str, Any]:
        raise EnvError("A connection cannot be pickled. Make the environment where it is used.")

    def _begin(self, task_id: str) -> tuple[str, dict[str, Any]]:
        seed = numbered_task({"task_id": task_id}, self.np_random)
        self._return = 0.0
        return self._shown(self._ask("reset", self._reset | {"seed": seed})), {}

    def _play(self, action: str) -> Outcome:
        answer = self._ask("step", self._action | {self.action_field: encodable(action)})
        reward = float(answer.get("reward") or 0.0)
        self._return += reward
        over = bool(answer.get("done"))
        return Outcome(self._shown(answer), reward, over=over, success=over and self._return >= self.success_return)

    def _ask(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._connection is None:
                self._connection = self._websockets.connect(self.url, open_timeout=_CONNECT_TIMEOUT_S)
            self._connection.send(json.dumps({"type": kind, "data": data}))
            answer = json.loads(self._connection.recv(timeout=self.timeout_s))
        except self._failures as error:
            self.close()
            raise EnvError(
                f"{self.url} did not answer to {kind!r} ({type(error).__name__}: {error}). Is the server running, and "
                f"is timeout_s={self.timeout_s} enough for it?"
            ) from error
        if not isinstance(answer, dict) or answer.get("type") != "observation":
            raise EnvError(f"{self.url} answered to {kind!r}: {json.dumps(answer)[:300]}. Expected an observation.")
        observation: dict[str, Any] = answer["data"]
        return observation

    def _shown(self, answer: dict[str, Any]) -> str:
        seen = answer.get("observation")
        if self.observation_field is None:
            return seen if isinstance(seen, str) else json.dumps(seen, ensure_ascii=False)
        if not isinstance(seen, dict) or self.observation_field not in seen:
            known = sorted(seen) if isinstance(seen, dict) else type(seen).__name__
            raise EnvError(f"observation_field={self.observation_field!r}: the server's observation has {known}.")
        return str(seen[self.observation_field])
