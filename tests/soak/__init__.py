"""Long runs that count what must be zero: `bin/soak --help`."""
