"""A job with a log of its own."""

from pydantic import BaseModel

from workers_module import JobContext, job


class Welcome(BaseModel):
    email: str


@job()
async def send_welcome_email(data: Welcome, ctx: JobContext) -> str:
    ctx.log("sending to %s", data.email, data={"job": ctx.job.id})
    try:
        check(data.email)
    except ValueError as error:
        ctx.log.error("cannot send", err=error)  # noqa: TRY400 - this logger has no other way
        raise
    ctx.log.warning("the outbox is filling up")
    return f"sent to {data.email}"


def check(email: str) -> None:
    if "@" not in email:
        raise ValueError(f"no address: {email}")
