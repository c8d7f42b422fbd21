"""A job of the worker ``priority``, one in flight per phone."""

from dishka import FromDishka
from pydantic import BaseModel

from workers_module import job


class Otp(BaseModel):
    phone: str
    code: str = "0000"


@job(queue="priority", singleton=lambda otp: {"phone": otp.phone})
async def send_otp(data: Otp, outbox: FromDishka[list[str]]) -> int:
    outbox.append(f"{data.code} to {data.phone}")
    return len(outbox)
