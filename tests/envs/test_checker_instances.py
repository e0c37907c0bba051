"""The contract checker with an environment that is made already, wrapped or not, and with what is none."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import gymnasium
import pytest
from gymnasium.wrappers import Autoreset, OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit

from gspo_rllib import ChatSpec
from gspo_rllib.envs import UnicodeText, check_language_env
from gspo_rllib.errors import EnvError, SettingError

CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"
NOT_COMPARED = "not checked, since it takes a second environment"
NOT_CLOSED = "close() was not checked: the environment is yours, and stays open"


class SayIt(gymnasium.Env[str, str]):
    """Names a number that has to be said."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "blocking": False}
    chat: Any = ChatSpec(system_prompt="Say the number.")
    closed = 0

    def __init__(self, largest: int = 1000) -> None:
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.largest, self.number, self.turn = largest, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        asked = (options or {}).get("task_id")
        self.number = int(self.np_random.integers(self.largest)) if asked is None else int(asked)
        self.turn = 0
        return f"say {self.number}", {"task_id": str(self.number)}

    def step(self, action: str) -> Any:
        self.turn += 1
        right = action == str(self.number)
        over = right or self.turn == 6
        info = {"valid_action": True} | ({"success": right} if over else {})
        return f"no, turn {self.turn}", float(right), right, over and not right, info

    def expert(self) -> Any:
        return lambda observation: observation.removeprefix("say ")

    def close(self) -> None:
        self.closed += 1


class Shout(gymnasium.ObservationWrapper[str, str, str]):
    def observation(self, observation: str) -> str:
        return observation.upper()


class ShoutKnowingly(Shout):
    def expert(self) -> Any:
        return lambda observation: observation.removeprefix("SAY ")


class ShoutWithoutExpert(Shout):
    expert = None


class Halved(gymnasium.RewardWrapper[str, str]):
    def reward(self, reward: Any) -> float:
        return float(reward) / 2


class Stripped(gymnasium.ActionWrapper[str, str, str]):
    def action(self, action: str) -> str:
        return action.strip()


class OnlyDigits(gymnasium.ActionWrapper[str, str, str]):
    def action(self, action: str) -> str:
        return str(int(action))


class InfiniteReward(gymnasium.RewardWrapper[str, str]):
    def reward(self, reward: Any) -> float:
        return float("inf")


class OddChat(gymnasium.Wrapper[str, str, str, str]):
    chat = "be brief"


class Forgetful(gymnasium.Wrapper[str, str, str, str]):
    """Hands the task_id on to nobody."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return self.env.reset(seed=seed)


class Drifting(gymnasium.Wrapper[str, str, str, str]):
    """Carries something over from one episode to the next."""

    resets = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.resets += 1
        observation, info = self.env.reset(seed=seed, options=options)
        return f"{observation} ({self.resets})", info


class Lucky(gymnasium.RewardWrapper[str, str]):
    def reward(self, reward: Any) -> float:
        random.random()
        return float(reward)


class Coin(gymnasium.Env[int, int]):
    """Speaks numbers; a wrapper makes text of them."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Discrete(8)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.coin = int(self.np_random.integers(8))
        return self.coin, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        return self.coin, float(action == self.coin % 2), True, False, {}


class CoinInWords(gymnasium.Wrapper[str, str, int, int]):
    def __init__(self, env: gymnasium.Env[int, int]) -> None:
        super().__init__(env)
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return f"coin {observation}", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, *rest = self.env.step(int("odd" in action))
        return f"coin {observation}", *rest


class ClosedForGood(SayIt):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        if self.closed:
            raise ValueError("the socket is closed")
        return super().reset(seed=seed, options=options)


def test_an_environment_is_checked_as_far_as_one_can_be_and_the_report_says_what_was_not() -> None:
    report = check_language_env(SayIt())
    assert report.name == "<SayIt instance>"
    assert "a seed fixes the task" in report.passed
    assert "its expert solves its tasks" in report.passed
    assert len(report.passed) == 11, "all twelve but close()"
    first, second = report.notes
    assert first.startswith(NOT_COMPARED)
    assert "Pass the id, the class or a function that makes it" in first
    assert second == NOT_CLOSED


def test_an_environment_of_the_caller_stays_open_and_usable_even_where_it_fails() -> None:
    for env in (SayIt(), InfiniteReward(SayIt())):
        try:
            check_language_env(env)
        except EnvError:
            assert isinstance(env, InfiniteReward)
        assert env.unwrapped.closed == 0  # type: ignore[attr-defined]
        assert env.reset(seed=3)[0] == SayIt().reset(seed=3)[0]


def test_what_is_made_for_the_check_is_closed() -> None:
    made: list[SayIt] = []

    def make() -> SayIt:
        made.append(SayIt())
        return made[-1]

    assert NOT_CLOSED not in check_language_env(make).notes
    assert all(env.closed for env in made)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gymnasium.make(CALCULATOR, operations=2),
        lambda: gymnasium.make(CALCULATOR, operations=2, max_episode_steps=5),
        lambda: TimeLimit(OrderEnforcing(PassiveEnvChecker(SayIt())), 4),
    ],
)
def test_what_gymnasium_make_puts_around_an_environment_goes_unmentioned(make) -> None:
    report = check_language_env(make())
    assert len(report.notes) == 2
    assert len(report.passed) == 11


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: TimeLimit(Halved(OrderEnforcing(Stripped(env))), 5),
        lambda env: OrderEnforcing(ShoutKnowingly(TimeLimit(env, 5))),
        lambda env: Autoreset(RecordEpisodeStatistics(env)),
    ],
)
def test_a_wrapped_environment_is_played_through_its_wrappers(wrap) -> None:
    env = wrap(SayIt())
    by_instance, by_function = check_language_env(env), check_language_env(lambda: wrap(SayIt()))
    assert "its expert solves its tasks" in by_instance.passed
    assert len(by_function.passed) == 12
    (note,) = by_function.notes
    assert note.startswith("Gymnasium's own checker saw <SayIt instance> without its wrappers (")
    assert note in by_instance.notes


