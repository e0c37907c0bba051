"""The ``gspo-rllib`` command: one file per sub-command, each with ``add_parser`` and ``run``."""
