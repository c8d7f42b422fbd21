META = {"venv": "ours", "backend": "sqlite", "n": 20000, "results": "yes", "notes": "whole stack, WAL, synchronous=FULL, events"}
from workers_common import WorkersAdapter


class Adapter(WorkersAdapter):
    def make_url(self, ctx):
        return f"sqlite:///{ctx.sqlite_path}"
