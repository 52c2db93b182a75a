"""`python alone.py FOLDER SURROUNDINGS WORDS…`: a command in a process of its own; see `forks.start_process`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from attack import Surroundings
from forks import become, run_command

become(Path(sys.argv[1]), Surroundings(**json.loads(sys.argv[2])))
os._exit(run_command(sys.argv[3:]))
