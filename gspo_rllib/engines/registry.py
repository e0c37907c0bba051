"""Engines by name, one per process and spec: the env runners of a process share what they can share.

Training and evaluation runners of one process ask for equal specs and get the same engine; it is closed when the last
of them lets go. A third-party engine joins with ``register_engine(name, "package.module:Class")``.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from gspo_rllib.engines.engine_watch import EngineWatch
from gspo_rllib.engines.protocol import Engine, EngineSpec
from gspo_rllib.errors import (
    EngineError,
    EngineLostError,
    GSPOError,
    SettingError,
    WeightSyncError,
    described,
    did_you_mean,
)
from gspo_rllib.imports import undisturbed


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """How one kind of engine is made.

    Attributes:
        factory: ``"package.module:Class"``, called with an ``EngineSpec``; imported on first use.
        requires: Package that must be importable, or None.
        install: What to run when it is not.
        one_per_process: Whether two engines of this kind cannot live in one process.
        options: Names of its options; None where only the engine itself knows them, when it is made.
    """

    factory: str
    requires: str | None = None
    install: str = ""
    one_per_process: bool = False
    options: tuple[str, ...] | None = None


@dataclass(slots=True)
class _Held:
    engine: Engine
    kind: str
    spec: EngineSpec
    users: int = 1
    proven: bool = False
    watch: EngineWatch | None = None


_entries: dict[str, EngineEntry] = {
    "vllm": EngineEntry(
        "gspo_rllib.engines.vllm_adapters:vllm_engine",
        "vllm",
        'pip install "gspo-rllib[vllm]"`, or in a checkout `pip install -e ".[vllm]"',
        one_per_process=True,
    ),
    "transformers": EngineEntry(
        "gspo_rllib.engines.transformers:TransformersEngine",
        "transformers",
        options=("max_batch_tokens", "kv_cache_memory_bytes", "batch_invariant"),
    ),
}
_held: dict[str, _Held] = {}
_lock = threading.RLock()


def register_engine(
    name: str, factory: str, *, requires: str | None = None, install: str = "", one_per_process: bool = False
) -> None:
    """Adds an engine that ``EngineSpec.engine`` can name; registering a name again replaces it.

    Args:
        name: The new name.
        factory: ``"package.module:Class"``, called with an ``EngineSpec``; must satisfy ``Engine``.
        requires: Package that must be importable for it.
        install: What to run when that package is missing.
        one_per_process: Whether two engines of this kind cannot live in one process.

    Raises:
        EngineError: ``factory`` is not of that form.
    """
    module, colon, attribute = factory.partition(":")
    if not (module and colon and attribute):
        raise EngineError(f"engine factory {factory!r} must read 'package.module:Class'.")
    _entries[name] = EngineEntry(factory, requires, install, one_per_process)


def available_engines() -> list[str]:
    """Registered engines whose package is installed, in order of registration."""
    return [name for name, entry in _entries.items() if _is_installed(entry)]


def default_engine() -> str:
    """``"vllm"`` where it is installed, otherwise ``"transformers"``; ``engines.choice`` knows the exception."""
    return "vllm" if "vllm" in available_engines() else "transformers"


def check_engine(name: str, options: Iterable[str] = ()) -> EngineEntry:
    """Whether an engine can be used here, without building it.

    Args:
        name: Which engine.
        options: Names of the options that it is to get.

    Raises:
        EngineError: The name is unknown, or its package is missing.
        SettingError: It has no such option.
    """
    if name not in _entries:
        raise EngineError(f"engine {name!r} is unknown. {did_you_mean(name, _entries)}")
    entry = _entries[name]
    if not _is_installed(entry):
        raise EngineError(
            f"engine {name!r} needs the package {entry.requires!r}, which is not installed. Run "
            f"`{entry.install or 'pip install ' + str(entry.requires)}`, or use one of: "
            f"{', '.join(f'engine={other!r}' for other in available_engines())}."
        )
    known = entry.options
    unknown = [] if known is None else [str(option) for option in options if option not in known]
    if known is not None and unknown:
        raise SettingError(
            f"generation.engine_options[{unknown[0]!r}]: the engine {name!r} has no such option. "
            f"{did_you_mean(unknown[0], known)}"
        )
    return entry


def acquire(spec: EngineSpec, *, explain: Callable[[str, EngineSpec], str] = lambda message, spec: message) -> Engine:
    """The process's engine for a spec, built if this is the first request for it.

    Every ``acquire`` needs one ``release``.

    Args:
        spec: How the engine is built; equal specs share one engine.
        explain: Completes the message of an engine that cannot be built.

    Raises:
        EngineError: The name is unknown, its package is missing, the process holds another engine that cannot coexist
            with it, or it cannot be built for this model; ``EngineLostError`` where it was killed while it was built.
    """
    entry = check_engine(spec.engine)
    with _lock:
        key = _key(spec)
        if key in _held:
            _held[key].users += 1
            return _held[key].engine
        if entry.one_per_process:
            _refuse_second(spec)
        factory = _factory(spec.engine, entry)
        try:
            with _failing_as(spec):
                engine = factory(spec)
        except EngineLostError:
            raise  # it says nothing about the model, nor about other engines
        except EngineError as error:
            raise EngineError(explain(str(error), spec)) from error
        _held[key] = _Held(engine, spec.engine, spec)
        return engine


def release(engine: Engine) -> None:
    """Lets go of an engine; the last user closes it. Releasing an engine the registry does not hold does nothing."""
    with _lock:
        for key, held in list(_held.items()):
            if held.engine is engine:
                held.users -= 1
                if held.users == 0:
                    del _held[key]
                    if held.watch is not None:
                        held.watch.close()
                    engine.close()


def spec_of(engine: Engine) -> EngineSpec | None:
    """How an engine was built; None for one that the registry does not hold."""
    held = _holding(engine)
    return held.spec if held is not None else None


def is_proven(engine: Engine) -> bool:
    """Whether ``mark_proven`` was called for this engine, or the registry does not hold it."""
    held = _holding(engine)
    return held is None or held.proven


def mark_proven(engine: Engine) -> None:
    """Notes that what the engine samples was compared with the learner's policy since it was built."""
    held = _holding(engine)
    # An adapter that changes nothing shows nothing.
    if held is not None and not getattr(engine, "adapter_is_zero", False):
        held.proven = True


