"""DAPO: see README.md in this folder."""
