"""Which blocks the head's log-probabilities should be computed in on a GPU: milliseconds and memory of both passes.

    python benchmarks/gpu_head.py --json docs/results/gpu/head.json

``token_logprobs`` forward and backward (log-probs only, as training without an entropy bonus) for block sizes given as
most tokens x most logits, as it is and *compiled*: with its element-wise work through ``torch.compile``. Beside it:
``cross_entropy`` over all logits at once; Liger's fused one, where it is installed, which makes the gradient in the
forward pass and so cannot serve a loss whose weights are known only after it; ``log_softmax`` in float32 and a gather,
as most trainers do; and the four matrix multiplications alone, which is the least that a head can take that does not
keep the logits. Hidden states in bfloat16, weights of the head in float32, as under autocast.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import gpu
import torch
from torch.nn.functional import cross_entropy, linear

from gspo_rllib.ops import token_logprobs

BLOCKS = [
    (4096, 1 << 22), (4096, 1 << 24), (4096, 1 << 26), (4096, 1 << 28), (4096, 1 << 30),
    (1024, 1 << 26), (1024, 1 << 28), (2048, 1 << 26), (8192, 1 << 26), (16384, 1 << 26), (16384, 1 << 28),
]  # fmt: skip

COMPILED_BLOCKS = [(4096, 1 << 26), (4096, 1 << 28), (16384, 1 << 28)]


def ways(hidden: torch.Tensor, head: torch.Tensor, ids: torch.Tensor) -> dict[str, Callable[[], None]]:
    """What is compared."""

    def fused() -> None:
        token_logprobs(hidden, head, ids)[0].mean().backward()

    def entropy() -> None:
        cross_entropy(linear(hidden, head.to(hidden.dtype)), ids).backward()

    def naive() -> None:
        table = linear(hidden, head.to(hidden.dtype)).float().log_softmax(dim=-1)
        table.gather(1, ids[:, None]).mean().backward()

    @torch.no_grad()
    def products() -> None:
        low = head.to(hidden.dtype)
        for tokens in hidden.split(4096):
            for _ in range(2):
                logits = tokens @ low.t()
            logits @ low
            logits.t() @ tokens

    def compiled() -> None:
        with gpu.compiled_head():
            fused()

    def liger() -> None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        LigerFusedLinearCrossEntropyLoss()(head.to(hidden.dtype), hidden, ids).backward()

    return {
        "products": products,
        "cross_entropy": entropy,
        "log_softmax": naive,
        "compiled": compiled,
        **({"liger": liger} if find_spec("liger_kernel") else {}),
        "token_logprobs": fused,
    }


def main() -> None:
    """Measures and prints one row per width, way and block."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--vocabulary", type=int, default=gpu.VOCABULARY)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here")
    args = parser.parse_args()
    print(gpu.where(args.device))
    print(f"{'width':>5} {'tokens':>6} {'way':>14} {'block tokens':>12} {'block logits':>12} {'ms':>8} {'GB':>6}")
    rows: list[dict[str, Any]] = []
    for width in args.widths:
        torch.manual_seed(0)
        hidden = torch.randn(args.tokens, width, device=args.device, dtype=torch.bfloat16, requires_grad=True)
        head = torch.randn(args.vocabulary, width, device=args.device).mul_(0.02).requires_grad_()
        ids = torch.randint(args.vocabulary, (args.tokens,), device=args.device)
        for name, function in ways(hidden, head, ids).items():
            for block in {"token_logprobs": BLOCKS, "compiled": COMPILED_BLOCKS}.get(name, [None]):
                rows.append({"width": width, "tokens": args.tokens, "vocabulary": args.vocabulary, "way": name})
                rows[-1] |= measure(function, block, hidden, head, args.repetitions)
                show(rows[-1])
    if args.json:
        args.json.write_text(json.dumps({**gpu.where(args.device), "rows": rows}, indent=1) + "\n")


def measure(
    function: Callable[[], None], block: tuple[int, int] | None, hidden: torch.Tensor, head: torch.Tensor, times: int
) -> dict[str, Any]:
    """Milliseconds and GB over what is held before, gradients included."""
    module: Any = sys.modules[token_logprobs.__module__]
    kept = dict(module.BLOCK)
    if block:
        module.BLOCK[hidden.device.type] = block
    try:
        hidden.grad = head.grad = None
        _, over = gpu.peak_gb(function)
        took = gpu.seconds(function, times)
    except torch.OutOfMemoryError:
        gpu.free()
        return {"block": block, "ms": float("nan"), "over_gb": float("nan")}
    finally:
        module.BLOCK.clear()
        module.BLOCK.update(kept)
    return {"block": block, "ms": 1e3 * gpu.median(took), "lowest_ms": 1e3 * min(took), "over_gb": over}


def show(row: dict[str, Any]) -> None:
    """Prints one line of the table."""
    tokens, logits = row["block"] or ("", "")
    print(
        f"{row['width']:5d} {row['tokens']:6d} {row['way']:>14} {tokens:>12} {logits:>12} {row['ms']:8.1f} "
        f"{row['over_gb']:6.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
