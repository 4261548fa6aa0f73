"""A guest that stays in its compiled loop for ever, to be stepped through: `stepped_guest.py RAM…`."""

import sys
from pathlib import Path

from guest_support import guest_in_this_process

from migrate.guest.ram_files import RamFiles

with RamFiles.resume([Path(name) for name in sys.argv[1:]]) as files, guest_in_this_process(files) as guest:
    guest.run(1 << 62)
