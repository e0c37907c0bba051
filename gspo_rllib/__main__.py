"""``python -m gspo_rllib``: the command ``gspo-rllib``, where its script is not on the path."""

from __future__ import annotations

import sys

from gspo_rllib.cli.main import main

sys.exit(main())
