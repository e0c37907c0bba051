"""Playing text environments against a generation engine: the RLlib env runner and the loop inside it."""
