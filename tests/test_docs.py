"""Documents cannot rot: commands parse, snippets and doctests run, tables say what the code says."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import json
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

from gspo_rllib import columns, metrics, ops
from gspo_rllib.algorithms import ALGORITHMS, GSPOConfig
from gspo_rllib.algorithms.policy_gradient.guards import cautions, refusals
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.cli.main import build_parser, main, parse_arguments
from gspo_rllib.configs.runs import load_run
from gspo_rllib.driver import selection
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.learners import statistics
from tests.documents import DOCUMENTS, ROOT
from tests.documents import blocks as _blocks
from tests.documents import commands as _commands
from tests.golden.settings import AGGREGATED, SETTINGS

OBJECTIVES = ROOT / "docs" / "objectives.md"
ENVIRONMENTS = ROOT / "docs" / "environments.md"


def _modules_with_doctests() -> list[str]:
    names = []
    for folder, subfolders, files in os.walk(ROOT / "gspo_rllib", followlinks=True):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        for file in files:
            path = Path(folder, file)
            if path.suffix == ".py" and ">>> " in path.read_text():
                parts = path.relative_to(ROOT).with_suffix("").parts
                names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_could_be_run(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for command in _commands(path):
        program, *arguments = shlex.split(command)
        if program == "gspo-rllib":
            parse_arguments(arguments)
        elif program == "make":
            assert {a for a in arguments if "=" not in a} <= targets, command
        elif program.endswith("python") and not arguments[0].startswith("-"):
            assert (ROOT / arguments[0]).is_file(), command
        else:
            assert program in {"pip", "git", "cd", "ray", ".venv/bin/python"}, command


def test_the_documents_show_all_of_the_command_line() -> None:
    readme, runs = (
        {shlex.split(c)[1] for c in _commands(path) if c.startswith("gspo-rllib")}
        for path in (ROOT / "README.md", ROOT / "docs" / "runs.md")
    )
    first_day = {"train", "rollout", "evaluate", "sweep", "export", "warmstart", "check-env", "list"}
    assert readme == first_day | {"settings", "validate"}
    assert runs == set(build_parser()._subparsers._group_actions[0].choices)


def test_the_readme_snippets_run(
    tiny_dense: str, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, train = _blocks(ROOT / "README.md", "python")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "seed").symlink_to(tiny_dense)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(build, "README.md", "exec"), names)
    # What the snippet asks for takes minutes on two cores: the same calls with a small batch and the embedded engine.
    names["config"].environment(env_config={"operations": 1}).env_runners(num_env_runners=0)
    names["config"].generation(engine="transformers", max_tokens_per_turn=2)
    names["config"].training(group_size=2, groups_per_iteration=4)
    exec(compile(train, "README.md", "exec"), names)
    assert names["result"]["training_iteration"] == 1


@pytest.mark.parametrize("name", _modules_with_doctests())
def test_the_doctests_of_a_module_pass(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.attempted
    assert not outcome.failed


def _entries(docstring: str) -> list[str]:
    """The texts of the Args, Attributes and Returns of a docstring, without the names they belong to."""
    sections = re.findall(r"^(Args|Attributes|Returns|Yields):\n((?:    .*\n|\n)+)", f"{docstring}\n", flags=re.M)
    return [
        re.sub(r"^[\w*]+: ", "", text) if section in ("Args", "Attributes") else text
        for section, body in sections
        for text in re.findall(r"^    (\S.*)", body, flags=re.M)
    ]


def test_an_entry_of_a_docstring_says_what_the_value_is() -> None:
    assert _entries(inspect.getdoc(ops.k1) or "")[1] == "The same tokens under the other policy."
    riddles, count = [], 0
    for top in ("gspo_rllib", "algorithms", "configs", "envs", "examples", "benchmarks"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    entries = _entries(ast.get_docstring(node) or "")
                    count += len(entries)
                    where = f"{path.relative_to(ROOT)} {node.name}"
                    riddles += [f"{where}: {text}" for text in entries if re.match(r"(Of|Its|Likewise)\b", text)]
    assert count > 800
    assert not riddles, "\n".join(riddles)


def test_the_doctests_of_the_pin_list_pass() -> None:
    spec = importlib.util.spec_from_file_location("regenerate", ROOT / "requirements" / "regenerate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    outcome = doctest.testmod(module)
    assert outcome.attempted and not outcome.failed


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 150
    assert f"python examples/{path.name}" in text


def _section(path: Path, title: str) -> str:
    return path.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def _rows(text: str) -> list[list[str]]:
    """The body rows of the Markdown tables in a text, cells without their backticks at the ends."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def _arguments(cell: str, **names: Any) -> dict[str, Any]:
    return {} if cell == "defaults" else eval(f"dict({cell})", {}, names)


