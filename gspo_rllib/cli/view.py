"""``gspo-rllib view``: a page of trajectories, turn by turn and token by token, and of curves; of runs side by side."""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli import policy_source
from gspo_rllib.cli.cluster_address import address_of
from gspo_rllib.errors import SettingError
from gspo_rllib.places import file_to_write, named_path

if TYPE_CHECKING:
    from gspo_rllib.view.sources import Source

_EPILOG = (
    "Several runs, checkpoints or files are shown side by side, task by task: checkpoints play the same tasks. The "
    "page asks for nothing and can be sent to others as one file (--export)."
)


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("view", help="look at trajectories and curves in a browser", description=__doc__)
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="RUN|CHECKPOINT|FILE",
        help="a run's folder, a checkpoint, which plays now, recorded groups (.jsonl), kept trajectories (.parquet)",
    )
    parser.add_argument("--export", metavar="FILE", help="write the page here (.html) instead of serving it")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="serve it there; default: any free port")
    parser.add_argument("--no-browser", action="store_true", help="only say where it is served")
    parser.add_argument("--tokenizer", metavar="DIR", help="model folder for the texts of ids; default: the run's own")
    before = set(vars(parser.parse_args(["x"])))
    parser.add_argument("--episodes", type=int, default=16, metavar="N", help="tasks a checkpoint plays; default 16")
    parser.add_argument("--samples", type=int, default=4, metavar="K", help="trajectories per task; default 4")
    policy_source.add_playing(parser)
    parser.epilog = f"{_EPILOG} {parser.epilog}"
    playing = {name: value for name, value in vars(parser.parse_args(["x"])).items() if name not in before}
    parser.set_defaults(run=run, playing=playing)


def run(arguments: argparse.Namespace) -> int:
    """Makes the page, and writes or serves it."""
    from gspo_rllib.view.page import page
    from gspo_rllib.view.serve import server
    from gspo_rllib.view.sources import read_source

    address = address_of(arguments)
    for option in ("episodes", "samples"):
        policy_source.check_count(f"--{option}", getattr(arguments, option))
    file = None if arguments.export is None else file_to_write(arguments.export, "--export", ".html")
    tokenizer = None if arguments.tokenizer is None else named_path(arguments.tokenizer)
    if tokenizer is not None and not (tokenizer / "tokenizer.json").is_file() and not tokenizer.is_file():
        raise SettingError(f"--tokenizer: {arguments.tokenizer!r} is no folder with a tokenizer.json.")
    paths = [named_path(source) for source in arguments.sources]
    if not any(map(_plays, paths)):
        _check_nothing_plays(arguments)
    played = {path: _played(path, arguments, address, tokenizer) for path in paths if _plays(path)}
    title = " · ".join(path.resolve().name for path in paths)

    def make() -> str:
        return page([played.get(path) or read_source(path, tokenizer=tokenizer) for path in paths], title=title)

    if file is not None:
        file.write_text(make(), encoding="utf-8")
        print(f"{title}: {file}")
        return 0
    make()  # what is wrong is said here, not in the browser
    with server(make, port=arguments.port) as serving:
        address = f"http://127.0.0.1:{serving.server_port}/"
        print(f"{title}: {address} (Ctrl-C ends it; reload for what is new)", flush=True)
        if not arguments.no_browser and _has_screen():
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            serving.serve_forever()
    return 0


def _has_screen() -> bool:
    """Whether a browser would have a window; without one Python opens a browser of the terminal, over all output."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _plays(path: Path) -> bool:
    """Whether it is a folder that holds a policy: a checkpoint, or a model."""
    from gspo_rllib.checkpoints import MANIFEST

    return any((path / name).is_file() for name in (MANIFEST, "config.json"))


def _check_nothing_plays(arguments: argparse.Namespace) -> None:
    """Refuses options for what plays where nothing does.

    Raises:
        SettingError: One was given.
    """
    for name, default in arguments.playing.items():
        if getattr(arguments, name) != default:
            raise SettingError(
                f"--{name.replace('_', '-')} is for a checkpoint, which plays when it is looked at; here is none. "
                "Leave it out."
            )


def _played(path: Path, arguments: argparse.Namespace, address: str | None, tokenizer: Path | None) -> Source:
    """What a checkpoint plays; the same tasks whichever it is."""
    from gspo_rllib.checkpoints import policy_folder
    from gspo_rllib.cli.remote_player import opened_player
    from gspo_rllib.trajectory_table import row_of
    from gspo_rllib.view.sources import Source

    own = copy.copy(arguments)
    own.checkpoint = str(path)
    config = policy_source.policy_config(own)
    wanted, version = arguments.episodes * arguments.samples, policy_source.weights_version(own)
    with opened_player(
        config, address=address, episodes=wanted, group_size=arguments.samples, version=version
    ) as runner:
        rows = [row_of(episode) for episode in runner.sample(num_episodes=wanted)]
    for row in rows:
        row["trained"] = None
    folder = path if (path / "config.json").is_file() else policy_folder(path)
    found = tokenizer or folder
    file = found / "tokenizer.json" if found.is_dir() else found
    return Source(f"{path.parent.parent.name}/{path.name}", rows, [], file if file.is_file() else None)
