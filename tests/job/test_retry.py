import math
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers_module.clock import MAX_MS
from workers_module.errors import ConfigurationError
from workers_module.job.retry import Backoff, should_retry

SHARES = st.floats(0, 1, exclude_max=True)


def never() -> float:
    raise AssertionError("no chance is needed without jitter")


class TestDelay:
    """Wire format §6.2."""

    @pytest.mark.parametrize("attempt", [1, 2, 3, 50])
    def test_fixed_waits_the_same_each_time(self, attempt: int) -> None:
        assert Backoff.fixed("5s").delay_for(attempt, never) == 5_000

    @pytest.mark.parametrize(("attempt", "wait"), [(1, 1_000), (2, 2_000), (3, 4_000), (4, 8_000), (11, 1_024_000)])
    def test_exponential_doubles(self, attempt: int, wait: int) -> None:
        assert Backoff.exponential(timedelta(seconds=1)).delay_for(attempt, never) == wait

    @pytest.mark.parametrize(("attempt", "wait"), [(1, 1_000), (2, 2_000), (3, 3_500), (1_000, 3_500)])
    def test_max_caps(self, attempt: int, wait: int) -> None:
        assert Backoff.exponential("1s", max="3.5s").delay_for(attempt, never) == wait

    def test_max_below_the_first_wait(self) -> None:
        assert Backoff.exponential("1m", max="1s").delay_for(1) == 1_000

    @pytest.mark.parametrize("attempt", [54, 100, 1_000, 10**9])
    def test_never_overflows(self, attempt: int) -> None:
        assert Backoff.exponential("1s").delay_for(attempt, never) == MAX_MS
        assert Backoff.exponential("1ms", jitter=0.5).delay_for(attempt, lambda: 0.999) <= MAX_MS
        assert Backoff.exponential("0s").delay_for(attempt) == 0

    @pytest.mark.parametrize(("draw", "wait"), [(0.0, 750), (0.5, 875), (0.123456, 780), (0.999999, 999)])
    def test_jitter_is_bullmqs_arithmetic(self, draw: float, wait: int) -> None:
        assert Backoff.fixed("1s", jitter=0.25).delay_for(1, lambda: draw) == wait
        assert Backoff.exponential("250ms", jitter=0.25).delay_for(3, lambda: draw) == wait

    def test_full_jitter_begins_at_nothing(self) -> None:
        assert Backoff.fixed("1s", jitter=1).delay_for(1, lambda: 0.0) == 0

    def test_own_draw_when_none_is_given(self) -> None:
        backoff = Backoff.fixed("1s", jitter=1)
        assert len({backoff.delay_for(1) for _ in range(50)}) > 1

    @given(st.integers(0, MAX_MS), st.floats(0, 1), st.integers(1, 1_000), SHARES, st.none() | st.integers(0, MAX_MS))
    def test_wait_lies_between_its_bounds(
        self, delay: int, jitter: float, attempt: int, draw: float, cap: int | None
    ) -> None:
        for kind in ("fixed", "exponential"):
            backoff = Backoff(type=kind, delay_ms=delay, jitter=jitter, max_ms=cap)
            whole = Backoff(type=kind, delay_ms=delay, max_ms=cap).delay_for(attempt)
            wait = backoff.delay_for(attempt, lambda: draw)
            assert math.floor(whole * (1 - jitter)) <= wait <= whole <= MAX_MS

    @given(st.integers(0, 10**9), st.floats(0, 1, exclude_min=True), st.integers(1, 20), SHARES)
    def test_equals_the_formula(self, delay: int, jitter: float, attempt: int, draw: float) -> None:
        most = 2 ** (attempt - 1) * delay
        expected = math.floor(draw * most * jitter + most * (1 - jitter))
        assert Backoff(type="exponential", delay_ms=delay, jitter=jitter).delay_for(attempt, lambda: draw) == expected

    def test_custom_is_not_ours_to_compute(self) -> None:
        backoff = Backoff.custom("fibonacci")
        assert backoff.is_custom
        with pytest.raises(ConfigurationError, match=r"'fibonacci'.*backoffs="):
            backoff.delay_for(1)


