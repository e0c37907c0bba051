"""How a model writes conversations, found by asking its chat template."""
