import pytest
from hypothesis import settings, Phase, HealthCheck
import os
from tests.store.postgres.test_property import Fleet
class F(Fleet): pass
F.TestCase.settings = settings(max_examples=int(os.environ.get("N","10")), stateful_step_count=30, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), report_multiple_bugs=False, database=None)
TestX = F.TestCase
