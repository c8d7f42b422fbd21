"""A plain function on a schedule, at most one of it in flight."""

from workers_module import cron, job


@job(singleton=True)
@cron("*/10 * * * * *")
def cleanup() -> str:
    return "clean"
