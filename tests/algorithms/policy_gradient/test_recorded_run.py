"""Fixed seeds give the ids and the weights that were recorded: sampling in turns with learning and beside it.

``tests/golden/calculator_run.json`` says of which commit, ``tests/recorded_runs.py`` plays the runs and records them.
What is compared, of three iterations of Calculator on a tiny policy:

- every trajectory that the iterations train on: ids, rewards, prompts (by checksum) and the weights version of each
  turn, exactly. Two synchronous runs must give the same recording, with a runner in this process and with two others.
- what the learner measured in each iteration, and the change of every weight tensor over all of them: norm, sum, and
  its three largest entries.

Beside learning, the time at which a runner takes up weights, and which groups are finished first, are no function of
the seed. ``recorded_runs.play`` therefore holds runners and learner up at fixed points. What happens at other times
(several trajectories at once in a runner, weights within a turn) is not compared here: bounds and orders that hold at
any time are tested with the parts that keep them.

Tolerance: where a processor lacks some vector instructions, or an engine batches otherwise, the last bits of a product
differ. That moved no number by more than 2e-5 of its tensor's change. A gradient off by a thousandth fails, and so do
a loss of the wrong sign, another group, another minibatch and another seed.
"""

from __future__ import annotations

import json
import math
import pathlib

import pytest

from tests import recorded_runs

RECORDED = json.loads((pathlib.Path(recorded_runs.__file__).parent / "golden" / "calculator_run.json").read_text())
RECORDINGS = RECORDED["recordings"]

TOLERANCE = 1e-4
"""Relative: of the size of a tensor's change, not of its weights."""

ROUNDING = 1e-7
"""Absolute: the change is a difference of two float32 weights near 1."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return recorded_runs.build_policy(tmp_path_factory.mktemp("models") / "markov_chain")


# Runners in processes of their own start slowly.
RUNS = [pytest.param(r, marks=pytest.mark.slow) if "two runners" in r else r for r in recorded_runs.RUNS]


@pytest.mark.parametrize("run", RUNS)
def test_a_run_samples_and_learns_what_was_recorded(run, policy, ray_local):
    recording, how = recorded_runs.RUNS[run]
    expected, played = RECORDINGS[recording], recorded_runs.play(policy, **how)

    assert list(played["trajectories"]) == list(expected["trajectories"])
    for name, trajectory in expected["trajectories"].items():
        assert played["trajectories"][name] == trajectory, f"trajectory {name}"

    for got, iteration in zip(played["iterations"], expected["iterations"], strict=True):
        assert got == pytest.approx(iteration, rel=TOLERANCE)

    assert sorted(played["update"]) == sorted(expected["update"])
    for name, change in expected["update"].items():
        flat = played["update"][name].ravel()
        got = recorded_runs.digest({name: flat})[name]
        tolerance = TOLERANCE * change["norm"] + ROUNDING
        assert got["norm"] == pytest.approx(change["norm"], rel=0, abs=tolerance), name
        assert got["sum"] == pytest.approx(change["sum"], rel=0, abs=tolerance * math.sqrt(flat.size)), name
        for index, entry in change["entries"].items():
            assert flat[int(index)] == pytest.approx(entry, rel=0, abs=tolerance), f"{name}[{index}]"


@pytest.mark.parametrize("recording", RECORDINGS)
def test_a_recording_would_show_a_difference(recording):
    """Every group has something to learn from, every tensor changed, and a run that overlaps mixes versions."""
    trajectories, update = RECORDINGS[recording]["trajectories"], RECORDINGS[recording]["update"]
    assert len(trajectories) == recorded_runs.ITERATIONS * recorded_runs.GROUPS * recorded_runs.MEMBERS
    groups: dict[str, list[dict]] = {}
    for name, trajectory in trajectories.items():
        groups.setdefault(name.partition("/")[0], []).append(trajectory)
    for members in groups.values():
        assert len({sum(len(turn["ids"]) for turn in member["turns"]) for member in members}) > 1
        assert len({len(member["turns"]) for member in members}) > 1
    assert {turn["reward"] for trajectory in trajectories.values() for turn in trajectory["turns"]} == {0.0, 1.0}
    assert all(change["norm"] > 1e-3 for change in update.values())
    versions = [
        {turn["policy_version"] for member in members for turn in member["turns"]} for members in groups.values()
    ]
    assert any(len(mixed) > 1 for mixed in versions) == recording.startswith("overlapped")


def test_the_settings_are_those_of_the_recording():
    settings = {
        **recorded_runs.SETTINGS,
        "off_policy": recorded_runs.OFF_POLICY,
        "iterations": recorded_runs.ITERATIONS,
    }
    assert RECORDED["settings"] == json.loads(json.dumps(settings))
