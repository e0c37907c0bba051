"""An algorithm's checkpoint is data: whose bytes it runs, what it may name, and what a failing disk does to it."""

from __future__ import annotations

import json
import pathlib
import pickle
import resource
import shutil
import tempfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune import Checkpoint

from gspo_rllib import checkpoints
from gspo_rllib.algorithms import GRPO, GSPO, GSPOConfig
from gspo_rllib.algorithms.policy_gradient.saved_config import NAME, load_config
from gspo_rllib.checkpoints import code
from gspo_rllib.checkpoints.code import Trust
from gspo_rllib.checkpoints.codec import read_tree, write_tree
from gspo_rllib.errors import CheckpointError
from gspo_rllib.modules import CausalLMModule
from tests.toy_envs.coin_env import CoinEnv


class Counting(RLlibCallback):
    """Callbacks of the user's."""


class Module(CausalLMModule):
    """A module of the user's."""


class OwnConfig(GSPOConfig):
    """A config of the user's, with a setting that its constructor adds."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self.knob = 3


def _on_result(**_: Any) -> None:
    """A callback of the user's that is a function."""


def _config(path: str, **training: Any) -> GSPOConfig:
    config = GSPOConfig().environment(CoinEnv).rl_module(model_config={"path": path})
    return (
        config.generation(engine="transformers", temperature=0.7, max_tokens_per_turn=6)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .training(**{"group_size": 4, "groups_per_iteration": 4, "num_minibatches": 2, "lr": 1e-3, **training})
        .debugging(seed=1)
    )


def _optimizers(algo: Any) -> Any:
    return algo.learner_group.get_state(components="learner/optimizer")["learner"]["optimizer"]


def _weights(algo: Any) -> dict[str, np.ndarray]:
    state = algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]
    return {name: np.array(array) for name, array in state.items()}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else type(a) is type(b) and a == b


@pytest.fixture(scope="module")
def saved(tiny_dense: str, tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> SimpleNamespace:
    """A checkpoint after one iteration, with code of the user's in its config."""
    folder = tmp_path_factory.mktemp("saved")
    config = _config(tiny_dense).callbacks(Counting, on_train_result=_on_result)
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=Module))
    config.evaluation(evaluation_config={"temperature": 0.5, "env_config": {}})
    algo = config.build_algo()
    try:
        algo.train()
        path = pathlib.Path(algo.save_to_path(folder / "checkpoint"))
        return SimpleNamespace(path=path, weights=_weights(algo), optimizers=_optimizers(algo), config=algo.config)
    finally:
        algo.stop()


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has never seen the user's code in a config."""
    monkeypatch.setattr(code, "_registered", {})
    monkeypatch.setattr(code, "_registered_modules", set())


