"""The practice guest: a process whose whole state is its RAM, so that it can be moved and continued.

    layout.py      what lies where in RAM (octet tables), the block headers
    ram_files.py   making, opening, locking and mapping the files
    runner.py      the running guest: signals, pid and ready files, the end
    checker.py     the verdict on the RAM of a guest that does not run
    witness.py     the log outside RAM: who ran when; two owners, gaps
    guest.h *.c    the loops, without Python.h; `_native.pyx` is their thin shell

Nothing imports this package but `migrate.cli.guest`.
"""
