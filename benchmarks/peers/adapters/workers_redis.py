META = {"venv": "ours", "backend": "redis", "n": 20000, "results": "yes", "notes": "whole stack, BullMQ's layout, events, hiredis"}
from workers_common import WorkersAdapter


class Adapter(WorkersAdapter):
    def make_url(self, ctx):
        return ctx.redis_url
