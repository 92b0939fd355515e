"""The commands, one module each: `diffseg NAME` and `python -m jobs.NAME` (for `ray job submit`) run the same code."""

import os
import sys

from jobs.import_path import leave_working_directory

if os.path.basename(sys.argv[0]) in ("-m", "diffseg"):  # a command, and no program that imports its module
    leave_working_directory()
