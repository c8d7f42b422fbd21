"""A job with a schedule that hands it its data."""

from pydantic import BaseModel

from workers_module import cron, job


class Report(BaseModel):
    kind: str


@job()
@cron("0 9 * * 1", tz="Europe/Riga", data=Report(kind="weekly"))
async def generate_report(data: Report) -> str:
    return f"{data.kind}.pdf"
