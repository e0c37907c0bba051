"""What the GPU benchmarks share: models of Qwen3's own shapes, wall times that wait for the device, and FLOPs.

Model FLOPs of a pass forward and backward, nothing counted twice that is computed twice (no recomputation):

- 6 per parameter of the layers' matrices and token,
- 6 per parameter of the head and *sampled* token (the head runs on no other),
- 6 · layers · heads · head dimension · length² per segment, for causal attention.

MFU is those over the time and the peak in dense bfloat16 of the card's data sheet (``PEAK_FLOPS``).
"""

from __future__ import annotations

import datetime
import gc
import json
import pathlib
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from machine import processor
from transformers import AutoModelForCausalLM, Qwen3Config
from workload import GROUP_SIZE, Conversation, groups_of

from gspo_rllib.model_folder import quiet_transformers
from gspo_rllib.ops import compile_head, token_logprobs
from gspo_rllib.warmstart.models import build_model

VOCABULARY = 151_936
_HEADS = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
QWEN3: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32,
    },
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, **_HEADS},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144, **_HEADS},
}  # fmt: skip
"""0.44 and 1.41 billion parameters in the layers; ``tiny`` is for trying a benchmark out."""

PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""Dense bfloat16, by data sheet."""


def random_qwen3(folder: pathlib.Path, size: str, *, vocabulary: int, device: str) -> str:
    """A folder with a random Qwen3 in bfloat16, whose tokenizer knows the first few hundred ids.

    Args:
        folder: Where models go; this one into a folder of its own below it, kept from an earlier call.
        size: One of ``QWEN3``.
        vocabulary: Rows of the embedding, which is the head too.
        device: Where the weights are drawn.
    """
    path = folder / f"qwen3-{size}-{vocabulary}"
    if not (path / "config.json").exists() or not list(path.glob("*.safetensors")):
        build_model(path)  # for its tokenizer
        tokens = json.loads((path / "config.json").read_text())
        config = Qwen3Config(
            vocab_size=vocabulary, tie_word_embeddings=True, max_position_embeddings=40_960,
            eos_token_id=tokens["eos_token_id"], pad_token_id=tokens["pad_token_id"], **QWEN3[size],
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(device), quiet_transformers():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.save_pretrained(path)
        del model
        free()
    return str(path)


def played(data: str | int, num_groups: int, **sizes: int) -> list[Any]:
    """What was ``drawn``, as the groups that the learner trains on."""
    return groups_of(drawn(data, num_groups, **sizes))


def drawn(data: str | int, num_groups: int, *, prompt: int, completion: int, vocabulary: int) -> list[Conversation]:
    """Groups of random tokens, one after the other; old log-probs are 0 and to be computed by the learner.

    Args:
        data: ``"single_turn"``: one prompt, completions log-normal around their median; ``"multi_turn"``: 3 to 50 turns
            of about 95 tokens shown and 60 sampled; a number: trajectories of so many tokens, whose first eighth is the
            group's prompt, and then turns of 40 tokens sampled and 40 shown.
        num_groups: Groups of 8.
        prompt: Tokens of the prompt (single turn).
        completion: Median of the sampled tokens (single turn).
        vocabulary: Ids are below it.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(num_groups):
        if data == "single_turn":
            sampled = np.exp(rng.normal(np.log(completion), 0.5, GROUP_SIZE)).clip(16, 4 * completion).astype(int)
            shapes = [[(prompt, int(n))] for n in sampled]
        elif isinstance(data, int):
            shapes = [[(data // 8, 40), *[(40, 40)] * ((7 * data // 8 - 40) // 80)]] * GROUP_SIZE
        else:
            turns = (50, 4, 20, 6, 12, 3, 8, 5)
            shapes = [[(int(rng.integers(60, 131)), int(rng.integers(30, 91))) for _ in range(n)] for n in turns]
            for shape in shapes:
                shape[0] = (48, shape[0][1])
        first = rng.integers(3, vocabulary, shapes[0][0][0]).astype(np.int32)
        for member, shape in enumerate(shapes):
            drawn = [[rng.integers(3, vocabulary, n).astype(np.int32) for n in pair] for pair in shape]
            ids = [(shown, said) for shown, said in drawn]
            ids[0] = (first, ids[0][1])
            num_sampled = sum(n for _, n in shape)
            found.append(Conversation(ids, np.zeros(num_sampled, np.float32), reward=float(member % 3 == 0)))
    return found


def model_flops(config: Any, segment_lengths: Iterable[int], num_sampled: int) -> float:
    """Of one pass forward and backward; see the head of this file.

    Args:
        config: The model's.
        segment_lengths: Tokens of every segment, prompts that are shared counted in each.
        num_sampled: Tokens the head runs on.
    """
    lengths = np.array(list(segment_lengths), dtype=np.float64)
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    key_heads = config.num_key_value_heads * config.head_dim
    per_layer = 2 * width * heads + 2 * width * key_heads + 3 * width * config.intermediate_size
    layers = config.num_hidden_layers
    return float(
        6 * layers * per_layer * lengths.sum()
        + 6 * width * config.vocab_size * num_sampled
        + 6 * layers * heads * np.square(lengths).sum()
    )


def peak_flops(device: str) -> float:
    """Of the card, by data sheet; NaN where it is not listed, and for a CPU."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for card, peak in PEAK_FLOPS.items() if card in name), float("nan"))


def seconds(function: Callable[[], Any], repetitions: int, *, warm_up: int = 1) -> list[float]:
    """Wall time of each repetition, until the device is done."""
    taken = []
    for repetition in range(warm_up + repetitions):
        synchronise()
        start = time.perf_counter()
        function()
        synchronise()
        if repetition >= warm_up:
            taken.append(time.perf_counter() - start)
    return taken


def alternate(functions: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """``seconds`` of several functions, run in turn after a first round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for repetition in range(repetitions + 1):
        for name, function in functions.items():
            (one,) = seconds(function, 1, warm_up=0)
            if repetition:
                taken[name].append(one)
    return taken


def peak_gb(function: Callable[[], Any]) -> tuple[float, float]:
    """GB of device memory at the highest, and how much of it above what was held before the call; NaN on a CPU."""
    if not torch.cuda.is_initialized():
        function()
        return float("nan"), float("nan")
    free()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    peak = torch.cuda.max_memory_allocated()
    return peak / 1e9, (peak - before) / 1e9


def kernels(function: Callable[[], Any], rows: int = 16) -> str:
    """Where a call spends the device's time: its longest kernels, and how long it was busy altogether."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        (took,) = seconds(function, 1, warm_up=0)
    every = [e for e in profile.key_averages() if e.self_device_time_total and e.device_type.name == "CUDA"]
    busy = sum(e.self_device_time_total for e in every) / 1e6
    lines = [f"busy {busy:.3f} s of {took:.3f} s, {sum(e.count for e in every)} kernels and copies"]
    for e in sorted(every, key=lambda e: -e.self_device_time_total)[:rows]:
        lines.append(f"  {e.self_device_time_total / 1e6:7.4f} s {e.count:6d} x  {e.key[:110]}")
    return "\n".join(lines)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute set to something else for as long as the block lasts."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def compiled_head(*, on: bool = True) -> Iterator[None]:
    """The element-wise work of the head through ``torch.compile``, or not, within the block."""
    head: Any = sys.modules[token_logprobs.__module__]
    if on and not _compiled:
        compile_head("inductor", None)
        _compiled[:] = head._compiled
        forget_compiled_head()
    with replaced(head, "_compiled", _compiled if on else []):
        yield


_compiled: list[Any] = []


def forget_compiled_head() -> None:
    """Has the head compute as it is written again, after layers were compiled."""
    head: Any = sys.modules[token_logprobs.__module__]
    head._compiled.clear()


class DeviceMemory:
    """Within the block, the most of a GPU's memory that is in use by anybody at a time, looked at every 5 ms.

    Attributes:
        highest_gb: That; NaN without a GPU.
    """

    highest_gb = float("nan")

    def __enter__(self) -> DeviceMemory:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if torch.cuda.is_available():
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        self.highest_gb = used_gb()
        while not self._done.wait(0.005):
            self.highest_gb = max(self.highest_gb, used_gb())


def used_gb() -> float:
    """What anybody has of the GPU's memory."""
    free_bytes, total = torch.cuda.mem_get_info()
    return (total - free_bytes) / 1e9


def free() -> None:
    """Gives back what nobody uses."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def synchronise() -> None:
    """Waits for the device."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def median(values: list[float]) -> float:
    """In seconds."""
    return statistics.median(values)


def where(device: str) -> dict[str, Any]:
    """Card, versions, date and command."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
    }
