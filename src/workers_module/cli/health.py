"""``workers health``: asks the probe port of a running worker."""

import http.client
from typing import Annotated, Any, Final

import typer
from pydantic import TypeAdapter

from workers_module.cli.app import Face
from workers_module.cli.failures import CommandFailedError, UsageError
from workers_module.cli.output import result
from workers_module.errors import ConfigurationError
from workers_module.settings import WorkersSettings

face = Face(single=True)

PROBES: Final = ("live", "ready", "startup")
_ANSWER: Final = TypeAdapter(dict[str, Any])


@face.command("health")
def health(
    probe: Annotated[str, typer.Option("--probe", help="live, ready or startup.")] = "live",
    host: Annotated[str | None, typer.Option("--host", help="Where it listens.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="On which port.")] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")] = 5.0,
) -> None:
    """Ask a running worker whether it is well: exit code 0 or 1, for Docker and systemd."""
    if probe not in PROBES:
        raise UsageError(f"--probe {probe!r}: there are {', '.join(PROBES)}")
    settings = WorkersSettings()
    chosen = settings.health.port if port is None else port
    if not chosen:
        raise ConfigurationError("no port to ask: set WORKERS_HEALTH__PORT for worker and command, or pass --port")
    where = f"{host or settings.health.host}:{chosen}"
    try:
        status, answer = _asked(host or settings.health.host, chosen, probe, timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = str(error) or type(error).__name__
        raise CommandFailedError(
            f"no worker answers on {where}: {why}; was it started with --health-port {chosen}?"
        ) from None
    if status != http.client.OK:
        result(f"{where} is not {probe}: {', '.join(answer.get('failing', ()))}", answer)
        raise CommandFailedError("")
    result(f"{where} is {probe}", answer)


def _asked(host: str, port: int, probe: str, timeout: float) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", f"/{probe}")
        answer = connection.getresponse()
        return answer.status, _ANSWER.validate_json(answer.read(65_536))
    finally:
        connection.close()
