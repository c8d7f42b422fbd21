"""Jobs in Redis, in BullMQ's own layout: Node.js and Python work on the same queues.

The rules are in ``lua/``: one script for each call of the contract, all over one common part (``core.lua``). Python
packs what goes in, reads what comes out, and keeps the connections.
"""
