"""GRPO: see README.md in this folder."""
