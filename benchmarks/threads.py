"""What more threads in one process do to a small model: to its steps, and to their numbers.

    .venv/bin/python benchmarks/threads.py
    .venv/bin/python benchmarks/threads.py --widths 128 256 512 --layers 2 4 8 --threads 1 2 4

Random Qwen3 of growing size. A *decode step* is a forward pass of 64 tokens, as a step of 64 conversations is; an
*update* a forward and backward pass of 1,024 tokens. Medians, numbers of threads in turn; *equal* says whether passes
of 4, 7, 64 and 300 tokens come out as with one thread, to the bit. Beside other programs the threads of one step wait
for each other: see the parallelism that is printed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics

import machine
import torch
from measure import Timing, timed
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

LENGTHS = (4, 7, 64, 300)


def model_of(width: int, layers: int) -> Qwen3ForCausalLM:
    """A random Qwen3 of a width, with a vocabulary as small as it is."""
    torch.manual_seed(0)
    heads = max(2, width // 32)
    config = Qwen3Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=32,
        intermediate_size=3 * width,
        vocab_size=4 * width,
    )
    return Qwen3ForCausalLM(config).eval()


def measure(model: Qwen3ForCausalLM, threads: list[int], repetitions: int) -> dict[int, dict[str, list[Timing]]]:
    """Timings of both steps by number of threads, in turn."""
    few, row = (torch.randint(model.config.vocab_size, (1, tokens)) for tokens in (64, 1024))

    def decode() -> None:
        with torch.inference_mode():
            model(few, use_cache=False)

    def update() -> None:
        model(row, use_cache=False).logits.logsumexp(-1).mean().backward()
        model.zero_grad()

    found: dict[int, dict[str, list[Timing]]] = {number: {"decode": [], "update": []} for number in threads}
    for round_, number in itertools.product(range(repetitions + 1), threads):
        torch.set_num_threads(number)
        timings = {"decode": [timed(decode) for _ in range(5)], "update": [timed(update)]}
        if round_:  # the first warms up
            for name, new in timings.items():
                found[number][name] += new
    return found


def outputs(model: Qwen3ForCausalLM, threads: int) -> list[Tensor]:
    """Logits of passes of several lengths, with so many threads."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        return [model(torch.arange(length)[None] % 64, use_cache=False).logits for length in LENGTHS]


def main() -> None:
    """Prints a line for each model and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{machine.processor()}, parallelism {machine.parallelism():.2f}")
    for width, layers in zip(arguments.widths, arguments.layers, strict=True):
        model = model_of(width, layers)
        found = measure(model, arguments.threads, arguments.repetitions)
        alone = outputs(model, 1)
        for number, timings in found.items():
            equal = all(map(torch.equal, alone, outputs(model, number)))
            wall, cpu = (
                {name: 1e3 * statistics.median(getattr(timing, clock) for timing in of) for name, of in timings.items()}
                for clock in ("wall_s", "cpu_s")
            )
            print(
                f"{model.num_parameters() / 1e6:5.1f} M, {number} threads: decode step {wall['decode']:.1f} ms (CPU "
                f"{cpu['decode']:.1f}), update {wall['update']:.0f} ms (CPU {cpu['update']:.0f}), equal: {equal}",
                flush=True,
            )


if __name__ == "__main__":
    main()
