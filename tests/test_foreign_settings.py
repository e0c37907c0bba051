"""Another library's word for a setting is answered with ours, whichever way it comes in."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.cli.main import main
from gspo_rllib.configs.run_settings import RunSettings
from gspo_rllib.configs.runs import BUILDERS
from gspo_rllib.errors import SettingError
from gspo_rllib.foreign_settings import REMEDIES, hint

CALLS = r"\b(\w+)\(((?:\w+=[^()=]*(?:\([^()]*\))?,? ?)+)\)"


def _arguments(builder: str) -> set[str]:
    return set(inspect.signature(getattr(GSPOConfig, builder)).parameters)


def test_every_remedy_names_settings_that_there_are() -> None:
    named = 0
    for remedy in set(REMEDIES.values()):
        for builder, arguments in re.findall(CALLS, remedy):
            if builder == "ChatSpec":
                continue
            names = set(re.findall(r"(\w+)=", arguments))
            assert builder in BUILDERS and names and names <= _arguments(builder), remedy
            named += 1
        for name in re.findall(r"run\.(\w+)", remedy):
            assert name in RunSettings.__dataclass_fields__, remedy
    assert named >= 20


def test_no_word_is_a_setting_that_could_have_been_meant() -> None:
    for builder in ("training", "generation"):
        settings = vars(getattr(GSPOConfig, builder))["settings"].__dataclass_fields__
        assert not REMEDIES.keys() & settings.keys()


@pytest.mark.parametrize(
    ("builder", "word", "says"),
    [
        ("training", "epsilon", "training(clip_low=..., clip_high=...)"),
        ("training", "num_generations", "training(group_size=...)"),
        ("training", "per_device_train_batch_size", "training(groups_per_iteration=...)"),
        ("training", "learning_rate", "training(lr=...)"),
        ("generation", "max_new_tokens", "generation(max_tokens_per_turn=...)"),
        ("generation", "repetition_penalty", "another distribution"),
        ("generation", "top_p", "another distribution"),
        ("env_runners", "num_samplers", "env_runners(num_env_runners=...)"),
        ("learners", "n_gpus_per_node", "learners(num_gpus_per_learner=...)"),
        ("rl_module", "model_path", "rl_module(model_config="),
    ],
)
def test_a_word_is_answered_whichever_way_it_is_set(
    builder: str, word: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SettingError, TypeError)) as called:
        getattr(GSPOConfig(), builder)(**{word: 1})
    with pytest.raises(SettingError) as updated:
        GSPOConfig().update_from_dict({word: 1})
    attribute = GSPOConfig()
    setattr(attribute, word, 1)
    with pytest.raises(SettingError) as set_on:
        attribute.validate()
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({builder: {word: 1}}))
    assert main(["validate", str(file), "--iterations", "1"]) == 1
    for said in (str(called.value), str(updated.value), str(set_on.value), capsys.readouterr().err):
        assert says in said and "Did you mean" not in said


def test_words_of_an_older_rllib_are_no_guess() -> None:
    for builder, word, says in (
        ("env_runners", "num_workers", "num_env_runners"),
        ("learners", "num_gpus", "num_gpus_per_learner"),
    ):
        with pytest.raises(TypeError, match=says):
            getattr(GSPOConfig(), builder)(**{word: 1})
    # In a dict, RLlib itself knows the first, and has a setting of the second name.
    assert GSPOConfig().update_from_dict({"num_workers": 3}).num_env_runners == 3


def test_a_misspelt_setting_still_gets_the_nearest_one() -> None:
    assert hint("groups_per_iteraton", ["groups_per_iteration", "lr"]) == "Did you mean 'groups_per_iteration'?"


def test_a_section_inside_of_a_dict_is_answered_as_one() -> None:
    with pytest.raises(SettingError, match="what it holds stands by itself in a dict"):
        GSPOConfig().evaluation(evaluation_config={"generation": {"temperature": 0}})