def test_a_wrapper_makes_text_of_an_environment_that_speaks_numbers() -> None:
    report = check_language_env(CoinInWords(Coin()))
    assert report.notes[0] == (
        "Gymnasium's own checker saw <Coin instance> without its wrappers (CoinInWords), as Gymnasium recommends; all "
        "other checks saw the whole"
    )
    with pytest.raises(EnvError, match=r"its observation_space is Discrete\(8\)"):
        check_language_env(TimeLimit(Coin(), 3))


def test_a_wrapper_decides_whether_there_is_an_expert() -> None:
    assert (
        "no expert(): a policy cannot be warm-started by imitation"
        in check_language_env(ShoutWithoutExpert(SayIt())).notes
    )
    with pytest.raises(EnvError, match=r"does not solve task seed=0 .*a wrapper that changes what is said"):
        check_language_env(TimeLimit(Shout(SayIt()), 5))


@pytest.mark.parametrize(
    ("env", "parts"),
    [
        (OddChat(TimeLimit(SayIt(), 5)), ["attribute chat is 'be brief'", "ChatSpec"]),
        (OrderEnforcing(InfiniteReward(SayIt())), ["reward inf", "finite"]),
        (TimeLimit(OnlyDigits(SayIt()), 5), ["raises ValueError", "an action that cannot be understood costs a turn"]),
        (OrderEnforcing(Drifting(SayIt())), ["reset(seed=0) and the same actions gave another turn 0"]),
        (Forgetful(SayIt()), ["task_id", "whatever the seed"]),
        (Lucky(SayIt()), ["global random state"]),
        (TimeLimit(SayIt(largest=1), 5), ["20 seeds gave one and the same task"]),
    ],
    ids=lambda value: str(value) if isinstance(value, gymnasium.Env) else "",
)
def test_what_breaks_the_contract_anywhere_in_the_chain_is_found(env, parts) -> None:
    with pytest.raises(EnvError) as caught:
        check_language_env(env)
    for part in (*parts, "Remedy", str(env)):
        assert part in str(caught.value)


def test_an_expert_that_raises_or_returns_no_text_is_a_finding() -> None:
    class Raises(SayIt):
        def expert(self) -> Any:
            return lambda observation: {}[observation]

    class Numbers(SayIt):
        def expert(self) -> Any:
            return lambda observation: 7

    with pytest.raises(EnvError, match=r"its expert raises KeyError.*Remedy: correct the expert"):
        check_language_env(Raises())
    with pytest.raises(EnvError, match=r"its expert answers 'say \d+' with 7\. Remedy: return a str"):
        check_language_env(Numbers())


def test_an_expert_that_a_time_limit_cuts_off_has_solved_nothing() -> None:
    with pytest.raises(EnvError, match=r"its expert does not solve task seed=0 \(3 turns\)"):
        check_language_env(gymnasium.make(CALCULATOR, operations=6, max_episode_steps=3))


def test_settings_cannot_be_given_for_what_is_made_already() -> None:
    with pytest.raises(SettingError) as caught:
        check_language_env(SayIt(), largest=5)
    for part in ("<SayIt instance> is made already", "{'largest': 5}", "its id, its class or a function"):
        assert part in str(caught.value)


def test_an_environment_that_was_closed_is_told_apart_from_a_broken_one() -> None:
    env = ClosedForGood()
    env.close()
    with pytest.raises(EnvError, match=r"reset\(seed=0\) raises ValueError: the socket is closed.*that is open"):
        check_language_env(env)


def test_a_function_that_hands_out_one_environment_again_and_again_is_refused() -> None:
    env = SayIt()
    with pytest.raises(EnvError, match=r"returned the same environment twice.*pass the environment itself"):
        check_language_env(lambda: env)


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        (None, ["got None, a NoneType", "a Gymnasium id such as"]),
        ("", ["got '', a str", "a Gymnasium id such as"]),
        ({"env": CALCULATOR, "operations": 2}, ["a dict", "Settings are keyword arguments beside it"]),
        (7, ["got 7, a int", "or an environment"]),
        ("gspo_rllib.envs:gspo_rllib/Calculate-v0", ["could not be made", "Calculate"]),
        (dict, ["dict breaks", "it is a dict", "gymnasium.Env"]),
        (gymnasium.Env, ["its observation_space is None"]),
        (TimeLimit, ["TimeLimit could not be made with {}"]),
        (lambda: None, ["it is a NoneType", "gymnasium.Env"]),
        (lambda: gymnasium.vector.SyncVectorEnv([SayIt]), ["a vector of 1 environments", "Pass one of them"]),
    ],
)
def test_what_is_no_environment_is_refused_with_what_is_allowed(wrong, parts) -> None:
    with pytest.raises(EnvError) as caught:
        check_language_env(wrong)
    for part in parts:
        assert part in str(caught.value)


def test_a_vector_environment_is_refused() -> None:
    vector = gymnasium.vector.SyncVectorEnv([SayIt, SayIt])
    with pytest.raises(EnvError, match=r"a vector of 2 environments, but an env runner plays each by itself"):
        check_language_env(vector)  # type: ignore[arg-type]