def test_the_objectives_in_python_yaml_and_tune_are_the_same(tmp_path: Path, ray_local: None) -> None:
    build, sweep = _blocks(OBJECTIVES, "python")
    (document,) = _blocks(OBJECTIVES, "yaml")
    (tmp_path / "run.yaml").write_text(document)
    names: dict[str, Any] = {}
    exec(compile(build, OBJECTIVES.name, "exec"), names)
    from_python, run = names["config"].settings(TrainingSettings), load_run(tmp_path / "run.yaml")
    assert run.config.settings(TrainingSettings) == from_python
    assert (run.config.env, run.config.env_config) == (names["config"].env, names["config"].env_config)
    assert not [*refusals(from_python, recomputes_old_log_probs=False), *cautions(from_python)]
    exec(compile(sweep, OBJECTIVES.name, "exec"), names)
    for level in names["config"].importance_sampling_level["grid_search"]:
        swept = dataclasses.replace(from_python, importance_sampling_level=level)
        assert not list(refusals(swept, recomputes_old_log_probs=False)), level


def test_the_loss_example_of_the_objectives_runs() -> None:
    (example,) = _blocks(OBJECTIVES, "pycon")
    assert 10 <= len(example.splitlines()) <= 18
    parsed = doctest.DocTestParser().get_doctest(example, {}, "policy_loss", OBJECTIVES.name, 0)
    outcome = doctest.DocTestRunner().run(parsed)
    assert outcome.attempted and not outcome.failed


def test_the_objectives_name_every_value_of_every_setting() -> None:
    sections = OBJECTIVES.read_text().split("\n## ")
    for field in dataclasses.fields(TrainingSettings):
        for value in field.metadata["choices"] or ():
            told = [section for section in sections if f"`{field.name}`" in section]
            assert any(f"`{value}`" in section for section in told), (field.name, value)


def test_the_objectives_name_every_statistic_and_count_of_theirs() -> None:
    named = set(re.findall(r"`([a-z_]+)(?:/64)?`", OBJECTIVES.read_text()))
    assert set(selection.COUNTS) <= named
    means = {name.split("/")[0] for name in statistics.UPDATE_MEANS if name not in statistics._INTERMEDIATE}
    bookkeeping = {statistics.LOSS, statistics.ENTROPY, statistics.ADVANTAGE_ABS_MEAN, statistics.GRAD_NORM}
    told = {*means - bookkeeping, statistics.LOGP_GAP_MAX, statistics.EFFECTIVE_SAMPLE_SIZE, statistics.CLIP_SCALE}
    assert told <= named


def test_the_objectives_name_functions_that_exist() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"`(?:gspo_rllib\.)?ops\.([a-z_0-9]+)", path.read_text()):
            assert hasattr(ops, name), (path.name, name)


def test_the_objectives_of_other_libraries_are_those_the_golden_values_are_reproduced_with() -> None:
    rows = {row[0]: row for row in _rows(_section(OBJECTIVES, "To get another library's objective"))[1:]}
    golden = json.loads((ROOT / "tests" / "golden" / "gspo_peers.json").read_text())
    assert set(rows) == set(golden["results"])
    mask_BT = torch.ones(3, 5, dtype=torch.bool)
    for name, (_, _, training, call, _) in rows.items():
        used = {key: value(mask_BT) if callable(value) else value for key, value in SETTINGS[name].items()}
        assert _arguments(call, B=3, T=5) == used, name
        # The same by settings: whatever is a number of this batch, or no setting, is told in words.
        knobs = {field.name for field in dataclasses.fields(TrainingSettings)} - {"token_sum_length"}
        settings = _arguments(training)
        averaged = settings.pop("advantage_aggregation", "none") == "trajectory_mean"
        assert averaged == (name in AGGREGATED), name
        length = settings.pop("token_sum_length", None)
        assert settings == {key: value for key, value in used.items() if key in knobs}, name
        assert (length is None) == ("token_sum_length" not in used), name
        GSPOConfig().training(token_sum_length=length, **settings).settings(TrainingSettings)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_a_readme_with_its_paper_and_its_settings(name: str) -> None:
    algorithm = ALGORITHMS[name]
    module = inspect.getmodule(algorithm)
    assert module is not None and module.__file__ and module.__doc__
    readme = Path(module.__file__).with_name("README.md")
    (paper,) = re.findall(r"arXiv:([0-9.]+)v[0-9]+", module.__doc__)
    assert f"[arXiv:{paper}](https://arxiv.org/abs/{paper})" in readme.read_text()
    assert "\n## Deviations from the paper\n" in readme.read_text()
    own, gspo = algorithm.get_default_config().training_settings(), GSPOConfig.training_settings()
    knobs = [field.name for field in dataclasses.fields(own)]
    changed = [knob for knob in knobs if getattr(own, knob) != getattr(gspo, knob)]
    if not changed:
        return
    header, *rows = _rows(_section(readme, "What differs from GSPO"))
    assert header == ["Setting", name, "GSPO"] and len(rows) == len(changed)
    for setting, here, there in rows:
        assert setting in changed
        assert (here, there) == (str(getattr(own, setting)), str(getattr(gspo, setting)))


