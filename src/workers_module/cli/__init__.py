"""The command line ``workers``: a thin face over `Queue`, `Inspector`, `JobsAdmin` and `Scheduler`, a file per noun.

Nothing here knows how a store keeps its jobs. Modules of nouns are imported when a command of theirs runs, so that
``workers --help`` answers at once.
"""
