"""The command's entry: parses arguments, runs one sub-command, turns our errors into one line and exit code 2."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from gspo_rllib import __version__
from gspo_rllib.cli import (
    check_env,
    evaluate,
    export,
    listing,
    plan,
    recipes,
    replay,
    report,
    rollout,
    settings,
    slurm,
    study,
    sweep,
    train,
    validate,
    view,
    warmstart,
)
from gspo_rllib.cli.interrupts import Terminated, ends_on_signals
from gspo_rllib.cli.output import EXIT_OUTPUT_LOST, sturdy_output
from gspo_rllib.cli.terminal import tell, warnings_told
from gspo_rllib.errors import own_error

COMMANDS = (
    train,
    evaluate,
    rollout,
    sweep,
    slurm,
    study,
    plan,
    export,
    validate,
    settings,
    recipes,
    warmstart,
    check_env,
    view,
    replay,
    listing,
    report,
)

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_NOBODY_READS = 141
"""128 + SIGPIPE, as shells report a program that wrote to a pipe nobody reads any more."""


class _Help(argparse.HelpFormatter):
    """Has room for the longest name of a command beside what it does; argparse forgets how far those are indented."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = len("    check-env")


class _OneLineParser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, like every other error here, and shows help as people read it."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, formatter_class=_Help)

    def format_help(self) -> str:
        """Descriptions are docstrings, which mark code as reStructuredText does."""
        return super().format_help().replace("``", "`")

    def error(self, message: str) -> NoReturn:
        """Prints the message and where help is, then exits."""
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _OneLineParser(prog="gspo-rllib", description="GSPO for multi-turn language agents on Ray RLlib.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)

    def show_help(_arguments: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(run=show_help)
    return parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line; overrides may stand anywhere among the options.

    Raises:
        SystemExit: The command line is wrong (code 2), or asked for help (code 0).
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse fills a list of positionals from one place only and leaves those behind a later option.
    overrides = [item for item in rest if "=" in item and not item.startswith("-") and hasattr(arguments, "overrides")]
    unknown = [item for item in rest if item not in overrides]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if overrides:
        arguments.overrides = [*arguments.overrides, *overrides]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments without the program's name; None for the process's own.

    Returns:
        The exit code: 0 done, 2 bad input, 130 interrupted, 129 and 143 ended by SIGHUP and SIGTERM, 141 when whoever
        read the output (``| head``) has left, 74 when it is done and there was no room for what it printed.
    """
    with sturdy_output() as output:
        try:
            try:
                code = _run(argv)
            finally:
                # Now, while it can be answered for: what is left in the buffer is otherwise written when Python ends.
                sys.stdout.flush()
        except BrokenPipeError:
            if not _nobody_reads():
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_NOBODY_READS
        return code or (EXIT_OUTPUT_LOST if output.is_lost else 0)


def _nobody_reads() -> bool:
    """Whether it is our output that cannot be written; what an environment writes to may break, too."""
    output = select.poll()
    try:
        output.register(sys.stdout, 0)
    except OSError:  # no file
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in output.poll(0))


def _run(argv: Sequence[str] | None) -> int:
    # Before anything imports ray: no usage report, no dashboard question, no warning about hidden accelerators.
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    arguments = parse_arguments(argv)
    if not getattr(arguments, "verbose", False):
        # What Ray's daemons report (a node is gone, a worker died) is in Ray's logs, and we say what it means.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    _import_from_here()
    try:
        with ends_on_signals(), warnings_told():
            return int(arguments.run(arguments))
    except Terminated as error:
        print(f"gspo-rllib: ended by {error.signal.name}, with nothing to save", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("gspo-rllib: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    # Ray re-raises what a remote actor raised, with our error as its cause.
    except Exception as error:
        ours = own_error(error)
        if ours is None:
            raise
        tell(f"gspo-rllib: {' '.join(str(ours).split())}", to=sys.stderr)
        return EXIT_BAD_INPUT


def _import_from_here() -> None:
    """Has modules of the current folder found, as ``python -m`` does; Ray does the same for its workers."""
    here = os.getcwd()
    if not sys.flags.safe_path and here not in sys.path:
        sys.path.insert(0, here)


if __name__ == "__main__":
    sys.exit(main())
