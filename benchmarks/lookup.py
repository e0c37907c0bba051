"""What prompt-lookup speculation could win: how often what a trajectory samples next already stands in its context.

    .venv/bin/python benchmarks/lookup.py calculator models/seed
    .venv/bin/python benchmarks/lookup.py quest models/quest --drafted 1

A drafter without a model: the last tokens of the context (as many as ``--match``, or fewer) are looked up further back,
and the tokens behind the latest place are proposed. An engine would put them through the model together with the next
token and keep those that it would have sampled itself; what is drawn being a function of its place, that is exact. So
nothing has to be implemented to count it: trajectories are sampled as they are, and their tokens gone through.

*tokens per step* is what a decoding step would yield, and *rows per step* what it would compute. Where a row costs the
same whatever stands beside it, as in the matrices of a small model on a CPU, speculation pays only in the part that
does not, reading the keys and values.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

from safetensors.numpy import load_file

from gspo_rllib.configs import load_run
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.types import TURN


@dataclass
class Count:
    """Of all turns so far.

    Attributes:
        tokens: Sampled.
        steps: That decoding them would have taken.
        drafted: Tokens that were proposed.
    """

    tokens: int = 0
    steps: int = 0
    drafted: int = 0

    def turn(self, context: list[int], sampled: list[int], match: int, most: int) -> None:
        """Adds a turn, sampled after a context."""
        at = 0
        while at < len(sampled):
            proposed = draft(context + sampled[:at], match, most)
            right = 0
            while right < len(proposed) and sampled[at + right : at + right + 1] == [proposed[right]]:
                right += 1
            self.drafted += len(proposed)
            self.steps += 1
            at += right + 1
        self.tokens += len(sampled)


def draft(context: Sequence[int], match: int, most: int) -> list[int]:
    """The tokens behind the latest earlier place of the context's longest ending that has one.

    Args:
        context: Token ids.
        match: Tokens of the longest ending that is looked up.
        most: Tokens that are proposed.

    Example:
        >>> draft([1, 2, 3, 9, 1, 2], match=2, most=2), draft([1, 2, 3], match=2, most=2)
        ([3, 9], [])
    """
    context = list(context)
    for length in range(match, 0, -1):
        ending = context[-length:]
        for start in range(len(context) - length - 1, -1, -1):
            if context[start : start + length] == ending:
                return context[start + length : start + length + most]
    return []


def main() -> None:
    """Samples, counts and prints a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a run's config, e.g. calculator")
    parser.add_argument("model", help="its policy")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--match", type=int, default=3, help="most tokens that are looked up")
    parser.add_argument("--drafted", type=int, nargs="+", default=[1, 3], help="most tokens that are proposed")
    args = parser.parse_args()
    settings = [f"rl_module.model_config.path={args.model}", "generation.engine=transformers"]
    runner = LanguageEnvRunner(config=load_run(args.config, settings).config, worker_index=0)
    runner.set_weights(load_file(f"{args.model}/model.safetensors"), 1)
    episodes = runner.sample(group_ids=[str(number) for number in range(args.groups)])
    runner.stop()
    for most in args.drafted:
        count = Count()
        for episode in episodes:
            context: list[int] = []
            for turn in episode.get_extra_model_outputs(TURN):
                context += map(int, turn.prompt_token_ids)
                count.turn(context, list(map(int, turn.action_token_ids)), args.match, most)
                context += map(int, turn.action_token_ids)
        rows = 1 + count.drafted / count.steps
        right = (count.tokens - count.steps) / max(1, count.drafted)
        print(
            f"{args.config}, {most} drafted: {count.tokens} tokens, {count.tokens / count.steps:.2f} tokens and "
            f"{rows:.2f} rows per step, {right:.0%} of the drafted tokens right"
        )


if __name__ == "__main__":
    main()
