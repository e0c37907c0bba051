"""DrGRPO: see README.md in this folder."""
