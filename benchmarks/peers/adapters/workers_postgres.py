META = {"venv": "ours", "backend": "postgres", "n": 20000, "results": "yes", "notes": "whole stack, asyncpg, synchronous_commit as the server has it, events"}
from workers_common import WorkersAdapter


class Adapter(WorkersAdapter):
    def make_url(self, ctx):
        return ctx.pg_dsn
