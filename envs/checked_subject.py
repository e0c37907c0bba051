"""What a contract check is given: one environment, or what makes as many as the check needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium

from gspo_rllib.env_maker import env_maker
from gspo_rllib.envs.checked_play import CheckedPlay, Env, broken, short
from gspo_rllib.errors import EnvError, GSPOError, SettingError, described

# gymnasium.make adds these by itself, and none of them changes what is said.
_ADDED_BY_MAKE = (gymnasium.wrappers.OrderEnforcing, gymnasium.wrappers.PassiveEnvChecker, gymnasium.wrappers.TimeLimit)


class Subject:
    """An environment that is given, or is made once per check.

    Args:
        env: A Gymnasium id, a class or function that makes an environment, or an environment, wrapped or not.
        settings: Keyword arguments it is made with; none for an environment that is made already.

    Attributes:
        name: How messages call the environment.
        is_instance: Whether one environment was given, so that there is no second one to compare with.

    Raises:
        EnvError: ``env`` is something else.
        SettingError: There are settings for an environment that is made already.
    """

    def __init__(self, env: str | Env | Callable[..., Env], settings: dict[str, Any]) -> None:
        self.is_instance = isinstance(env, gymnasium.Env)
        self._env: Any = env
        self._settings = settings
        self._made: list[Env] = []
        if self.is_instance:
            self.name = str(env)[:200]
            if settings:
                raise SettingError(
                    f"{self.name} is made already, so its settings cannot be {settings!r}. Pass its id, its class or a "
                    "function with these settings, or make it with them."
                )
        elif isinstance(env, gymnasium.vector.VectorEnv):
            raise EnvError(_vector(env))
        elif (isinstance(env, str) and env) or callable(env):
            self.name = env if isinstance(env, str) else getattr(env, "__name__", repr(env))
        else:
            raise EnvError(
                f"got {short(env)}, a {type(env).__name__}: pass a Gymnasium id such as "
                "'gspo_rllib.envs:gspo_rllib/Calculator-v0', a class or function that makes an environment, or an "
                "environment. Settings are keyword arguments beside it."
            )

    def take(self) -> CheckedPlay:
        """The environment that was given, else a new one.

        Raises:
            EnvError: It cannot be made, or what is made is no environment.
        """
        if self.is_instance:
            return CheckedPlay(self.name, self._env)
        try:
            env: Any = env_maker(self._env, self._settings)()
        except (GSPOError, KeyboardInterrupt):
            raise
        # A constructor is foreign code; whatever it raises is reported as one error.
        except BaseException as error:
            raise EnvError(f"{self.name} could not be made with {self._settings!r}: {described(error)}") from error
        if isinstance(env, gymnasium.vector.VectorEnv):
            raise EnvError(_vector(env))
        if not isinstance(env, gymnasium.Env):
            broken(self.name, f"it is a {type(env).__name__}", "subclass or wrap it as gymnasium.Env")
        if any(env is made for made in self._made):
            broken(
                self.name,
                "it returned the same environment twice",
                "make a new one at every call, or pass the environment itself",
            )
        return self.adopt(env)

    def adopt(self, env: Env) -> CheckedPlay:
        """An environment that is closed with those made here."""
        self._made.append(env)
        return CheckedPlay(self.name, env)

    def close(self) -> None:
        """Closes what was made here; an environment that was given stays open, since it is its owner's."""
        for env in self._made:
            try:
                env.close()
            except KeyboardInterrupt:
                raise
            except BaseException:  # noqa: BLE001, a broken environment may well fail to close
                pass


def wrappers(env: Env) -> list[str]:
    """The wrappers around an environment, the outermost first, without those that ``gymnasium.make`` adds by itself.

    Example:
        >>> env = gymnasium.make("gspo_rllib.envs:gspo_rllib/Bisection-v0")
        >>> wrappers(env), wrappers(gymnasium.wrappers.Autoreset(env))
        ([], ['Autoreset'])
    """
    names = []
    while isinstance(env, gymnasium.Wrapper):
        if type(env) not in _ADDED_BY_MAKE:
            names.append(type(env).__name__)
        env = env.env
    return names


def _vector(env: Any) -> str:
    return (
        f"got {short(env)}, a vector of {getattr(env, 'num_envs', 'several')} environments, but an env runner plays "
        "each by itself. Pass one of them, or what makes one."
    )
