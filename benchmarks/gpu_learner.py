"""Tokens per second, MFU and memory of a learner on a GPU, against a bare forward and backward pass.

    python benchmarks/gpu_learner.py --sizes 0.6b 1.7b --json docs/results/gpu/learner.json
    python benchmarks/gpu_learner.py --lengths 1024 4096 16384 32768 --json docs/results/gpu/long_contexts.json
    python benchmarks/gpu_learner.py --device cpu --sizes tiny --vocabulary 1000 --groups 1 --completion 20

Random Qwen3 of the real shapes, float32 weights, bfloat16 autocast, prompts not shared. The ways compared run in turn:

- *learner*: ``LanguageLearner.update`` as training calls it, one minibatch, the optimiser's step left out;
- *step*: the same with gradient clipping and AdamW;
- *segments*: the learner with an attention call per segment instead of one per row;
- *compiled parts*, *compiled layers*: the learner with the MLPs and norms of the layers through ``torch.compile``, or
  with all of a layer but its attention call;
- *checkpointed*: the learner with activations computed again;
- *limited*: the learner with as many of them computed again as ``max_activation_gb`` (``--limit-gb``) asks for;
- *bare packed*, *bare single*: the model's layers forward and backward and ``cross_entropy`` over all sampled tokens'
  logits at once: packed rows with this project's attention, or one trajectory after the other with transformers' SDPA;
- *layers*: bare packed without a head.

With ``--lengths`` one group of 8 trajectories of each length takes turns of 40 tokens sampled and 40 shown after a
prompt of an eighth (32k tokens are 358 turns), prompts are shared where training shares them, and each way has its
repetitions in a row; what is looked at is tokens/s over those of the shortest (goal: 0.6 at 16k of 1k's).

MFU: see ``gpu.py``. Memory is the peak, weights and gradients included.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import gpu
import torch
from bare import bare, forget_gradients
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.envs import UnicodeText
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.modules import attention
from gspo_rllib.modules.compilation import compile_layers
from gspo_rllib.modules.prefix_attention import PrefixSharing
from gspo_rllib.modules.recomputation import Recomputation, decoder_layers
from gspo_rllib.packing import pack, packed_rows

WAYS = (
    "learner", "step", "segments", "compiled parts", "compiled layers", "compiled all", "shared", "checkpointed",
    "limited", "bare packed", "bare single", "layers",
)  # fmt: skip


def build_learner(path: str, args: argparse.Namespace, **training: Any) -> Any:
    """A learner as training builds it, on the device asked for."""
    config = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 1})
        .rl_module(
            model_config={
                "path": path, "autocast_dtype": args.dtype, "shared_prefixes": None if args.lengths else False,
            }
        )
        .generation(engine="transformers", max_tokens_per_turn=8)
        .learners(num_learners=0, num_gpus_per_learner=int(args.device == "cuda"))
        .training(
            group_size=8, groups_per_iteration=2, num_minibatches=1, old_log_probs="learner",
            max_tokens_per_micro_batch=args.row_tokens, **training,
        )
        .debugging(seed=0)
    )  # fmt: skip
    return config.build_learner(spaces={DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))})


def ways(learner: Any, groups: list[Any], args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What is compared, each a function without arguments."""
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    take_step = learner._step

    def update(*, step: bool = False) -> None:
        forget_gradients(module)
        learner._step = take_step if step else lambda optimizers: None
        learner.update(training_data=GroupTrainingData.from_groups(groups, num_minibatches=1, seed=0), num_epochs=1)

    def within(context: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            with context():
                update()

        return run

    trajectories = [token_trajectory(e, advantage=1.0) for group in groups for e in group.episodes]
    rows = packed_rows(trajectories, max_tokens=args.row_tokens, sharing=None, device=args.device)
    packed, single = [row for _, row in rows], [pack([trajectory], args.device) for trajectory in trajectories]
    return {
        "learner": update,
        "step": lambda: update(step=True),
        "segments": within(lambda: gpu.replaced(attention, "serves", lambda query, value: False)),
        "compiled parts": within(lambda: compiled(module.model, ("MLP", "RMSNorm"))),
        "compiled layers": within(lambda: compiled_layers(module)),
        "compiled all": within(lambda: compiled_all(module)),
        "shared": within(lambda: gpu.replaced(module, "prefix_sharing", lambda: PrefixSharing(1.1))),
        "checkpointed": within(lambda: checkpointed(module.model)),
        "limited": within(lambda: limited(module, args.limit_gb)),
        "bare packed": lambda: bare(module, packed, autocast_dtype=args.dtype, head=True),
        "bare single": lambda: bare(module, single, autocast_dtype=args.dtype, head=True),
        "layers": lambda: bare(module, packed, autocast_dtype=args.dtype, head=False),
    }


@contextmanager
def compiled(model: Any, kinds: tuple[str, ...]) -> Iterator[None]:
    """Parts of some kinds compiled for any number of tokens; made once, switched on within the block."""
    parts = [part for part in model.base_model.modules() if type(part).__name__.endswith(kinds)]
    for part in parts:
        if not hasattr(part, "_kept"):
            part.compile(dynamic=True)
            part._kept = (part._compiled_call_impl,)
        part._compiled_call_impl = part._kept[0]
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None


@contextmanager
def compiled_layers(module: Any) -> Iterator[None]:
    """Everything of a layer compiled but its attention call."""
    own = module.model.config._attn_implementation
    layers = [*decoder_layers(module.model)]
    if not hasattr(module, "_compiled_forwards"):
        compile_layers([module.model], module.scoring, "inductor", None)
        gpu.forget_compiled_head()
        module._compiled_forwards = module.model.config._attn_implementation, [layer.forward for layer in layers]
    name, forwards = module._compiled_forwards
    module.model.set_attn_implementation(name)
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = forward
    try:
        with gpu.compiled_head(on=False):
            yield
    finally:
        module.model.set_attn_implementation(own)
        for layer in layers:
            del layer.forward


@contextmanager
def compiled_all(module: Any) -> Iterator[None]:
    """Layers and the head's element-wise work, as with ``framework(torch_compile_learner=True)``."""
    with compiled_layers(module), gpu.compiled_head():
        yield


@contextmanager
def forwards_given_back(model: Any) -> Iterator[list[Any]]:
    """The model's layers, which have their class's forward again after the block."""
    layers = [*decoder_layers(model)]
    try:
        yield layers
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Activations computed again, within the block."""
    with forwards_given_back(model):
        Recomputation([model])
        yield


@contextmanager
def limited(module: Any, gigabytes: float) -> Iterator[None]:
    """With ``max_activation_gb``, within the block; what layers keep is observed once."""
    with forwards_given_back(module.model) as layers:
        if not hasattr(module, "_limited"):
            recomputation = Recomputation([module.model], gigabytes * 1e9)
            module._limited = recomputation, [layer.forward for layer in layers]
        module.recomputation, forwards = module._limited
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = forward
        try:
            yield
        finally:
            module.recomputation = None


def measure(learner: Any, size: str, data: str | int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row of the table for each way."""
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    sizes = {"prompt": args.prompt, "completion": args.completion, "vocabulary": args.vocabulary}
    groups = gpu.played(data, 1 if args.lengths else args.groups, **sizes)
    trajectories = [token_trajectory(e, advantage=1.0) for group in groups for e in group.episodes]
    segments = [len(segment) for t in trajectories for segment in t.segments]
    sampled = sum(t.num_loss_tokens for t in trajectories)
    flops = gpu.model_flops(module.model.config, segments, sampled)
    chosen = {name: function for name, function in ways(learner, groups, args).items() if name in args.ways}
    peaks, timings = {}, {}
    for name, function in list(chosen.items()):  # also the first, slower run
        try:
            peaks[name] = gpu.peak_gb(function)
            if isinstance(data, int):  # the shortest take a fraction of a second
                timings[name] = gpu.seconds(function, max(1, args.repetitions * 4096 // data), warm_up=0)
        except torch.OutOfMemoryError:
            print(f"{size} {data} {name}: out of memory", flush=True)
            del chosen[name]
            gpu.free()
    rows = []
    for name, function in chosen.items() if args.profile else ():
        print(f"{size} {data} {name}: kernels of one call\n{gpu.kernels(function)}", flush=True)
    for name, taken in (timings or gpu.alternate(chosen, args.repetitions)).items():
        took = gpu.median(taken)
        rows.append({
            "size": size, "data": data, "way": name, "trajectories": len(trajectories), "tokens": sum(segments),
            "sampled_tokens": sampled, "longest": max(segments), "s": took, "lowest_s": min(taken),
            "highest_s": max(taken), "tokens_per_s": sum(segments) / took, "tflops": flops / took / 1e12,
            "mfu": flops / took / gpu.peak_flops(args.device), "peak_gb": peaks[name][0], "over_gb": peaks[name][1],
        })  # fmt: skip
        if name == "limited":
            rows[-1]["recomputed"] = module._limited[0].num_recomputed
        show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    """Prints one line of the table."""
    print(
        f"{row['size']:>5} {row['data']!s:>11} {row['way']:>15} {row['tokens']:7d} {row['sampled_tokens']:7d} "
        f"{row['s']:7.3f} {row['tokens_per_s']:9.0f} {row['tflops']:7.1f} {row['mfu']:6.1%} {row['peak_gb']:7.1f}",
        flush=True,
    )


def main() -> None:
    """Measures and prints one row per size, data set and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", type=lambda name: None if name == "float32" else name)
    parser.add_argument("--sizes", nargs="+", default=["0.6b", "1.7b"], choices=list(gpu.QWEN3))
    parser.add_argument("--data", nargs="+", default=["single_turn"], choices=["single_turn", "multi_turn"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="all without it, with --lengths three")
    parser.add_argument("--lengths", type=int, nargs="+", default=[], help="tokens of long trajectories, not --data")
    parser.add_argument("--limit-gb", type=float, default=20, help="max_activation_gb of the way that has one")
    parser.add_argument("--vocabulary", type=int, default=gpu.VOCABULARY)
    parser.add_argument("--groups", type=int, default=4, help="of 8 trajectories")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--completion", type=int, default=1000, help="median sampled tokens")
    parser.add_argument("--row-tokens", type=int, default=16384, help="max_tokens_per_micro_batch")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=pathlib.Path, help="where random models are kept; a temporary one without it")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    parser.add_argument("--profile", action="store_true", help="also print the kernels each way spends its time in")
    args = parser.parse_args()
    args.ways = args.ways or (["learner", "compiled all", "limited"] if args.lengths else WAYS)
    print(gpu.where(args.device))
    print(
        f"{'model':>5} {'data':>11} {'way':>15} {'tokens':>7} {'sampled':>7} {'s':>7} {'tokens/s':>9} {'TFLOP/s':>7} "
        f"{'MFU':>6} {'peak GB':>7}"
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() if args.folder is None else nullcontext(args.folder) as folder:
        for size in args.sizes:
            path = gpu.random_qwen3(pathlib.Path(folder), size, vocabulary=args.vocabulary, device=args.device)
            learner = build_learner(path, args)
            for data in args.lengths or args.data:
                rows += measure(learner, size, data, args)
                gpu.free()
                if args.json:  # after each: a long run that is cut off has been worth something
                    args.json.write_text(json.dumps({**gpu.where(args.device), "rows": rows}, indent=1) + "\n")
            del learner
            gpu.free()
    for row in rows if args.lengths else ():
        first = next(r for r in rows if (r["size"], r["way"]) == (row["size"], row["way"]))
        ratio = row["tokens_per_s"] / first["tokens_per_s"]
        print(f"{row['size']} {row['way']} {row['data']}: {ratio:.2f} of {first['data']}")


if __name__ == "__main__":
    main()
