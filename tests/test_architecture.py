"""The shape of the tree: imports flow down, one name per module, no file that does two things, a test at every path."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("gspo_rllib", "algorithms", "envs", "configs", "studies", "examples", "benchmarks", "requirements")


def _python_files() -> Iterator[Path]:
    for top in SOURCES:
        for folder, subfolders, files in os.walk(ROOT / top):
            subfolders[:] = [name for name in subfolders if name != "__pycache__"]
            yield from (Path(folder, file) for file in files if file.endswith(".py"))


def test_imports_flow_down() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["algorithms", "configs", "envs", "studies"])
def test_a_folder_cannot_be_imported_under_its_bare_name(name: str) -> None:
    code = f"import {name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError" in done.stderr.splitlines()[-1]
    assert f"gspo_rllib.{name}" in done.stderr


def test_only_the_vllm_engine_imports_vllm() -> None:
    importers = {
        path.relative_to(ROOT / "gspo_rllib").as_posix()
        for path in _python_files()
        if path.is_relative_to(ROOT / "gspo_rllib")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm")
        or (isinstance(node, ast.Import) and any(a.name.partition(".")[0] == "vllm" for a in node.names))
    }
    assert importers
    assert all(name.startswith("engines/vllm") for name in importers)


def test_no_place_is_named_for_nothing() -> None:
    names = {"utils", "common", "misc", "helpers"}
    assert not [path for path in _python_files() if names & {*path.parts, path.stem}]


def test_files_and_functions_do_one_thing() -> None:
    too_long = []
    for path in _python_files():
        text = path.read_text()
        if text.count("\n") > 400:
            too_long.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                if lines > 60:
                    too_long.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    assert not too_long, "\n".join(too_long)


def test_every_module_says_what_it_is_for() -> None:
    assert not [path for path in _python_files() if not ast.get_docstring(ast.parse(path.read_text()))]


# Tests of the whole, which have no source of their own; everything else is the test of the source at its path.
SPANNING = {
    "agents/test_doors.py": "agents, outside harnesses and recorded groups, however a run is opened",
    "agents/test_fuzz.py": "requests meant to break the server, in every dialect",
    "agents/test_frameworks.py": "agents of real frameworks, and the snippets of their documentation",
    "agents/test_on_vllm.py": "agents on the other engine",
    "agents/test_rewritten_histories.py": "what frameworks do to conversations, from messages to prompts",
    "agents/test_runner_kills.py": "agents whose env runner dies with live sessions",
    "agents/test_training.py": "agents, from the function to the weights",
    "algorithms/policy_gradient/test_adapter_run.py": "a policy with an adapter, from the environment to what loads it",
    "algorithms/policy_gradient/test_sharded_run.py": "learners that share the model, all rooms together",
    "algorithms/policy_gradient/test_recorded_run.py": "what a fixed seed samples and learns, all rooms together",
    "benchmarks/test_smoke.py": "every benchmark runs to its end",
    "cli/test_sweep_pbt.py": "what a trial holds after it took over from another, all rooms together",
    "configs/test_gsm8k.py": "the recipe for GSM8K, from its file to an evaluation of every row",
    "driver/test_engine_core.py": "vLLM's core below an env runner is killed or stopped, all rooms together",
    "driver/test_driver_memory.py": "what a driver holds, from the first actor to a restored run",
    "env_runners/test_tensor_parallel.py": "an engine over two processes, in an env runner's actor",
    "driver/test_group_life.py": "groups' life under faults, with every schedule, on the algorithm's own training step",
    "envs/test_checker_instances.py": "the checker on what is made already, wrapped or not",
    "envs/test_exports.py": "public names",
    "ops/test_masked_trajectories.py": "every objective: what is masked weighs nothing",
    "warmstart/test_wrapped_environments.py": "experts and framing of wrapped environments",
    "view/test_in_browser.py": "the page, in a real browser",
    "test_architecture.py": "the shape of the tree",
    "cli/test_copied_checkpoints.py": "checkpoints on other storage, from the command",
    "cli/test_two_nodes.py": "commands on a cluster of two nodes",
    "test_conftest.py": "a skipped test fails the run that allows none",
    "test_docs.py": "documents, and every doctest",
    "test_launchers.py": "the image and the Kubernetes job",
    "test_learning.py": "training runs, from the environment to the weights",
    "test_packaging.py": "the wheel and the pinned list",
    "test_pages.py": "links, tables and the index of the documents",
    "test_peer_claims.py": "bugs of other implementations, in ops, connectors and packing",
    "test_snippets.py": "every snippet of the documents, and which test runs it",
    "test_site.py": "the documentation's site",
    "test_recorded_groups.py": "the page on recorded groups, and what converts to them",
    "test_peer_claims_learner.py": "bugs of other implementations, with a model in the learner",
}
# Sources without a test file of their own, and where they are tested: behind the door they are used through.
TESTED_IN = {
    "engines/expert_pass.py": "algorithms/policy_gradient/test_router_gap.py",
    "cli/wandb_runs.py": "cli/test_trackers.py",
    "learners/quantiles.py": "learners/test_statistics.py",
    "learners/old_policy.py": "modules/test_routing_replay.py",
    "learners/router_drift.py": "modules/test_routing.py",
    "study/gradient_plan.py": "cli/test_study.py",
    "study/gradients.py": "cli/test_study.py",
    "study/runs.py": "cli/test_study.py",
    "study/trial.py": "cli/test_study.py",
    "__main__.py": "cli/test_main.py",
    "cli/sweep_resume.py": "cli/test_sweep.py",
    "agents/address.py": "agents/test_external.py",
    "agents/agent_session.py": "agents/test_server.py",
    "agents/agent_thread.py": "env_runners/test_agent_env_runner.py",
    "agents/chat_completions.py": "agents/test_server.py",
    "agents/connection.py": "agents/test_server.py",
    "agents/dialect.py": "agents/test_server.py",
    "agents/defused.py": "agents/test_rendering.py",
    "agents/door.py": "agents/test_server.py",
    "agents/endpoint.py": "agents/test_server.py",
    "agents/env_agent.py": "env_runners/test_agent_env_runner.py",
    "agents/record_fields.py": "driver/test_group_file.py",
    "agents/recorded_calls.py": "driver/test_group_file.py",
    "agents/raw_prompts.py": "agents/test_completions.py",
    "agents/external_routes.py": "agents/test_external.py",
    "agents/http_session.py": "agents/test_process_workers.py",
    "agents/lobby.py": "agents/test_external.py",
    "agents/process_child.py": "agents/test_process_workers.py",
    "agents/process_guard.py": "agents/test_process_workers.py",
    "agents/script.py": "agents/test_rendering.py",
    "agents/settings.py": "algorithms/policy_gradient/test_validation.py",
    "agents/workers.py": "env_runners/test_agent_env_runner.py",
    "algorithms/": "algorithms/policy_gradient/",
    "chat/trial.py": "bad_input/test_bad_input.py",
    "chat/format.py": "env_runners/test_chat.py",
    "chat/frames.py": "env_runners/test_chat.py",
    "checkpoints/components.py": "algorithms/policy_gradient/test_saved_as_data.py",
    "checkpoints/pickled.py": "algorithms/gspo/test_gspo.py",
    "cli/curve.py": "cli/test_train.py",
    "cli/model_card.py": "cli/test_export.py",
    "cli/push.py": "cli/test_export.py",
    "cli/policy_source.py": "cli/test_evaluate.py",
    "driver/learner_calls.py": "driver/test_learner_team.py",
    "driver/learner_watch.py": "driver/test_learner_team.py",
    "driver/saved_groups.py": "driver/test_fixed_lag.py",
    "driver/setup_state.py": "algorithms/policy_gradient/test_sharded_run.py",
    "driver/watched_manager.py": "driver/test_learner_team.py",
    "learners/trained_tokens.py": "algorithms/policy_gradient/test_kept_trajectories.py",
    "learners/minibatch.py": "learners/test_language_learner.py",
    "modules/model_config.py": "modules/test_foreign_words.py",
    "cli/report.py": "cli/test_provenance.py",
    "cli/quiet.py": "cli/test_main.py",
    "cli/remote_player.py": "cli/test_two_nodes.py",
    "cli/slurm_script.py": "cli/test_slurm.py",
    "cli/rows.py": "cli/test_evaluate.py",
    "columns.py": "test_packing.py",
    "configs/run_settings.py": "configs/test_runs.py",
    "connectors/episodes_to_tokens.py": "learners/test_language_learner.py",
    "connectors/scoring.py": "modules/test_prefix_attention.py",
    "driver/failures.py": "test_weight_sync.py",
    "driver/protocol.py": "driver/test_stream.py",
    "engines/": "contracts/test_engines.py",
    "env_pool/trial.py": "bad_input/test_bad_input.py",
    "env_pool/calls.py": "env_pool/test_pool.py",
    "env_pool/session.py": "env_pool/test_pool.py",
    "env_runners/": "env_runners/test_rollout.py",
    "envs/adapters/": "envs/adapters/test_suite.py",
    "envs/answer_table.py": "envs/test_verifiers.py",
    "envs/answers.py": "envs/test_verifiers.py",
    "envs/checked_subject.py": "envs/test_checker_instances.py",
    "envs/checked_play.py": "envs/test_checker.py",
    "envs/dataset_cells.py": "envs/test_dataset.py",
    "envs/dataset_hub.py": "envs/test_dataset.py",
    "envs/dataset_rows.py": "envs/test_dataset.py",
    "envs/dataset_text.py": "envs/test_dataset.py",
    "envs/exact_numbers.py": "envs/test_verifiers.py",
    "envs/judge.py": "envs/test_verifiers.py",
    "envs/judge_child.py": "envs/test_verifiers.py",
    "envs/number_reader.py": "envs/test_verifiers.py",
    "envs/numbers.py": "envs/test_verifiers.py",
    "envs/plain_maths.py": "envs/test_verifiers.py",
    "envs/sandbox/": "contracts/test_sandboxes.py",
    "envs/spaces.py": "contracts/test_envs.py",
    "envs/text_task.py": "contracts/test_native_envs.py",
    "envs/tools/schemas.py": "envs/tools/test_declare.py",
    "errors.py": "cli/test_main.py",
    "knobs.py": "algorithms/policy_gradient/test_validation.py",
    "learners/settings.py": "algorithms/policy_gradient/test_validation.py",
    "learners/sharding_settings.py": "algorithms/policy_gradient/test_learner_checks.py",
    "lent_weights.py": "algorithms/policy_gradient/test_colocation.py",
    "policy_state.py": "test_weight_sync.py",
    "freed_memory.py": "modules/test_recomputation.py",
    "modules/saved_policy.py": "modules/test_adapter.py",
    "metrics.py": "cli/test_progress.py",
    "model_folder.py": "algorithms/policy_gradient/test_validation.py",
    "model_check.py": "bad_input/test_bad_input.py",
    "modules/attention.py": "modules/test_prefix_attention.py",
    "modules/hidden_states.py": "modules/test_critic.py",
    "modules/loading.py": "modules/test_causal_lm.py",
    "modules/merging.py": "algorithms/policy_gradient/test_adapter_run.py",
    "modules/probe.py": "modules/test_exactness.py",
    "modules/scoring.py": "modules/test_exactness.py",
    "modules/settings.py": "algorithms/policy_gradient/test_validation.py",
    "ops/spans.py": "algorithms/policy_gradient/test_choices.py",
    "claims.py": "cli/test_run_claim.py",
    "places.py": "bad_input/test_bad_input.py",
    "run_results.py": "cli/test_recorder.py",
    "types.py": "env_runners/test_rollout.py",
    "value_forms.py": "bad_input/test_bad_input.py",
    "warmstart/student.py": "warmstart/test_imitation.py",
}
TESTS = ROOT / "tests"


def _test_files() -> list[str]:
    return sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py"))


def _exists(source: str) -> bool:
    return any((ROOT / top / source).is_file() for top in ("gspo_rllib", "."))


def test_a_test_file_is_at_the_path_of_what_it_tests() -> None:
    rooms_of_their_own = ("bad_input/", "contracts/", "golden/")
    mirrored = [name for name in _test_files() if name not in SPANNING and not name.startswith(rooms_of_their_own)]
    assert not [name for name in mirrored if not _exists(name.replace("/test_", "/").removeprefix("test_"))]
    assert set(SPANNING) <= set(_test_files())


def test_every_source_file_has_its_test_at_its_path_or_a_line_that_says_where() -> None:
    homeless, tests = [], _test_files()
    for folder, subfolders, files in os.walk(ROOT / "gspo_rllib", followlinks=True):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        for file in files:
            source = Path(folder, file).relative_to(ROOT / "gspo_rllib")
            elsewhere = any(source.as_posix().startswith(start) for start in TESTED_IN)
            if file.endswith(".py") and file != "__init__.py" and not elsewhere:
                homeless += [] if source.with_name(f"test_{file}").as_posix() in tests else [source.as_posix()]
    assert not homeless, "add a test at the mirrored path, or a line to TESTED_IN"
    assert all((TESTS / test).exists() for test in TESTED_IN.values())
    assert all((ROOT / "gspo_rllib" / source).exists() for source in TESTED_IN)


def test_no_test_imports_another() -> None:
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            parts = {part for name in [module, *names] for part in name.split(".")}
            assert not [part for part in parts if part.startswith("test_") or part == "conftest"], path