def test_a_checkpoint_holds_json_and_safetensors_and_runs_no_pickle_that_is_put_into_it(
    saved: SimpleNamespace, tmp_path: pathlib.Path, ray_local: None
) -> None:
    endings = {path.suffix for path in saved.path.rglob("*") if path.is_file()}
    assert endings == {".json", ".safetensors", ".jinja"}
    folder = shutil.copytree(saved.path, tmp_path / "copy")
    witness = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return (pathlib.Path.touch, (witness,))

    for name in ("class_and_ctor_args.pkl", "algorithm_state.pkl", "state.pkl", "state.msgpack"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    for load in (GSPO.from_checkpoint, Algorithm.from_checkpoint):
        algo = load(str(folder))
        try:
            assert type(algo) is GSPO
            assert algo.iteration == 1
            assert _equal(_weights(algo), saved.weights)
            assert _equal(_optimizers(algo), saved.optimizers)
            assert algo.config.callbacks_class is Counting
            assert algo.config.callbacks_on_train_result is _on_result
            assert type(algo.learner_group._learner.module[DEFAULT_MODULE_ID]) is Module
            algo.restore_from_path(folder)
        finally:
            algo.stop()
    assert not witness.exists()
    assert pickle.loads(pickle.dumps(Bomb())) is None and witness.exists()  # the pickles do what they should not


def test_rllib_s_own_algorithm_opens_a_checkpoint_as_it_was_saved(saved: SimpleNamespace) -> None:
    """RLlib's would look for a pickle first, and then call a checkpoint without one invalid."""
    for path in (saved.path, str(saved.path), Checkpoint(str(saved.path))):
        algo = Algorithm.from_checkpoint(path)
        assert (type(algo), algo.iteration) == (GSPO, 1)
        algo.stop()


def test_ray_s_checkpoint_is_read_where_it_lies(
    saved: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Ray's ``to_directory`` would copy the model into the folder of temporary files, where nobody removes it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    algo = GSPO.from_checkpoint(Checkpoint(str(saved.path)))
    algo.stop()
    assert algo.iteration == 1 and not list(tmp_path.iterdir())


def test_the_config_comes_back_as_it_was(saved: SimpleNamespace) -> None:
    _, state = load_config(saved.path, Trust())
    found, before = GSPOConfig.from_state(state), saved.config
    assert set(vars(found)) == set(vars(before)) | {"class"}
    moved = {"class", "_model_config", "algo_class", "_is_frozen", "reference_path", "_rl_module_spec", "policies"}
    different = [n for n, v in vars(before).items() if n not in moved and not _equal(getattr(found, n), v)]
    assert not different
    assert found._model_config["path"] == str(saved.path / checkpoints.POLICY)


@pytest.mark.usefixtures("stranger")
def test_code_of_a_stranger_is_named_and_run_only_when_the_caller_says_so(saved: SimpleNamespace) -> None:
    with pytest.raises(
        CheckpointError, match=r"its env is '.*CoinEnv', code that nobody here has vouched for"
    ) as refused:
        GSPO.from_checkpoint(saved.path)
    assert "trust=['tests.toy_envs.coin_env']" in str(refused.value)
    with pytest.raises(CheckpointError, match=r"Counting"):
        load_config(saved.path, Trust([CoinEnv, Module, _on_result]))
    _, state = load_config(saved.path, Trust([CoinEnv, Module, _on_result, Counting]))
    assert state["callbacks_class"] is Counting
    _, state = load_config(saved.path, Trust(["tests"]))
    assert state["env"] is CoinEnv


def _with(saved: SimpleNamespace, tmp_path: pathlib.Path, **settings: Any) -> pathlib.Path:
    """The checkpoint as someone would write it who wants something of whoever loads it."""
    folder = shutil.copytree(saved.path, tmp_path / "forged")
    tree = read_tree(folder, name=NAME)
    tree["settings"].update(settings)
    write_tree(folder, tree, name=NAME)
    checkpoints.write_manifest(folder)
    return folder


def test_a_setting_of_a_config_class_of_ones_own_comes_back_as_data(
    saved: SimpleNamespace, tmp_path: pathlib.Path
) -> None:
    trust = Trust([OwnConfig, CoinEnv, Module, Counting, _on_result])
    folder = _with(saved, tmp_path, knob=6)
    tree = read_tree(folder, name=NAME)

    def saved_as(**changes: Any) -> dict[str, Any]:
        settings = {**tree["settings"], **changes}
        write_tree(folder, {**tree, "config": code.name_of(OwnConfig), "settings": settings}, name=NAME)
        return load_config(folder, trust)[1]

    assert saved_as()["knob"] == 6
    with pytest.raises(CheckpointError, match="vouched"):
        saved_as(knob={"code of": "os:system"})
    with pytest.raises(CheckpointError, match="which no checkpoint of ours has"):
        saved_as(output="elsewhere")


def _pairs(**entries: Any) -> dict[str, Any]:
    return {"pairs": [[key, value] for key, value in entries.items()]}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"env": "results.stolen.evil:Env-v0"}, "its env is 'results.stolen.evil:Env-v0', code that nobody"),
        ({"play": "os:system"}, "its play is 'os:system', code that nobody"),
        ({"callbacks_class": {"code of": "subprocess:Popen"}}, "vouched"),
        ({"callbacks_class": {"code of": "gspo_rllib.cli.main:main"}}, "is no RLlibCallback"),
        ({"callbacks_on_train_result": {"code of": "gspo_rllib.cli.main:main"}}, "vouched"),
        ({"custom_evaluation_function": {"code of": "os:system"}}, "vouched"),
        ({"_learner_connector": {"code of": "os:system"}}, "vouched"),
        ({"_learner_class": {"code of": "ray.rllib.core.learner.learner:Learner"}}, "vouched"),
        ({"_rl_module_spec": {"module spec of": {"code of": "evil:Module"}}}, "vouched"),
        ({"env_config": _pairs(verifier="evil:f")}, "its env_config verifier is 'evil:f', code that nobody"),
        ({"env_config": _pairs(verifier="evil-name: x")}, "vouched"),
        ({"env_config": _pairs(deep=_pairs(verifier="evil:f"))}, "vouched"),
        ({"curriculum": [_pairs(verifier="evil:f")]}, "vouched"),
        ({"evaluation_config": _pairs(env="evil:Env")}, "its env is 'evil:Env'"),
        ({"evaluation_config": _pairs(callbacks_class={"code of": "evil:C"})}, "vouched"),
        ({"evaluation_config": _pairs(env_config=_pairs(verifier="evil:f"))}, "vouched"),
        ({"_model_config": _pairs(trust_remote_code=True)}, "its trust_remote_code is 'True', code that nobody"),
        ({"_model_config": _pairs(attn_implementation="someone/kernels")}, "attn_implementation"),
        ({"engine_options": _pairs(worker_extension_cls="evil.Worker")}, "engine_options"),
        ({"engine_options": _pairs(trust_remote_code=True)}, "engine_options"),
        ({"host": "0.0.0.0"}, "its host is"),
        ({"extra_python_environs_for_worker": _pairs(LD_PRELOAD="evil.so")}, "which no checkpoint of ours has"),
        ({"output": "elsewhere"}, "which no checkpoint of ours has"),
        ({"input_": "evil.Reader"}, "which no checkpoint of ours has"),
        ({"no_such_setting": 1}, "setting 'no_such_setting' is unknown here"),
        ({"lr": {"code of": "os:system"}}, "vouched"),
        ({"lr": {"unheard of": 1}}, "its lr cannot be read"),
        ({"callbacks_on_train_result": {"missing": "<function <lambda>>"}}, "which has no name to be found by"),
    ],
)
def test_what_a_forged_config_asks_for_is_refused_before_anything_starts(
    saved: SimpleNamespace, tmp_path: pathlib.Path, settings: dict[str, Any], said: str
) -> None:
    folder = _with(saved, tmp_path, **settings)
    with pytest.raises(CheckpointError, match=said):
        GSPO.from_checkpoint(folder)


