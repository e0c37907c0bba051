"""A learning-rate sweep with Ray Tune; `gspo-rllib sweep calculator training.lr=1e-5,3e-5` does the same.

python examples/tune_sweep.py models/seed
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ray import tune

from gspo_rllib import load_config


def main(argv: list[str] | None = None) -> tune.ResultGrid:
    """Runs one trial per learning rate and prints the best."""
    parser = argparse.ArgumentParser(description="Sweep the learning rate.")
    parser.add_argument("model", help="Hugging Face folder, e.g. from `gspo-rllib warmstart`")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--iterations", type=int, default=10)
    options = parser.parse_intermixed_args(argv)
    # A trial runs in a folder of its own, where a relative path would mean something else.
    model = Path(options.model).resolve()
    config = load_config("quickstart", [f"rl_module.model_config.path={model}", *options.overrides])
    config.training(lr=tune.grid_search([1e-5, 3e-5]))
    # Importing the config registered "GSPO" with Tune.
    results = tune.Tuner(
        "GSPO",
        param_space=config,
        run_config=tune.RunConfig(stop={"training_iteration": options.iterations}, verbose=1),
    ).fit()
    best = results.get_best_result("env_runners/episode_return_mean", mode="max")
    print(f"best: lr={best.config['lr']}, return {best.metrics['env_runners']['episode_return_mean']:.3f}")
    return results


if __name__ == "__main__":
    main()
