"""P01 for Postgres: the calls of `tests.store.test_property`, as they are."""

import pytest

from tests.servers import empty_schema
from tests.store.test_property import Fleet as Common
from workers_module.store.base import Store

pytestmark = pytest.mark.postgres


class Fleet(Common):
    """Memory and Postgres."""

    def tested(self) -> Store:
        from workers_module.store.postgres.store import PostgresStore

        url, schema = empty_schema()
        return PostgresStore(url, schema=schema, clock=self.clock)


Fleet.TestCase.settings = Common.TestCase.settings
TestPostgresIsLikeMemory = Fleet.TestCase
