"""Jobs in Redis, in BullMQ's own layout: Node.js and Python work on the same queues.

The rules are in ``lua/``: one script for each call of the contract, all over common parts (``core.lua``, ``ends.lua``,
``moves.lua``). ``step-2.lua`` and ``add-2.lua`` make the functions of the last only when a call needs them, because
making them takes longer than most calls. Python packs what goes in, reads what comes out, and keeps the connections.
"""
