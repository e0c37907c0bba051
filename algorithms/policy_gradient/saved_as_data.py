"""An algorithm's checkpoints as data: what RLlib would pickle is written as JSON and safetensors, and read back."""

from __future__ import annotations

import functools
import json
import logging
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import pyarrow.fs
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from gspo_rllib import checkpoints
from gspo_rllib.algorithms.policy_gradient.task_record import changed_tasks, write_tasks
from gspo_rllib.checkpoints import pickled
from gspo_rllib.checkpoints.code import Trust
from gspo_rllib.checkpoints.components import restore_component, save_component
from gspo_rllib.checkpoints.places import written
from gspo_rllib.errors import CheckpointError, shown

if TYPE_CHECKING:
    from gspo_rllib.env_pool.task_set import TaskSet
    from gspo_rllib.weight_sync import Weights

logger = logging.getLogger("gspo_rllib")

_CHECKPOINT_VERSION = "2.1"
"""RLlib's, of checkpoints with one folder per component."""


class SavedAsData(Algorithm):
    """RLlib's ``Algorithm``, saved and restored as data."""

    _weights: Weights
    _task_sets: Mapping[str, TaskSet]

    def save_to_path(
        self,
        path: str | pathlib.Path | None = None,
        *,
        state: dict[str, Any] | None = None,
        filesystem: pyarrow.fs.FileSystem | None = None,
        use_msgpack: bool = False,
    ) -> str:
        """Saves a checkpoint: JSON, safetensors, and a manifest of their files.

        It is at ``path`` when it is whole, and not before; a checkpoint that is there is replaced in one step.

        Args:
            path: Folder on this machine; None for a new one below the system's temporary folder.
            state: RLlib's; the algorithm's own state is what is saved, and no other.
            filesystem: None, or the local one.
            use_msgpack: RLlib's, without effect: the files are always the same.

        Raises:
            CheckpointError: It cannot be written there, a learner could not write its part, or a state is no data.
            LearnersLostError: The learners were lost, and cannot be rebuilt to be saved.
        """
        del use_msgpack
        if state is not None:
            raise CheckpointError("save: a state of your own cannot be saved; set it first, with set_state.")
        _check_local(filesystem)
        self.learner_group.check_whole()
        with written(path) as (folder, target):
            self._write_checkpoint(folder)
        self.learner_group.saved(target)
        return str(target)

    def _write_checkpoint(self, folder: pathlib.Path) -> None:
        from gspo_rllib.algorithms.policy_gradient.saved_config import save_config

        about = {"type": "Algorithm", "format": "data", "checkpoint_version": _CHECKPOINT_VERSION}
        (folder / self.METADATA_FILE_NAME).write_text(
            json.dumps({**about, "ray_version": ray.__version__, "ray_commit": ray.__commit__})
        )
        save_config(self, folder)
        save_component(self, folder)
        write_tasks(folder, self._task_sets)
        if self._settings.kl_coeff:
            # Without it, a resumed run would measure the divergence from the policy it resumes with.
            (files,) = self._first_learner(lambda learner: learner.reference_files())
            if files:
                checkpoints.write_reference(folder, files)
        checkpoints.write_manifest(folder, weights_version=self._weights.version)

    def restore_from_path(
        self,
        path: str | pathlib.Path,
        *args: Any,
        component: str | None = None,
        filesystem: pyarrow.fs.FileSystem | None = None,
        trust_pickle: bool = False,
        **kwargs: Any,
    ) -> None:
        """Restores weights (in every engine too), optimiser and counters.

        Args:
            path: A checkpoint; with ``component``, the folder of that component.
            args: RLlib's.
            component: Path of the one component to restore, e.g. ``"learner_group/learner/rl_module"``.
            filesystem: None, or the local one.
            trust_pickle: Whether a checkpoint of 0.1, whose pickles may do anything, is to be loaded.
            kwargs: RLlib's.

        Raises:
            CheckpointError: The checkpoint is incomplete, corrupt, not one of ours, or holds pickles; nothing was
                changed.
        """
        _check_local(filesystem)
        path = pathlib.Path(path) if component is not None else checkpoints.verify(path)
        if component is None and checkpoints.is_pickled(path):
            pickled.check_trusted(path, trust_pickle=trust_pickle)
            self._stop_sampling()
            super().restore_from_path(path, *args, component=component, **kwargs)
            self._sync_weights()
            return
        self._stop_sampling()
        if component is None:
            self.learner_group.forget()
        restore_component(self, path, only=component)
        self._tell_env_runners()
        if component is None:
            # A whole state has its weights synced when it is set.
            self.learner_group.saved(path)
            if news := changed_tasks(path, self._task_sets):
                logger.warning(
                    "checkpoint %s: its run had other tasks than this one has (%s). Which of them come next, in which "
                    "order and in which epoch, is worked out with the new ones.",
                    path,
                    news,
                )
        else:
            self._sync_weights()

    def _tell_env_runners(self) -> None:
        """Gives counters and connectors to remote env runners, as RLlib does after it has restored."""
        if self.env_runner_group.num_remote_env_runners() > 0:
            self.env_runner_group.sync_env_runner_states(
                config=self.config,
                from_worker=self.env_runner,
                env_steps_sampled=self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0),
                env_to_module=self.env_to_module_connector,
                module_to_env=self.module_to_env_connector,
            )

    @classmethod
    def from_checkpoint(
        cls,
        path: Any,
        filesystem: pyarrow.fs.FileSystem | None = None,
        *,
        trust: Iterable[Any] = (),
        trust_pickle: bool = False,
        **kwargs: Any,
    ) -> Self:
        """A new algorithm that continues where the checkpoint ends; needs nothing but the checkpoint.

        Nothing in the checkpoint is run. Classes and functions in its config are looked up by name: those of this
        package, those that this process has used in a config itself, and those that are listed.

        Args:
            path: The checkpoint's folder, or a Ray ``Checkpoint``.
            filesystem: None, or the local one.
            trust: What the checkpoint may name: classes, functions, modules with all below them by name, and names of
                settings that reach outside, e.g. ``[MyCallbacks, "my_project.envs", "trust_remote_code"]``.
            trust_pickle: Whether a checkpoint of 0.1, whose pickles may do anything, is to be loaded.
            kwargs: ``config`` to use in place of the saved one; others go to the algorithm.

        Raises:
            CheckpointError: The checkpoint is incomplete, corrupt, not one of ours, names code that nobody has vouched
                for, or holds pickles.
        """
        from gspo_rllib.algorithms.policy_gradient.saved_config import load_algorithm_class, load_config

        _check_local(filesystem)
        folder = checkpoints.verify(path)
        if checkpoints.is_pickled(folder):
            kwargs.setdefault("config", checkpoints.self_contained_config(folder, trust_pickle=trust_pickle))
            pickled.check_trusted(folder, trust_pickle=trust_pickle)
            old: Self = super().from_checkpoint(str(folder), trust_pickle=True, **kwargs)
            return old
        trusted = Trust([*trust, cls])
        if "config" in kwargs:
            algorithm_class: type[Algorithm] = load_algorithm_class(folder, trusted)
        else:
            algorithm_class, kwargs["config"] = load_config(folder, trusted)
        if not issubclass(algorithm_class, cls):
            raise CheckpointError(
                f"checkpoint {folder}: it was saved by {algorithm_class.__name__}, which is no {cls.__name__}. Load it "
                f"with {algorithm_class.__name__}.from_checkpoint."
            )
        algorithm = algorithm_class(**kwargs)
        try:
            algorithm.restore_from_path(str(folder))
        except BaseException:
            algorithm.stop()
            raise
        return algorithm


def _open_from_rllib_too() -> None:
    """Has RLlib's own ``Algorithm.from_checkpoint`` open checkpoints of this package, which it would unpickle."""
    for owner in (Algorithm, Checkpointable):  # RLlib's algorithm first looks for a pickle, and refuses without one
        stock = vars(owner)["from_checkpoint"].__func__
        setattr(owner, stock.__name__, classmethod(_opening(stock)))


def _opening(stock: Any) -> Any:
    @functools.wraps(stock)
    def from_checkpoint(cls: Any, path: Any, filesystem: Any = None, **kwargs: Any) -> Any:
        folder = pathlib.Path(str(getattr(path, "path", path)))  # of a Ray Checkpoint
        if cls is Algorithm and (folder / checkpoints.MANIFEST).is_file():
            return SavedAsData.from_checkpoint(path, filesystem, **kwargs)
        return stock(cls, path, filesystem, **kwargs)

    return from_checkpoint


_open_from_rllib_too()


def _check_local(filesystem: Any) -> None:
    if filesystem is not None and not isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        raise CheckpointError(
            f"checkpoint: file system {shown(filesystem)} is not this machine's own; save to a local folder and copy "
            "it there, and back before loading."
        )
