from workers_module.testing.harness import WorkerTest as WorkerTest
from workers_module.testing.harness import worker_test as worker_test

__all__ = ["WorkerTest", "worker_test"]