def test_what_has_no_name_is_given_again(tiny_dense: str, tmp_path: pathlib.Path, ray_local: None) -> None:
    config = _config(tiny_dense).callbacks(on_train_result=lambda **_: None)
    algo = config.build_algo()
    try:
        path = algo.save_to_path(tmp_path / "checkpoint")
        weights = _weights(algo)
    finally:
        algo.stop()
    with pytest.raises(
        CheckpointError, match=r"its callbacks_on_train_result was .*lambda.*from_checkpoint\(path, config"
    ):
        GSPO.from_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"it was saved by GSPO, which is no GRPO. Load it with GSPO"):
        GRPO.from_checkpoint(path, config=config)
    algo = GSPO.from_checkpoint(path, config=config)
    try:
        assert _equal(_weights(algo), weights)
    finally:
        algo.stop()


def test_one_component_is_restored_by_its_path(saved: SimpleNamespace, tiny_dense: str, ray_local: None) -> None:
    algo = _config(tiny_dense, lr=0.0).build_algo()
    try:
        started = _optimizers(algo)
        module = f"learner_group/learner/rl_module/{DEFAULT_MODULE_ID}"
        algo.restore_from_path(saved.path / module, component=module)
        assert _equal(_weights(algo), saved.weights)
        assert _equal(_optimizers(algo), started)
        with pytest.raises(
            CheckpointError, match=r"there is no component 'lerner_group' here; there are learner_group"
        ):
            algo.restore_from_path(saved.path, component="lerner_group/learner")
        with pytest.raises(CheckpointError, match=r"holds no state.json"):
            algo.restore_from_path(tiny_dense, component="learner_group/learner")
    finally:
        algo.stop()
    assert isinstance(CausalLMModule.from_checkpoint(saved.path / module), CausalLMModule)


@pytest.mark.slow
def test_a_remote_learners_full_disk_costs_a_save_and_nothing_else(
    tiny_dense: str, tmp_path: pathlib.Path, ray_local: None
) -> None:
    """Its files are capped below its weights' size: the save says so, the old one is there, and training goes on."""

    def cap(size: int) -> Any:
        def set_limit(_: Any) -> int:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            return before[0]

        return set_limit

    algo = _config(tiny_dense).learners(num_learners=1).build_algo()
    try:
        path = algo.save_to_path(tmp_path / "checkpoint")
        manifest = json.loads((tmp_path / "checkpoint" / checkpoints.MANIFEST).read_text())
        algo.train()
        (soft,) = [result.get() for result in algo.learner_group.foreach_learner(cap(100_000))]
        with pytest.raises(
            CheckpointError, match=r"could not be written \(OSError: in its process: .*[Ff]ile too large"
        ):
            algo.save_to_path(path)
        assert json.loads((checkpoints.verify(path) / checkpoints.MANIFEST).read_text()) == manifest
        assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]
        algo.learner_group.foreach_learner(cap(soft))
        algo.train()
        algo.save_to_path(path)
        assert checkpoints.weights_version(checkpoints.verify(path)) > manifest[checkpoints.manifest.WEIGHTS_VERSION]
        before = _weights(algo), _optimizers(algo)
        algo.train()
        algo.restore_from_path(path)
        assert _equal((_weights(algo), _optimizers(algo)), before)
    finally:
        algo.stop()
