"""Seeds depend on names alone, and differ wherever a name does."""

from __future__ import annotations

from gspo_rllib.env_runners.group_scheduler import Assignment
from gspo_rllib.seeds import derive_seed


def test_seeds_do_not_change_between_versions() -> None:
    # First bytes of sha256("0\x1ftrain\x1fa\x1f0"), shifted to 31 bits: a resumed run must meet its own tasks again.
    assert derive_seed(0, "train", "a", 0, bits=31) == 0xEA99E1A1 >> 1
    assert 0 <= Assignment("a", 0, 0, 0, 5).sampling_seed(0, turn=3) < 2**63


def test_every_name_in_a_sampling_seed_matters() -> None:
    base = Assignment("a", 0, 0, 0, 5)
    others = [Assignment("b", 0, 0, 0, 5), Assignment("a", 1, 0, 0, 5), Assignment("a", 0, 1, 0, 5)]
    seeds = [base.sampling_seed(0, 0), base.sampling_seed(1, 0), base.sampling_seed(0, 1)]
    seeds += [other.sampling_seed(0, 0) for other in [*others, Assignment("a", 0, 0, 1, 5)]]
    assert len(set(seeds)) == len(seeds)
