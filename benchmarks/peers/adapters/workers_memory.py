META = {"venv": "ours", "backend": "memory", "n": 50000, "results": "yes", "notes": "whole stack"}
from workers_common import WorkersAdapter


class Adapter(WorkersAdapter):
    enqueue_bulk = None  # as the peer: one by one, 50 callers

    def prepare(self):
        pass
