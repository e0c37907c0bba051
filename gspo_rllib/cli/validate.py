"""``gspo-rllib validate``: checks a whole config, its model folder and its environment; starts nothing."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli.seed_model import check_model_is_there
from gspo_rllib.cli.train import add_config_arguments, check_limits, overrides_of
from gspo_rllib.errors import GSPOError
from gspo_rllib.places import check_folder

if TYPE_CHECKING:
    from gspo_rllib.configs import Run

EXIT_INVALID = 1


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("validate", help="check a config before it is trained", description=__doc__)
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints what would be trained.

    Returns:
        0, or 1 where training would be refused; the reason is one line on standard error.
    """
    try:
        loaded = checked(arguments)
    except GSPOError as error:
        print(f"gspo-rllib: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_INVALID
    config = loaded.config
    from gspo_rllib.env_runners.engine_spec import chosen_engine

    choice = chosen_engine(config)
    engine = choice.name if config.engine is not None else f"{choice.name}, because {choice.why}"
    print(
        f"{arguments.config} is valid: {config.algo_class.__name__} with {config.env or config.play}, "
        f"model {config.model_config['path']}, engine {engine}"
    )
    return 0


def checked(arguments: argparse.Namespace) -> Run:
    """The run that the arguments describe.

    Raises:
        GSPOError: ``gspo-rllib train`` would refuse it.
    """
    from gspo_rllib.cli.quiet import hush
    from gspo_rllib.configs import load_run

    loaded = load_run(arguments.config, overrides_of(arguments))
    check_limits(loaded.settings, "this run")
    check_model_is_there(loaded, arguments.config)
    check_folder(loaded.settings.storage, "run.storage")
    hush(loaded.config, verbose=arguments.verbose)
    loaded.config.validate()
    return loaded
