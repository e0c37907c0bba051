"""CISPO: see README.md in this folder."""
