"""RLOO: see README.md in this folder."""