class TestRefusals:
    @pytest.mark.parametrize("jitter", [-0.1, 1.1, math.nan, math.inf, -math.inf, True, "0.5", None])
    def test_jitter(self, jitter: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"Backoff\.jitter"):
            Backoff.fixed("1s", jitter=jitter)
        with pytest.raises(ConfigurationError, match=r"Backoff\.jitter"):
            Backoff.exponential("1s", jitter=jitter)

    @pytest.mark.parametrize("delay", [1000, 1.5, "1000", "-1s", "soon", None, timedelta(seconds=-1)])
    def test_delay(self, delay: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"Backoff\.fixed"):
            Backoff.fixed(delay)
        with pytest.raises(ConfigurationError, match=r"Backoff\.exponential"):
            Backoff.exponential(delay)

    def test_bare_number_as_max(self) -> None:
        with pytest.raises(ConfigurationError, match=r"Backoff\.exponential: max"):
            Backoff.exponential("1s", max=60)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("name", ["", "fixed", "exponential", None, 5])
    def test_custom_name(self, name: Any) -> None:
        with pytest.raises(ConfigurationError, match="Backoff"):
            Backoff.custom(name)


class TestBullmq:
    @pytest.mark.parametrize(
        ("backoff", "value"),
        [
            (Backoff.fixed("5s"), {"type": "fixed", "delay": 5_000}),
            (Backoff.fixed("0s"), {"type": "fixed", "delay": 0}),
            (Backoff.exponential("1s", jitter=0.5), {"type": "exponential", "delay": 1_000, "jitter": 0.5}),
            (Backoff.exponential("1s", max="1h"), {"type": "exponential", "delay": 1_000, "max": 3_600_000}),
            (Backoff.custom("slow"), {"type": "slow"}),
        ],
    )
    def test_both_ways(self, backoff: Backoff, value: dict[str, Any]) -> None:
        assert backoff.to_bullmq() == value
        assert Backoff.from_bullmq(value) == backoff

    @pytest.mark.parametrize("number", [0, 1_500, 1_500.0])
    def test_number_is_fixed_milliseconds(self, number: float) -> None:
        assert Backoff.from_bullmq(number) == Backoff(type="fixed", delay_ms=int(number))

    def test_missing_and_foreign_keys(self) -> None:
        value = {"type": "slow", "delay": 20, "jitter": None, "max": None, "colour": "red"}
        assert Backoff.from_bullmq(value) == Backoff(type="slow", delay_ms=20)
        assert Backoff.from_bullmq({"type": "fixed"}) == Backoff.fixed("0s")

    @pytest.mark.parametrize(
        "value",
        [
            -1,
            1.5,
            math.nan,
            math.inf,
            True,
            2**53,
            "5s",
            None,
            [],
            {},
            {"type": ""},
            {"type": 5},
            {"type": ["fixed"]},
            {"type": "fixed", "delay": -1},
            {"type": "fixed", "delay": "5s"},
            {"type": "fixed", "delay": math.inf},
            {"type": "fixed", "delay": 1, "jitter": 2},
            {"type": "fixed", "delay": 1, "jitter": math.nan},
            {"type": "fixed", "delay": 1, "jitter": "much"},
            {"type": "fixed", "delay": 1, "max": -1},
        ],
    )
    def test_refused(self, value: Any) -> None:
        with pytest.raises(ConfigurationError):
            Backoff.from_bullmq(value)

    @given(
        st.integers(0, MAX_MS), st.floats(0, 1), st.none() | st.integers(0, MAX_MS), st.sampled_from(["fixed", "own"])
    )
    def test_round_trip(self, delay: int, jitter: float, cap: int | None, kind: str) -> None:
        backoff = Backoff(type=kind, delay_ms=delay, jitter=jitter, max_ms=cap)
        assert Backoff.from_bullmq(backoff.to_bullmq()) == backoff


class TestShouldRetry:
    @pytest.mark.parametrize(
        ("attempts_made", "max_attempts", "again"),
        [(0, 0, False), (0, 1, False), (0, 2, True), (1, 2, False), (1, 3, True), (2, 3, False), (7, 3, False)],
    )
    def test_while_attempts_are_left(self, attempts_made: int, max_attempts: int, again: bool) -> None:
        assert should_retry(attempts_made=attempts_made, max_attempts=max_attempts, unrecoverable=False) is again

    def test_not_after_an_unrecoverable_error(self) -> None:
        assert not should_retry(attempts_made=0, max_attempts=10, unrecoverable=True)

    def test_three_attempts_run_three_times(self) -> None:
        runs = 1
        while should_retry(attempts_made=runs - 1, max_attempts=3, unrecoverable=False):
            runs += 1
        assert runs == 3


def test_a_seeded_draw_gives_the_same_waits() -> None:
    backoff = Backoff.exponential("1s", jitter=1)
    first, second = Random(3), Random(3)
    waits = [backoff.delay_for(attempt, first.random) for attempt in range(1, 9)]
    assert waits == [backoff.delay_for(attempt, second.random) for attempt in range(1, 9)]
