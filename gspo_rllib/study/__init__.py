"""Studies: the same task learned with several objectives and seeds, and what can be said about their differences."""
