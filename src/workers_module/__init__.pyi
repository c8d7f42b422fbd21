from workers_module.client.admin import JobsAdmin as JobsAdmin
from workers_module.client.flow import FlowProducer as FlowProducer
from workers_module.client.flow import flow_job as flow_job
from workers_module.client.handle import JobHandle as JobHandle
from workers_module.client.inspector import Inspector as Inspector
from workers_module.client.lock import DistributedLockService as DistributedLockService
from workers_module.client.lock import Lock as Lock
from workers_module.client.queue import JobCounts as JobCounts
from workers_module.client.queue import Queue as Queue
from workers_module.clock import Clock as Clock
from workers_module.clock import Duration as Duration
from workers_module.clock import FrozenClock as FrozenClock
from workers_module.di.decorators import InjectQueue as InjectQueue
from workers_module.di.decorators import Worker as Worker
from workers_module.di.decorators import WorkerHost as WorkerHost
from workers_module.di.decorators import cron as cron
from workers_module.di.decorators import interval as interval
from workers_module.di.decorators import job as job
from workers_module.di.decorators import on_queue_event as on_queue_event
from workers_module.di.decorators import on_worker_event as on_worker_event
from workers_module.di.decorators import process as process
from workers_module.di.decorators import processor as processor
from workers_module.di.decorators import queue_component as queue_component
from workers_module.di.decorators import timeout as timeout
from workers_module.di.dispatcher import Dispatcher as Dispatcher
from workers_module.di.registry import WorkerRegistry as WorkerRegistry
from workers_module.di.schedules import ScheduleInfo as ScheduleInfo
from workers_module.di.schedules import Scheduler as Scheduler
from workers_module.errors import BadNumberError as BadNumberError
from workers_module.errors import BadTextError as BadTextError
from workers_module.errors import ConfigurationError as ConfigurationError
from workers_module.errors import IllegalMoveError as IllegalMoveError
from workers_module.errors import InvalidNameError as InvalidNameError
from workers_module.errors import JobCancelledError as JobCancelledError
from workers_module.errors import JobCrashedError as JobCrashedError
from workers_module.errors import JobExpiredError as JobExpiredError
from workers_module.errors import JobFailedError as JobFailedError
from workers_module.errors import JobNotFoundError as JobNotFoundError
from workers_module.errors import JobTimeoutError as JobTimeoutError
from workers_module.errors import LeaseLostError as LeaseLostError
from workers_module.errors import LockLostError as LockLostError
from workers_module.errors import NotSerializableError as NotSerializableError
from workers_module.errors import NotSupportedError as NotSupportedError
from workers_module.errors import PayloadError as PayloadError
from workers_module.errors import RegistrationError as RegistrationError
from workers_module.errors import ResultTimeoutError as ResultTimeoutError
from workers_module.errors import ScheduleError as ScheduleError
from workers_module.errors import SingletonKeyError as SingletonKeyError
from workers_module.errors import StoreCorruptError as StoreCorruptError
from workers_module.errors import StoreDeniedError as StoreDeniedError
from workers_module.errors import StoreError as StoreError
from workers_module.errors import StoreFullError as StoreFullError
from workers_module.errors import StoreOutcomeUnknownError as StoreOutcomeUnknownError
from workers_module.errors import StoreUnavailableError as StoreUnavailableError
from workers_module.errors import TooDeepError as TooDeepError
from workers_module.errors import TooLargeError as TooLargeError
from workers_module.errors import UnknownJobError as UnknownJobError
from workers_module.errors import UnknownWorkerError as UnknownWorkerError
from workers_module.errors import UnrecoverableError as UnrecoverableError
from workers_module.errors import WorkersError as WorkersError
from workers_module.job.events import QueueEvent as QueueEvent
from workers_module.job.events import WorkerEvent as WorkerEvent
from workers_module.job.job import Job as Job
from workers_module.job.options import Dedup as Dedup
from workers_module.job.options import JobOptions as JobOptions
from workers_module.job.options import KeepJobs as KeepJobs
from workers_module.job.options import Repeat as Repeat
from workers_module.job.outcome import RetryLaterError as RetryLaterError
from workers_module.job.record import ParentRef as ParentRef
from workers_module.job.retry import Backoff as Backoff
from workers_module.job.sandbox import Sandbox as Sandbox
from workers_module.job.schedule import CronExpression as CronExpression
from workers_module.job.state import JobState as JobState
from workers_module.module import WorkersModule as WorkersModule
from workers_module.module import run_workers as run_workers
from workers_module.module import workers_lifespan as workers_lifespan
from workers_module.settings import WorkerMode as WorkerMode
from workers_module.settings import WorkersSettings as WorkersSettings
from workers_module.store.base import Store as Store
from workers_module.url import QueueKind as QueueKind
from workers_module.worker.context import JobContext as JobContext
from workers_module.worker.context import JobLogger as JobLogger
from workers_module.worker.context import Progress as Progress
from workers_module.worker.runtime import Workers as Workers

__version__: str
__all__ = [
    "Backoff",
    "BadNumberError",
    "BadTextError",
    "Clock",
    "ConfigurationError",
    "CronExpression",
    "Dedup",
    "Dispatcher",
    "DistributedLockService",
    "Duration",
    "FlowProducer",
    "FrozenClock",
    "IllegalMoveError",
    "InjectQueue",
    "Inspector",
    "InvalidNameError",
    "Job",
    "JobCancelledError",
    "JobContext",
    "JobCounts",
    "JobCrashedError",
    "JobExpiredError",
    "JobFailedError",
    "JobHandle",
    "JobLogger",
    "JobNotFoundError",
    "JobOptions",
    "JobState",
    "JobTimeoutError",
    "JobsAdmin",
    "KeepJobs",
    "LeaseLostError",
    "Lock",
    "LockLostError",
    "NotSerializableError",
    "NotSupportedError",
    "ParentRef",
    "PayloadError",
    "Progress",
    "Queue",
    "QueueEvent",
    "QueueKind",
    "RegistrationError",
    "Repeat",
    "ResultTimeoutError",
    "RetryLaterError",
    "Sandbox",
    "ScheduleError",
    "ScheduleInfo",
    "Scheduler",
    "SingletonKeyError",
    "Store",
    "StoreCorruptError",
    "StoreDeniedError",
    "StoreError",
    "StoreFullError",
    "StoreOutcomeUnknownError",
    "StoreUnavailableError",
    "TooDeepError",
    "TooLargeError",
    "UnknownJobError",
    "UnknownWorkerError",
    "UnrecoverableError",
    "Worker",
    "WorkerEvent",
    "WorkerHost",
    "WorkerMode",
    "WorkerRegistry",
    "Workers",
    "WorkersError",
    "WorkersModule",
    "WorkersSettings",
    "cron",
    "flow_job",
    "interval",
    "job",
    "on_queue_event",
    "on_worker_event",
    "process",
    "processor",
    "queue_component",
    "run_workers",
    "timeout",
    "workers_lifespan",
]
