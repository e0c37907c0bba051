"""What an algorithm does about an update that fails for good: the batch is kept, and the last checkpoint named."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import load_groups
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.algorithms.policy_gradient.algorithm import UNFINISHED_GROUPS
from gspo_rllib.cli.recorder import RunRecorder
from gspo_rllib.cli.training_loop import TrainingLoop
from gspo_rllib.configs import Run, RunSettings
from gspo_rllib.errors import LearnersLostError
from gspo_rllib.metrics import RECOVERY
from gspo_rllib.types import TrajectoryGroup, turns
from tests.toy_envs.coin_env import CoinEnv


def _config(path: str, num_learners: int = 0) -> GSPOConfig:
    made: GSPOConfig = (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", temperature=0.7, max_tokens_per_turn=6)
        .env_runners(num_envs_per_env_runner=8)
        .learners(num_learners=num_learners)
        .training(group_size=4, groups_per_iteration=4, num_minibatches=2, lr=1e-3)
        .debugging(seed=1)
    )
    return made


def _no_memory(after: int) -> Callable[..., Any]:
    """A loss that runs out of memory in its second minibatch."""
    calls = [0]

    def compute(learner: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise MemoryError("CUDA out of memory")
        return type(learner).compute_loss_for_module(learner, **kwargs)

    return compute


def _ids(group: TrajectoryGroup) -> list[list[int]]:
    return [turn.action_token_ids.tolist() for episode in group.episodes for turn in turns(episode)]


def _loss(result: Any) -> float:
    return float(result["learners"][DEFAULT_MODULE_ID]["loss"])


def _second_loss(path: str) -> float:
    """Of the second iteration of a run that nothing disturbs."""
    algo = _config(path).build_algo()
    try:
        algo.train()
        return _loss(algo.train())
    finally:
        algo.stop()


def test_half_an_update_is_never_saved_its_groups_are_kept_and_the_run_goes_on_from_a_checkpoint(
    tiny_dense: str, tmp_path: pathlib.Path, ray_local: None
) -> None:
    algo = _config(tiny_dense).build_algo()
    try:
        assert RECOVERY not in algo.train()
        algo.save_to_path(tmp_path / "saved")
        sampled = []
        update, algo.failed_updates = algo.learner_group.update, tmp_path

        def watched(**kwargs: Any) -> Any:
            sampled[:] = kwargs["training_data"].groups
            return update(**kwargs)

        algo.learner_group.update = watched
        learner, fails = algo.learner_group._learner, _no_memory(after=1)
        learner.compute_loss_for_module = lambda **kwargs: fails(learner, **kwargs)
        with pytest.raises(
            LearnersLostError,
            match=r"^the learner raised MemoryError: CUDA out of memory \(test_outliving_learners\.py:\d+\)\. It is in "
            r"this process and may have made half of the update\. The last checkpoint is .*/saved\. The update's "
            r"groups are in .*/failed_update_000001\.jsonl: load_groups reads them, train_on trains on them\.$",
        ):
            algo.train()
        kept = list(load_groups(tmp_path / "failed_update_000001.jsonl"))
        assert [group.group_id for group in kept] == [group.group_id for group in sampled]
        assert algo.get_state(components=[])[UNFINISHED_GROUPS] == [group.group_id for group in sampled]
        for one, other in zip(kept, sampled, strict=True):
            assert _ids(one) == _ids(other)
        for refused in (lambda: algo.save_to_path(tmp_path / "half"), algo.train):
            with pytest.raises(LearnersLostError, match=r"half an update.*last checkpoint is .*/saved\."):
                refused()
        assert not (tmp_path / "half").exists()
        del learner.compute_loss_for_module
        algo.restore_from_path(tmp_path / "saved")
        again = _loss(algo.train())
    finally:
        algo.stop()
    assert again == _second_loss(tiny_dense)


def _loop(path: str, folder: pathlib.Path, num_learners: int) -> TrainingLoop:
    config = _config(path, num_learners)
    run = Run("run", config, RunSettings(iterations=3, checkpoint_every=1), {})
    folder.mkdir()
    return TrainingLoop(run, config.build_algo(), RunRecorder(folder, {}), interrupted=lambda: False, shows=False)


@pytest.mark.slow
def test_a_run_whose_update_fails_twice_saves_what_came_before_it(
    tiny_dense: str, tmp_path: pathlib.Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fault is in the batch, so to say: it comes again in the learner that was rebuilt."""
    loop = _loop(tiny_dense, tmp_path / "run", num_learners=1)
    try:
        team, update = loop.algorithm.learner_group, loop.algorithm.learner_group.update

        def arm() -> None:
            def fails(learner: Any) -> None:
                raise_memory = _no_memory(after=0)
                learner.compute_loss_for_module = lambda **kwargs: raise_memory(learner, **kwargs)

            for result in team.foreach_learner(fails):
                assert result.ok

        def second(**kwargs: Any) -> Any:
            if loop.algorithm.iteration == 1 and not (tmp_path / "armed").exists():
                (tmp_path / "armed").touch()
                arm()
                restore = team._restore
                team._restore = lambda: (restore(), arm())
                try:
                    return update(**kwargs)
                finally:
                    team._restore = restore
            return update(**kwargs)

        team.update = second
        with pytest.raises(LearnersLostError, match=r"It is the second time at the same step.*failed_update_000001"):
            loop.run()
        assert "saved" in capsys.readouterr().err
        assert (tmp_path / "run" / "failed_update_000001.jsonl").is_file()
        assert team.num_rebuilds == 2
        saved = tmp_path / "run" / "checkpoints" / "iteration_000001"
        loop.algorithm.restore_from_path(saved)
        again = _loss(loop.algorithm.train())
    finally:
        loop.close()
    assert again == _second_loss(tiny_dense)
