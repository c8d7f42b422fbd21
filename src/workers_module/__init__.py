"""Background jobs for Python the way NestJS people know them: decorated classes in a dishka container.

The names a user imports; `__init__.pyi` tells them to type checkers. Each comes from its own module when it is first
asked for, so that importing the package costs nothing, and a program that only enqueues loads no more than it uses.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, Final

__version__ = "0.1.0"

_HOMES: Final[dict[str, str]] = {
    name: home
    for home, names in {
        "client.admin": "JobsAdmin",
        "client.flow": "FlowProducer flow_job",
        "client.handle": "JobHandle",
        "client.inspector": "Inspector",
        "client.lock": "DistributedLockService Lock",
        "client.queue": "JobCounts Queue",
        "clock": "Clock Duration FrozenClock",
        "di.decorators": (
            "InjectQueue Worker WorkerHost cron interval job on_queue_event on_worker_event process processor "
            "queue_component timeout"
        ),
        "di.dispatcher": "Dispatcher",
        "di.registry": "WorkerRegistry",
        "di.schedules": "ScheduleInfo Scheduler",
        "errors": (
            "BadNumberError BadTextError ConfigurationError IllegalMoveError InvalidNameError "
            "JobCancelledError JobCrashedError JobExpiredError JobFailedError JobNotFoundError "
            "JobTimeoutError LeaseLostError LockLostError NotSerializableError NotSupportedError PayloadError "
            "RegistrationError ResultTimeoutError ScheduleError SingletonKeyError StoreCorruptError "
            "StoreDeniedError StoreError StoreFullError StoreOutcomeUnknownError StoreUnavailableError "
            "TooDeepError TooLargeError UnknownJobError UnknownWorkerError UnrecoverableError WorkersError"
        ),
        "job.events": "QueueEvent WorkerEvent",
        "job.job": "Job",
        "job.options": "Dedup JobOptions KeepJobs Repeat",
        "job.outcome": "RetryLaterError",
        "job.record": "ParentRef",
        "job.retry": "Backoff",
        "job.sandbox": "Sandbox",
        "job.schedule": "CronExpression",
        "job.state": "JobState",
        "module": "WorkersModule run_workers workers_lifespan",
        "settings": "WorkerMode WorkersSettings",
        "store.base": "Store",
        "url": "QueueKind",
        "worker.context": "JobContext JobLogger Progress",
        "worker.runtime": "Workers",
    }.items()
    for name in names.split()
}

__all__ = [*_HOMES]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll] - the names are literals, above


class _Face(ModuleType):
    """A module whose ``job`` is the decorator, although a package of that name lies inside."""

    def __getattr__(self, name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = vars(self)[name] = getattr(import_module(f"{__name__}.{home}"), name)
        return value

    @property
    def job(self) -> Any:
        return import_module(f"{__name__}.{_HOMES['job']}").job

    @job.setter
    def job(self, package: ModuleType) -> None:
        """Leave the name to the decorator when the import system binds the package to it."""

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *_HOMES})


sys.modules[__name__].__class__ = _Face
