"""GSPO: see README.md in this folder."""