def watch(engine: Engine, timeout_s: float, on_late: Callable[[float], None]) -> None:
    """From now on a call of the engine that takes too long is seen; see ``EngineWatch``.

    Args:
        engine: One that the registry holds; of one that is watched already nothing changes.
        timeout_s: How long one call may take.
        on_late: Called with the seconds that a call has taken.
    """
    held = _holding(engine)
    if held is not None and held.watch is None:
        held.watch = EngineWatch(timeout_s, on_late)


def watched(engine: Engine) -> AbstractContextManager[None]:
    """The block is one call of the engine, which may take as long as ``watch`` said."""
    held = _holding(engine)
    return nullcontext() if held is None or held.watch is None else held.watch.call()


@contextmanager
def failing_as_itself(engine: Engine) -> Iterator[None]:
    """Inside the block, whatever the engine raises becomes an error that names it and its model.

    Raises:
        EngineError: It failed, or refused.
        WeightSyncError: It does not hold the weights it was sent.
    """
    held = _holding(engine)
    if held is None:
        yield
        return
    with _failing_as(held.spec):
        yield


@contextmanager
def _failing_as(spec: EngineSpec) -> Iterator[None]:
    name = f"engine {spec.engine!r} with model {spec.model!r}"
    try:
        yield
    except (EngineError, WeightSyncError) as error:
        if repr(spec.model) in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error
    except GSPOError:
        raise
    except Exception as error:
        raise EngineError(f"{name} failed: {described(error, 600)}") from error


def _holding(engine: Engine) -> _Held | None:
    with _lock:
        return next((held for held in _held.values() if held.engine is engine), None)


def _key(spec: EngineSpec) -> str:
    # Ordered pairs and repr make a Mapping of options comparable whatever its type and order.
    return repr(_ordered({f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}))


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [(str(key), _ordered(value[key])) for key in sorted(value, key=str)]
    if isinstance(value, (list, tuple)):
        return [_ordered(item) for item in value]
    return value


def _is_installed(entry: EngineEntry) -> bool:
    try:
        return entry.requires is None or importlib.util.find_spec(entry.requires) is not None
    except ValueError:  # a module whose import was blocked has no spec
        return False


def _refuse_second(spec: EngineSpec) -> None:
    for held in _held.values():
        if held.kind == spec.engine:
            changed = [
                f"{f.name}={getattr(held.spec, f.name)!r} -> {getattr(spec, f.name)!r}"
                for f in dataclasses.fields(spec)
                if _ordered(getattr(held.spec, f.name)) != _ordered(getattr(spec, f.name))
            ]
            raise EngineError(
                f"this process already holds a {spec.engine} engine built differently ({'; '.join(changed)}), and "
                f"{spec.engine} keeps process-wide state, so two cannot coexist. Give both env runners the same "
                "generation settings (then they share it), release the first, or put them in separate processes "
                "(num_env_runners >= 1, evaluation_num_env_runners >= 1)."
            )


def _factory(name: str, entry: EngineEntry) -> Callable[[EngineSpec], Engine]:
    from gspo_rllib.engines.process_state import random_states_kept  # with torch, which the names above do without

    module, _, attribute = entry.factory.partition(":")
    try:
        with undisturbed(), random_states_kept():
            factory: Callable[[EngineSpec], Engine] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise EngineError(f"engine {name!r} cannot be loaded from {entry.factory!r}: {error}") from error
    return factory
