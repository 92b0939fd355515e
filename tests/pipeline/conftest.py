"""The helper modules beside this file are importable by their names."""

from __future__ import annotations

import sys
from pathlib import Path

# Under --import-mode=importlib pytest puts no test folder on the path by itself.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "diffseg"))  # its small checkpoints
