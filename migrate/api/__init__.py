"""The library as a program uses it: what `migrate` exports, and what both commands run.

run.py          a daemon under way in a task: its events, its result, its cancel
migration.py    `send`: the source
receiver.py     `Receiver`: the destination
"""
