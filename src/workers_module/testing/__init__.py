"""How an application tests its jobs: no server, no port, no sleep."""

from workers_module.testing.harness import WorkerTest, worker_test

__all__ = ["WorkerTest", "worker_test"]
