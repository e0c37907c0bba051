"""GMPO: see README.md in this folder."""