def _section_blocks(path: Path, title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", _section(path, title), flags=re.M | re.S)


def _run_session(text: str, names: dict[str, Any]) -> None:
    parsed = doctest.DocTestParser().get_doctest(text, names, ENVIRONMENTS.name, ENVIRONMENTS.name, 0)
    outcome = doctest.DocTestRunner().run(parsed)
    assert outcome.attempted and not outcome.failed


def test_the_environment_of_your_own_keeps_the_contract_and_trains(
    tiny_dense: str,
    ray_local: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, train = _section_blocks(ENVIRONMENTS, "Write your own", "python")
    assert module.count("class ") == 1 and len(module.splitlines()) <= 30
    (tmp_path / "backwards.py").write_text(module)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "seed").symlink_to(tiny_dense)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (command,) = [shlex.split(c) for c in _commands(ENVIRONMENTS) if "check-env" in c]
    assert main(command[1:]) == 0
    assert "keeps the language-environment contract" in capsys.readouterr().out

    game = gymnasium.make(command[2])
    word, _ = game.reset(seed=0)
    assert sum(game.step(letter)[1] for letter in reversed(word)) == pytest.approx(1.0)

    # The snippet's own sizes take minutes on two cores: a small batch and the embedded engine.
    build, made, rest = train.partition("algo = ")
    names: dict[str, Any] = {}
    exec(compile(build, ENVIRONMENTS.name, "exec"), names)
    names["config"].env_runners(num_env_runners=0).generation(engine="transformers", max_tokens_per_turn=2)
    names["config"].training(group_size=2, groups_per_iteration=4)
    exec(compile(made + rest, ENVIRONMENTS.name, "exec"), names)
    assert names["result"]["training_iteration"] == 1
    assert names["result"]["env_runners"]["num_trajectory_failures"]["raised"] == 0


@pytest.mark.parametrize("section", ["The contract", "Tools", "Datasets"])
def test_the_examples_of_the_environments_say_what_happens(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {"__name__": "environments"}
    for block in _section_blocks(ENVIRONMENTS, section, "python"):
        exec(compile(block, ENVIRONMENTS.name, "exec"), names)
    sessions = _section_blocks(ENVIRONMENTS, section, "pycon")
    assert sessions
    for session in sessions:
        _run_session(session, names)


def test_the_table_of_environments_holds_every_id_and_the_numbers_that_were_measured() -> None:
    importlib.import_module("gspo_rllib.envs")  # registers them
    _, *rows = _rows(_section(ENVIRONMENTS, "All environments"))
    registered = {name.removeprefix("gspo_rllib/") for name in gymnasium.registry if name.startswith("gspo_rllib/")}
    assert {row[0] for row in rows} == registered
    measured = json.loads((ROOT / "docs" / "results" / "envs.json").read_text())

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    expected = {
        (
            row["env"].removeprefix("gspo_rllib/"),
            ", ".join(f"{k}={v}" for k, v in row["kwargs"].items()) or "defaults",
        ): [
            f"{row['turns_mean']:.1f} ({row['turns_max']})",
            str(row["max_turns"]),
            *(number(row[policy]) for policy in ("expert", "random_valid", "random_text")),
            f"{float(format(row['steps_per_s'], '.2g')):,.0f}",
        ]
        for row in measured
    }
    assert {(row[0], row[2]): row[3:9] for row in rows if row[3] != "–"} == expected
    # These cannot be made without an argument, so there is nothing to measure.
    assert {row[0] for row in rows if row[3] == "–"} == {"Dataset-v0", "OpenEnv-v0"}


def test_the_environments_name_extras_settings_and_metrics_that_exist() -> None:
    text = ENVIRONMENTS.read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    cells = "".join(
        line.rsplit("|", 2)[1]
        for line in _section(ENVIRONMENTS, "All environments").splitlines()
        if line.startswith("| `")
    )
    named = set(re.findall(r"`([a-z-]+)`", cells)) | set(re.findall(r"gspo-rllib\[([a-z-]+)\]", text))
    assert len(named) > 5 and named <= set(extras)
    counted = set(re.findall(r"`((?:num|success)_[a-z_]+|(?:env|engine|sample)[a-z_]*_s)`", text))
    assert counted - {"num_envs_per_env_runner"} <= {value for name, value in vars(metrics).items() if name.isupper()}
    knobs = {field.name for field in dataclasses.fields(GenerationSettings)}
    told = (
        "context_overflow",
        "segment_share",
        "max_summary_tokens",
        "step_timeout_s",
        "trajectory_retries",
        "max_turns",
    )
    for name in (*told, "ragged_groups", "max_model_len"):
        assert name in knobs and f"`{name}" in text, name
    for name in ("segment_share", "max_summary_tokens", "step_timeout_s", "trajectory_retries"):
        assert f"`{name}` ({getattr(GenerationSettings(), name):g})" in text, name


def test_every_file_of_the_environments_has_a_line() -> None:
    folder = ROOT / "envs"
    linked = set(re.findall(r"\]\(([a-z_/.]+)\)", (folder / "README.md").read_text()))
    files = {path.name for path in folder.glob("*.py")}
    files |= {f"adapters/{path.name}" for path in (folder / "adapters").glob("*.py")} - {
        f"adapters/{name}.py" for name in ("__init__", "suite", "jvm", "randomness")
    }
    assert files <= linked


CONTRIBUTING = ROOT / "CONTRIBUTING.md"


def _paths_named(text: str) -> list[str]:
    """Everything between backticks that is written like a path of this project."""
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()} - {".git", ".venv"}
    quoted = re.findall(r"`([^`\s]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    paths = [name for name in quoted if name.partition("/")[0] in tops or re.fullmatch(r"[\w-]+\.(?:md|toml)", name)]
    return [path for path in paths if not re.search(r"-v\d+$", path)]  # the id of an environment


def test_every_file_that_contributing_names_exists() -> None:
    named = _paths_named(CONTRIBUTING.read_text())
    assert len(named) >= 30
    # NAME stands for one of several: there must be an example to look at.
    assert not [name for name in named if not list(ROOT.glob(name.rstrip("/").replace("NAME", "*")))]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_list_for_an_algorithm_is_what_every_algorithm_has(name: str) -> None:
    module = inspect.getmodule(ALGORITHMS[name])
    assert module is not None and module.__file__
    folder = Path(module.__file__).parent.name
    files = [row[0] for row in _rows(_section(CONTRIBUTING, "Add an algorithm")) if "NAME" in row[0]]
    sources = [file.replace("NAME", folder) for file in files if file.startswith("algorithms/")]
    assert len(sources) == 3 and not [source for source in sources if not (ROOT / source).is_file()]
    text = (ROOT / "benchmarks" / "learning.py").read_text(), (ROOT / "pyproject.toml").read_text()
    assert f'"{name}": [' in text[0] and f'"gspo_rllib.algorithms.{folder}"' in text[1]


def test_a_loss_of_ones_own_is_the_example_that_the_objectives_show() -> None:
    section = _section(OBJECTIVES, "A loss of your own")
    (call,) = re.findall(r"learner_class=(\w+)", section)
    assert f"class {call}(" in (ROOT / "examples" / "custom_loss.py").read_text()
    for name in re.findall(r"columns\.([A-Z_]+)", section):
        assert hasattr(columns, name), name
    for module, attribute in {
        "gspo_rllib.learners.language_learner": "LanguageLearner",
        "gspo_rllib.algorithms.policy_gradient.learner": "PolicyGradientLearner",
    }.items():
        assert module in section and attribute in section
        learner = getattr(importlib.import_module(module), attribute)
        assert all(hasattr(learner, name) for name in ("own_statistics", "trains_on_zero_advantages"))
        assert hasattr(learner, "recomputes_old_log_probs")
