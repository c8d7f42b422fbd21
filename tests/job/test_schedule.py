import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.job.oracle import ZONES, changes, watch
from workers_module.clock import MAX_MS, to_datetime, to_ms
from workers_module.errors import ConfigurationError, ScheduleError
from workers_module.job.schedule import MAX_MISSED, CatchUp, CronExpression, Schedule, restart_slot, successor

DAY = 86_400
HOUR_MS = 3_600_000

PATTERNS = [
    "30 2 * * *",
    "0 0 * * *",
    "15 2 * * *",
    "0 2,3 * * *",
    "0,15,30,45 1-3 * * *",
    "30 0 * * *",
    "59 23 * * *",
    "0 0 1 * *",
    "0 12 L * *",
    "30 2 29 2 *",
    "0 2 * 3,10 0",
    "30 1 * * 0L",
    "0 3 * * 5L",
    "45 2 * * 0#2",
    "30 2 15 * 0",
    "0 0 31 * 7L",
    "10 0-4 * apr,sep-nov sun-tue",
    "*/30 * * * *",
    "0 * * * *",
    "0 */2 * * *",
    "*/20 2 * * *",
    "*/15 1-3 * * 6,0",
    "5/25 0-23/3 * * *",
    "0 0-23/1 * * *",
    "7 */5 1-7 * *",
]
ODD_CHANGES = [
    ("Pacific/Apia", "2011-12-29"),  # a day that never was
    ("Pacific/Kwajalein", "1993-08-20"),
    ("Africa/Cairo", "2026-04-23"),  # midnight is skipped
    ("Asia/Dhaka", "2009-06-19"),  # the last hour of a day is skipped
    ("Asia/Pyongyang", "2015-08-14"),  # half an hour back, across midnight
    ("Asia/Pyongyang", "2018-05-04"),
    ("America/Caracas", "2016-05-01"),
    ("Europe/Moscow", "2014-10-25"),
    ("Asia/Kathmandu", "1985-12-31"),  # a quarter of an hour
    ("Europe/Dublin", "2026-10-24"),
    ("America/Nuuk", "2023-03-25"),
    ("Antarctica/Casey", "2010-03-04"),  # three hours
]

ELEMENT = r"(\*|\?|L|[0-9]{1,2}|[a-z]{3}|[0-9]L|[0-9]#[0-9]|[0-9]-[0-9])(/[0-9]{1,2})?"


def ms(text: str) -> int:
    return to_ms(datetime.fromisoformat(text).replace(tzinfo=UTC))


def seconds(text: str) -> int:
    return ms(text) // 1_000


def slots(schedule: Schedule, begin: int, end: int) -> Iterator[int]:
    """Yield the slots from ``begin`` to ``end``, both included."""
    slot = schedule.next_slot(begin - 1)
    while slot is not None and slot <= end:
        yield slot
        slot = schedule.next_slot(slot)


def slots_backwards(schedule: Schedule, begin: int, end: int) -> Iterator[int]:
    slot = schedule.newest_slot(begin - 1, end)
    while slot is not None:
        yield slot
        slot = schedule.newest_slot(begin - 1, slot - 1)


def shown(found: list[int]) -> list[str]:
    return [to_datetime(slot).strftime("%m-%d %H:%M") for slot in found]


def assert_equals_oracle(patterns: list[str], tz: str, begin: int, end: int, step: int = 60) -> None:
    expected = watch(patterns, tz, begin, end, step)
    assert any(expected.values())
    for text, instants in expected.items():
        schedule = Schedule.cron(text, tz=tz)
        wanted = [instant * 1_000 for instant in instants]
        assert list(slots(schedule, begin * 1_000, end * 1_000)) == wanted, (text, tz)
        assert list(slots_backwards(schedule, begin * 1_000, end * 1_000)) == wanted[::-1], (text, tz)


class TestDaylightSaving:
    """The table of reliability §6.3."""

    @pytest.mark.parametrize(
        ("expression", "tz", "begin", "end", "fires"),
        [
            ("30 2 * * *", "Europe/Berlin", "2026-03-28T23:00", "2026-03-29T22:00", ["03-29 01:00"]),
            ("30 2 * * *", "Europe/Berlin", "2026-10-24T22:00", "2026-10-25T23:00", ["10-25 00:30"]),
            (
                "*/30 * * * *",
                "Europe/Berlin",
                "2026-10-25T00:00",
                "2026-10-25T02:00",
                ["10-25 00:00", "10-25 00:30", "10-25 01:00", "10-25 01:30", "10-25 02:00"],
            ),
            ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T13:30", "2026-10-04T12:59", ["10-03 15:30"]),
            ("0 0 * * *", "Africa/Cairo", "2026-04-23T00:00", "2026-04-24T20:00", ["04-23 22:00"]),
            ("0 2,3 * * *", "Europe/Berlin", "2026-03-28T23:00", "2026-03-29T22:00", ["03-29 01:00"]),
        ],
    )
    def test_row(self, expression: str, tz: str, begin: str, end: str, fires: list[str]) -> None:
        schedule = Schedule.cron(expression, tz=tz)
        assert shown(list(slots(schedule, ms(begin), ms(end)))) == fires
        assert shown(list(slots_backwards(schedule, ms(begin), ms(end)))) == fires[::-1]

    def test_running_schedule_skips_the_gap(self) -> None:
        schedule = Schedule.cron("*/30 * * * *", tz="Europe/Berlin")
        found = list(slots(schedule, ms("2026-03-29T00:00"), ms("2026-03-29T01:30")))
        assert shown(found) == ["03-29 00:00", "03-29 00:30", "03-29 01:00", "03-29 01:30"]

    def test_range_of_minutes_is_fixed(self) -> None:
        schedule = Schedule.cron("30 0-4 * * *", tz="Europe/Berlin")
        found = list(slots(schedule, ms("2026-10-25T00:00"), ms("2026-10-25T03:00")))
        assert shown(found) == ["10-25 00:30", "10-25 02:30"]

    def test_steps_of_seconds_leave_a_fixed_schedule_fixed(self) -> None:
        schedule = Schedule.cron("*/20 30 2 * * *", tz="Europe/Berlin")
        assert len(list(slots(schedule, ms("2026-10-24T22:00"), ms("2026-10-25T23:00")))) == 3
        assert shown(list(slots(schedule, ms("2026-03-28T23:00"), ms("2026-03-29T22:00")))) == ["03-29 01:00"]

    def test_day_that_never_was(self) -> None:
        fixed = Schedule.cron("0 9,17 * * *", tz="Pacific/Apia")
        found = list(slots(fixed, ms("2011-12-30T04:00"), ms("2011-12-30T19:00")))
        assert shown(found) == ["12-30 10:00", "12-30 19:00"]

    def test_time_that_the_zone_always_skips_never_fires(self) -> None:
        with pytest.raises(ScheduleError, match=re.escape("'*/15 2 * 3 7L' never fires")):
            Schedule.cron("*/15 2 * 3 7L", tz="Europe/Berlin")


class TestOracle:
    """Every slot equals what a watched clock shows."""

    @pytest.mark.parametrize("tz", ZONES)
    def test_around_each_change_of_three_years(self, tz: str) -> None:
        days = changes(tz, seconds("2024-01-01"), seconds("2027-01-01")) or [seconds("2026-02-26")]
        for day in days:
            assert_equals_oracle(PATTERNS, tz, day - DAY // 4, day + DAY + DAY // 4)

    @pytest.mark.parametrize(("tz", "day"), ODD_CHANGES)
    def test_around_odd_changes(self, tz: str, day: str) -> None:
        begin = seconds(day)
        assert changes(tz, begin - DAY // 2, begin + 2 * DAY)
        assert_equals_oracle(PATTERNS, tz, begin - DAY // 2, begin + 2 * DAY)

    @pytest.mark.parametrize(
        ("tz", "begin"),
        [
            ("Europe/Berlin", "2026-03-29T00:30"),
            ("Europe/Berlin", "2026-10-24T23:30"),
            ("Australia/Lord_Howe", "2026-10-03T14:30"),
            ("Australia/Lord_Howe", "2026-04-04T14:15"),
        ],
    )
    def test_second_by_second(self, tz: str, begin: str) -> None:
        patterns = [
            "*/10 * * * * *",
            "0 * * * * *",
            "*/20 15 2 * * *",
            "5,50 0-59 1-2 * * *",
            "30 */7 * * * *",
            "59 59 1-2/1 * * *",
        ]
        assert_equals_oracle(patterns, tz, seconds(begin), seconds(begin) + 3 * 3_600, step=1)

    @pytest.mark.parametrize("tz", ["Europe/Berlin", "Australia/Lord_Howe"])
    def test_every_minute(self, tz: str) -> None:
        for day in changes(tz, seconds("2026-01-01"), seconds("2027-01-01")):
            assert_equals_oracle(["* * * * *", "0-59 0-23 * * *"], tz, day + DAY // 4, day + DAY)

    @pytest.mark.parametrize(
        ("tz", "begin"),
        [
            ("Europe/Berlin", "2026-10-24T23:00"),
            ("Europe/Berlin", "2026-03-29T00:00"),
            ("Australia/Lord_Howe", "2026-04-04T13:30"),
            ("Asia/Pyongyang", "2015-08-14T13:30"),
            ("Africa/Cairo", "2026-10-29T19:00"),
            ("Pacific/Apia", "2011-12-30T09:00"),
        ],
    )
    def test_asked_at_any_moment(self, tz: str, begin: str) -> None:
        asked = range(seconds(begin), seconds(begin) + 3 * 3_600, 420)
        earliest, latest = asked[0] - 2 * DAY, asked[-1] + 2 * DAY
        for text, instants in watch([*PATTERNS, "0-59 0-23 * * *"], tz, earliest, latest).items():
            schedule = Schedule.cron(text, tz=tz, end=latest * 1_000)
            for instant in asked:
                index = bisect_right(instants, instant)
                following = instants[index] * 1_000 if index < len(instants) else None
                newest = instants[index - 1] * 1_000 if index else None
                assert schedule.next_slot(instant * 1_000) == following, (text, instant)
                assert schedule.newest_slot(earliest * 1_000 - 1, instant * 1_000) == newest, (text, instant)

    @pytest.mark.slow
    @pytest.mark.parametrize("tz", ZONES)
    def test_three_years(self, tz: str) -> None:
        assert_equals_oracle(PATTERNS, tz, seconds("2024-01-01T12:00"), seconds("2027-01-01T12:00"))


class TestExpressions:
    @pytest.mark.parametrize("member", CronExpression, ids=lambda member: member.name)
    def test_member_fires_as_its_name_says(self, member: CronExpression) -> None:
        fires, step = meaning(member.name)
        begin = seconds("2026-01-01")
        wanted = islice((second for second in range(begin, begin + 4 * 366 * DAY, step) if fires(at(second))), 3)
        found = islice(slots(Schedule.cron(member), begin * 1_000, MAX_MS), 3)
        assert [slot // 1_000 for slot in found] == list(wanted)

    def test_members_are_those_of_nest(self) -> None:
        assert len(CronExpression) == 84
        assert CronExpression.EVERY_10_SECONDS.value == "*/10 * * * * *"
        assert CronExpression("0 0 01 * * 1-5") is CronExpression.MONDAY_TO_FRIDAY_AT_1AM

    @pytest.mark.parametrize(
        ("name", "expression"),
        [
            ("@yearly", "0 0 1 1 *"),
            ("@annually", "0 0 1 1 *"),
            ("@monthly", "0 0 1 * *"),
            ("@weekly", "0 0 * * 0"),
            ("@daily", "0 0 * * *"),
            ("@midnight", "0 0 * * *"),
            ("@Hourly", "0 * * * *"),
            ("@weekdays", "0 0 * * 1-5"),
            ("@weekends", "0 0 * * 0,6"),
            ("@minutely", "* * * * *"),
            ("@secondly", "* * * * * *"),
        ],
    )
    def test_alias_is_written_out(self, name: str, expression: str) -> None:
        assert Schedule.cron(name) == Schedule.cron(expression)
        assert Schedule.cron(name).expression == expression

    @pytest.mark.parametrize(
        ("expression", "same"),
        [
            ("  0\t9 *  * 1\n", "0 9 * * 1"),
            ("0 9 ? * MON", "0 9 * * 1"),
            ("0 9 1 JAN ?", "0 9 1 1 *"),
            ("0 9 * * 7", "0 9 * * 0"),
            ("0 9 * * 5-7", "0 9 * * 0,5,6"),
            ("0 9 * * 5/1", "0 9 * * 0,5,6"),
            ("0 9 * * FRIL", "0 9 * * 5L"),
            ("0 9 * * 7L", "0 9 * * 0L"),
            ("0 9 * * mon#2", "0 9 * * 1#2"),
            ("5-5 9-9 * * *", "5 9 * * *"),
            ("5-5/2 9 * * *", "5 9 * * *"),
            ("0 9 * * 7-7", "0 9 * * 0"),
            ("0 9 * jan-jan *", "0 9 * 1 *"),
            ("09 08 * * *", "9 8 * * *"),
            ("0 0 9 * * *", "0 9 * * *"),
        ],
    )
    def test_spellings_agree(self, expression: str, same: str) -> None:
        begin = ms("2026-01-01")
        one, other = Schedule.cron(expression), Schedule.cron(same)
        assert list(islice(slots(one, begin, MAX_MS), 10)) == list(islice(slots(other, begin, MAX_MS), 10))

    @pytest.mark.parametrize(
        ("expression", "days"),
        [
            ("0 0 1 * 5L", ["2026-01-30", "2026-02-01", "2026-02-27", "2026-03-01"]),
            ("0 0 1 * 1#1", ["2026-01-05", "2026-02-01", "2026-02-02", "2026-03-01"]),
            ("0 0 * * 1,5L", ["2026-01-05", "2026-01-12", "2026-01-19", "2026-01-26"]),
            ("0 0 15,L * *", ["2026-01-15", "2026-01-31", "2026-02-15", "2026-02-28"]),
            ("0 0 */2 * 1", ["2026-01-03", "2026-01-05", "2026-01-07", "2026-01-09"]),
            ("0 0 30 2 1", ["2026-02-02", "2026-02-09", "2026-02-16", "2026-02-23"]),
            ("0 0 29 2 *", ["2028-02-29", "2032-02-29", "2036-02-29", "2040-02-29"]),
            ("0 0 * 2 1#5", ["2044-02-29", "2072-02-29", "2112-02-29", "2140-02-29"]),
        ],
    )
    def test_days_are_those_of_node(self, expression: str, days: list[str]) -> None:
        found = islice(slots(Schedule.cron(expression), ms("2026-01-01T00:00:01"), MAX_MS), 4)
        assert [to_datetime(slot).date().isoformat() for slot in found] == days

    def test_schedules_are_values(self) -> None:
        one, other = (Schedule.cron("0  9 * * *", tz="Europe/Riga") for _ in range(2))
        assert one == other
        assert hash(one) == hash(other)
        assert deepcopy(one) == one
        assert one != Schedule.cron("0 9 * * *")
        assert type(Schedule.cron(CronExpression.EVERY_HOUR).expression) is str

    def test_threads_share_a_schedule(self) -> None:
        schedule = Schedule.cron("*/7 3,4 * * *", tz="Europe/Berlin")
        expected = list(islice(slots(schedule, 0, MAX_MS), 300))
        found: list[list[int]] = []

        def work() -> None:
            found.append(list(islice(slots(schedule, 0, MAX_MS), 300)))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == [expected] * 4


class TestRefusals:
    @pytest.mark.parametrize(
        "expression",
        [
            "61 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * 32 * *",
            "* * * 0 *",
            "* * * 13 *",
            "* * * * 8",
            "60 * * * * *",
            "*/0 * * * *",
            "1,,2 * * * *",
            "1, * * * *",
            "-1 * * * *",
            "+1 * * * *",
            "1.5 * * * *",
            "1-2-3 * * * *",
            "1/1/1 * * * *",
            "*5 * * * *",
            "? * * * *",
            "L * * * *",
            "* * L-3 * *",
            "* * 1-L * *",
            "* * LW * *",
            "* * * * L",
            "* * * * 1#0",
            "* * * * 1#6",
            "* * * * 8L",
            "* * * * 1-5L",
            "* * * January *",
            "jan * * * *",
            "* * * mon *",
            "* * * * janL",
            "* * * * foo-bar",
            "\u0661 * * * *",
            "*\u00a0* * * *",
            "* * * * *; rm",
            "@never",
            "@",
            "every day",
        ],
    )
    def test_not_an_expression(self, expression: str) -> None:
        with pytest.raises(ScheduleError, match="is not a cron expression"):
            Schedule.cron(expression)

    @pytest.mark.parametrize(
        ("expression", "text"),
        [
            ("61 * * * *", "'61 * * * *' is not a cron expression"),
            ("", "'' is not a cron expression: it has 0 fields; write 5 (minute hour day month weekday), or 6 with …"),
            ("* * * *", "'* * * *' is not a cron expression: it has 4 fields; write 5 (minute hour day month …"),
            ("* * * * * * *", "'* * * * * * *' is not a cron expression: it has 7 fields; write 5 (minute hour …"),
            ("H * * * *", "'H * * * *' is not a cron expression: 'H' and 'R' would pick a value of their own; …"),
            ("0 h(0-3) * * *", "'0 h(0-3) * * *' is not a cron expression: 'H' and 'R' would pick a value of …"),
            ("R/5 * * * *", "'R/5 * * * *' is not a cron expression: 'H' and 'R' would pick a value of their own; …"),
            ("0 0 15W * *", "'0 0 15W * *' is not a cron expression: 'W', the nearest working day, is not offered"),
            ("0 0 * * L5", "'0 0 * * L5' is not a cron expression: the last Friday of a month is written 5L"),
            ("0 22-2 * * *", "'0 22-2 * * *' is not a cron expression: the range 22-2 runs backwards; write two …"),
            ("0 0 * * FRI-SUN", "'0 0 * * FRI-SUN' is not a cron expression: the range fri-sun runs backwards; …"),
            ("0 0 30 2 *", "'0 0 30 2 *' never fires"),
            ("0 0 31 4,6,9,11 *", "'0 0 31 4,6,9,11 *' never fires"),
        ],
    )
    def test_text_of_the_error(self, expression: str, text: str) -> None:
        with pytest.raises(ScheduleError) as refused:
            Schedule.cron(expression)
        if text.endswith("…"):
            assert str(refused.value).startswith(text[:-1])
        else:
            assert str(refused.value) == text

    @pytest.mark.parametrize("expression", [5, b"* * * * *", ["*"] * 5, object()])
    def test_other_types(self, expression: object) -> None:
        with pytest.raises(ScheduleError, match="is not a cron expression"):
            Schedule.cron(expression)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    def test_endless_text_is_cut(self) -> None:
        with pytest.raises(ScheduleError) as refused:
            Schedule.cron("1," * 100_000 + "1 * * * *")
        assert len(str(refused.value)) < 300

    @pytest.mark.parametrize(
        "tz",
        [
            "Mars/Olympus",
            "",
            " ",
            "../etc",
            "Europe/../../etc/passwd",
            "/etc/localtime",
            "/usr/share/zoneinfo/UTC",
            "Europe",
            "Europe/",
            "Europe/Berlin\n",
            "Europe/Berlin\0",
            "europe.berlin",
            "zone.tab",
            "leapseconds",
            "localtime",
            "posixrules",
            "right/UTC",
            "\u00dcnknown",
            "x" * 5_000,
            ".",
        ],
    )
    def test_unknown_zone(self, tz: str) -> None:
        with pytest.raises(ScheduleError, match=r"^unknown time zone ") as refused:
            Schedule.cron("* * * * *", tz=tz)
        if tz == "Mars/Olympus":
            assert str(refused.value) == "unknown time zone 'Mars/Olympus'"

    @pytest.mark.parametrize("tz", ["UTC", "Etc/GMT+5", "America/Argentina/Buenos_Aires", "EST5EDT", "GMT"])
    def test_known_zone(self, tz: str) -> None:
        assert Schedule.cron("* * * * *", tz=tz).tz == tz

    @pytest.mark.parametrize("every", [0, -1, MAX_MS + 1, 1.5, True, "5m"])
    def test_distance(self, every: object) -> None:
        with pytest.raises(ScheduleError, match="is not a distance"):
            Schedule.every(every)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("offset", [-1, 1_000, 1_001, 0.5, False])
    def test_offset(self, offset: object) -> None:
        with pytest.raises(ScheduleError, match="does not lie within"):
            Schedule.every(1_000, offset_ms=offset)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    def test_neither_or_both(self) -> None:
        with pytest.raises(ScheduleError, match="either"):
            Schedule()
        with pytest.raises(ScheduleError, match="either"):
            Schedule(expression="* * * * *", every_ms=5)

    def test_end_before_start(self) -> None:
        with pytest.raises(ConfigurationError, match="cannot end"):
            Schedule.every(5, start=10, end=9)

    @given(st.text(alphabet=st.sampled_from("0123456789*/-,#LlWwHhRr?@ \tmonjafe()"), max_size=30))
    def test_any_text_is_an_expression_or_refused(self, text: str) -> None:
        fires_or_is_refused(text)

    @given(st.lists(st.from_regex(ELEMENT, fullmatch=True), min_size=5, max_size=6))
    def test_anything_like_an_expression_is_one_or_refused(self, fields: list[str]) -> None:
        fires_or_is_refused(" ".join(fields))


def fires_or_is_refused(text: str) -> None:
    try:
        schedule = Schedule.cron(text)
    except ScheduleError:
        return
    assert schedule.next_slot(0) is not None


class TestBounds:
    def test_expression_begins_after_start(self) -> None:
        schedule = Schedule.cron("0 9 * * *", start=ms("2026-05-01T09:00"))
        assert schedule.first_slot(0) == ms("2026-05-02T09:00")
        assert schedule.newest_slot(0, ms("2026-05-02T08:59")) is None
        assert Schedule.cron("0 9 * * *", start=ms("2026-05-01T08:59:59")).first_slot(0) == ms("2026-05-01T09:00")

    def test_expression_may_end_with_a_slot(self) -> None:
        schedule = Schedule.cron("0 9 * * *", end=ms("2026-05-02T09:00"))
        assert schedule.next_slot(ms("2026-05-01T09:00")) == ms("2026-05-02T09:00")
        assert schedule.next_slot(ms("2026-05-02T09:00")) is None
        assert schedule.newest_slot(0, ms("2030-01-01")) == ms("2026-05-02T09:00")

    def test_distance_begins_with_start(self) -> None:
        schedule = Schedule.every(1_000, start=5_300)
        assert schedule.first_slot(100) == 5_300
        assert schedule.next_slot(0) == 5_300
        assert schedule.next_slot(5_300) == 6_300
        assert schedule.newest_slot(0, 5_299) is None
        assert schedule.newest_slot(0, 5_300) == 5_300

    def test_distance_ends(self) -> None:
        schedule = Schedule.every(1_000, offset_ms=0, end=3_000)
        assert schedule.next_slot(2_000) == 3_000
        assert schedule.next_slot(3_000) is None
        assert schedule.newest_slot(0, 99_000) == 3_000

    def test_nothing_begins_after_the_end(self) -> None:
        assert Schedule.every(1_000, end=3_000).first_slot(3_001) is None
        assert Schedule.every(1_000, end=3_000).first_slot(3_001, immediately=True) is None
        assert Schedule.cron("* * * * *", end=3_000).first_slot(3_001) is None

    def test_distance_begins_now_and_keeps_that_phase(self) -> None:
        schedule = Schedule.every(1_000)
        assert schedule.first_slot(4_321) == 4_321
        assert schedule.anchored(4_321).next_slot(4_321) == 5_321
        assert successor(schedule, slot=4_321, now=4_400, catch_up="latest") == 5_321

    def test_distance_with_an_offset_begins_in_phase(self) -> None:
        assert Schedule.every(1_000, offset_ms=250).first_slot(4_250) == 5_250
        assert Schedule.every(1_000, offset_ms=0).first_slot(4_321) == 5_000
        assert Schedule.every(1_000, offset_ms=250, start=7_000).first_slot(4_250) == 7_250

    def test_immediately_is_now_and_then_as_declared(self) -> None:
        now = ms("2026-05-01T09:17:03")
        schedule = Schedule.cron("0 * * * *")
        assert schedule.first_slot(now, immediately=True) == now
        assert successor(schedule, slot=now, now=now + 5, catch_up="latest") == ms("2026-05-01T10:00")

    def test_anchor_is_kept(self) -> None:
        anchored = Schedule.every(1_000).anchored(4_321)
        assert anchored.offset_ms == 321
        assert anchored.anchored(5_555) is anchored
        cron = Schedule.cron("* * * * *")
        assert cron.anchored(17) is cron

    @pytest.mark.parametrize("instant", [-(10**15), -1, 0, 10**14, MAX_MS])
    def test_far_instants_raise_nothing(self, instant: int) -> None:
        schedule = Schedule.cron("30 2 * * *", tz="Europe/Berlin")
        following = schedule.next_slot(instant)
        assert following is None or following > instant
        newest = schedule.newest_slot(instant - 10, instant)
        assert newest is None or newest <= instant

    def test_slots_are_whole_seconds_after_a_fraction(self) -> None:
        schedule = Schedule.cron("* * * * * *")
        assert schedule.next_slot(1_500) == 2_000
        assert schedule.next_slot(2_000) == 3_000
        assert schedule.newest_slot(0, 2_999) == 2_000
        assert schedule.newest_slot(2_000, 2_999) is None

    @given(
        st.sampled_from([*PATTERNS, "*/10 * * * * *", "* * * * *", "0 9 1 * 5L"]),
        st.sampled_from([*ZONES, *(tz for tz, _ in ODD_CHANGES), "UTC", "Africa/Monrovia"]),
        st.integers(0, 4_000_000_000_000),
    )
    def test_next_and_newest_agree(self, expression: str, tz: str, instant: int) -> None:
        schedule = Schedule.cron(expression, tz=tz)
        following = schedule.next_slot(instant)
        assert following is not None
        assert following > instant
        assert schedule.newest_slot(instant, following) == following
        assert schedule.newest_slot(instant, following - 1) is None
        newest = schedule.newest_slot(-(10**12), instant)
        assert newest is not None
        assert newest <= instant
        assert schedule.next_slot(newest) == following

    @given(
        st.integers(1, 50),
        st.none() | st.integers(0, 49),
        st.none() | st.integers(0, 300),
        st.none() | st.integers(300, 600),
        st.integers(-50, 700),
        st.integers(-50, 700),
    )
    def test_distance_equals_counting(
        self, every: int, offset: int | None, start: int | None, end: int | None, after: int, until: int
    ) -> None:
        offset = None if offset is None else offset % every
        schedule = Schedule.every(every, offset_ms=offset, start=start, end=end)
        phase = offset if offset is not None else start or 0
        lowest = -1_000 if start is None else start
        highest = 2_000 if end is None else end
        counted = [instant for instant in range(lowest, highest + 1) if (instant - phase) % every == 0]
        assert schedule.next_slot(after) == next((slot for slot in counted if slot > after), None)
        between = [slot for slot in counted if after < slot <= until]
        assert schedule.newest_slot(after, until) == (between[-1] if between else None)
        for n in (1, 2, 7):
            assert schedule.nth_newest_slot(n, after, until) == (between[-n] if len(between) >= n else None)

    @pytest.mark.parametrize("expression", ["*/30 * * * *", "0,1 3 * * *", "*/15 9-10 * * *", "0 0 1 * *", "5 4 * * *"])
    def test_nth_newest_equals_counting(self, expression: str) -> None:
        schedule = Schedule.cron(expression, tz="America/New_York")
        begin = ms("2026-01-01")
        known = list(slots(schedule, begin, ms("2026-06-01")))
        for until in range(begin, ms("2026-06-01"), 101 * HOUR_MS):
            upto = known[: bisect_right(known, until)]
            for n in (1, 3, 20):
                found = schedule.nth_newest_slot(n, begin - 1, until)
                assert found == (upto[-n] if len(upto) >= n else None)


class TestSuccessor:
    """Reliability §6.4."""

    minutely = Schedule.cron("* * * * *")
    slot = ms("2026-05-01T09:00")

    @pytest.mark.parametrize("catch_up", ["latest", "all", "none"])
    @pytest.mark.parametrize("late", [-HOUR_MS, -1, 0, 1, 59_999])
    def test_nothing_missed(self, catch_up: CatchUp, late: int) -> None:
        found = successor(self.minutely, slot=self.slot, now=self.slot + late, catch_up=catch_up)
        assert found == self.slot + 60_000

    @pytest.mark.parametrize(("catch_up", "minutes"), [("latest", 10), ("all", 1), ("none", 11)])
    @pytest.mark.parametrize("late", [600_000, 659_999])
    def test_missed(self, catch_up: CatchUp, minutes: int, late: int) -> None:
        found = successor(self.minutely, slot=self.slot, now=self.slot + late, catch_up=catch_up)
        assert found == self.slot + minutes * 60_000

    @pytest.mark.parametrize("catch_up", ["latest", "all", "none"])
    def test_end_of_the_schedule(self, catch_up: CatchUp) -> None:
        schedule = Schedule.cron("* * * * *", end=self.slot + 30_000)
        assert successor(schedule, slot=self.slot, now=self.slot + HOUR_MS, catch_up=catch_up) is None

    @pytest.mark.parametrize(("catch_up", "expected"), [("latest", 2), ("all", 1), ("none", None)])
    def test_end_within_the_missed_slots(self, catch_up: CatchUp, expected: int | None) -> None:
        schedule = Schedule.cron("* * * * *", end=self.slot + 130_000)
        found = successor(schedule, slot=self.slot, now=self.slot + HOUR_MS, catch_up=catch_up)
        assert found == (None if expected is None else self.slot + expected * 60_000)

    def test_slots_off_the_expression_are_followed(self) -> None:
        found = successor(self.minutely, slot=self.slot + 17, now=self.slot + 20, catch_up="latest")
        assert found == self.slot + 60_000

    @pytest.mark.parametrize("schedule", [minutely, Schedule.every(60_000), Schedule.cron("0,30 * * * * *")], ids=repr)
    @pytest.mark.parametrize("missed", [100, 1_000, 5_000])
    @pytest.mark.parametrize("catch_up", ["latest", "all", "none"])
    def test_all_down(self, schedule: Schedule, missed: int, catch_up: CatchUp) -> None:
        """P26: with all processes down over so many slots 1, all, or none of them run; then the next slot."""
        schedule = schedule.anchored(self.slot)
        passed = list(islice(slots(schedule, self.slot, MAX_MS), missed + 1))
        now = passed[-1] - 1
        pending = passed[0]
        replaced = restart_slot(schedule, slot=pending, now=now, catch_up=catch_up)
        slot: int | None = pending if replaced is None else replaced
        run: list[int] = []
        while slot is not None and slot <= now:
            run.append(slot)
            slot = successor(schedule, slot=slot, now=now, catch_up=catch_up)
        missed_slots = passed[:-1]
        expected = {"latest": missed_slots[-1:], "all": missed_slots[-MAX_MISSED:], "none": []}
        assert run == expected[catch_up]
        assert slot == passed[-1]

    def test_all_keeps_up_with_an_outage_in_mid_run(self) -> None:
        now = self.slot + 5_000 * 60_000
        found = successor(self.minutely, slot=self.slot, now=now, catch_up="all")
        assert found == now - (MAX_MISSED - 1) * 60_000

    @given(
        st.sampled_from(["* * * * *", "*/15 2 * * *", "30 2 * * *", "0,20 * * * * *"]),
        st.sampled_from(["Europe/Berlin", "Africa/Cairo", "UTC"]),
        st.integers(0, 10**7),
        st.integers(-(10**8), 10**10),
        st.sampled_from(["latest", "all", "none"]),
    )
    def test_a_successor_is_newer_and_a_slot(
        self, expression: str, tz: str, first: int, late: int, catch_up: CatchUp
    ) -> None:
        schedule = Schedule.cron(expression, tz=tz)
        slot = schedule.next_slot(self.slot + first * 1_000)
        assert slot is not None
        found = successor(schedule, slot=slot, now=slot + late, catch_up=catch_up)
        assert found is not None
        assert found > slot
        assert schedule.next_slot(found - 1) == found
        if catch_up == "none":
            assert found > slot + late
        else:
            assert found <= slot + late or found == schedule.next_slot(slot)


class TestRestart:
    minutely = Schedule.cron("* * * * *")
    slot = ms("2026-05-01T09:00")

    @pytest.mark.parametrize("catch_up", ["latest", "all", "none"])
    @pytest.mark.parametrize("late", [-60_000, 0, 1_000])
    def test_nothing_was_down(self, catch_up: CatchUp, late: int) -> None:
        assert restart_slot(self.minutely, slot=self.slot, now=self.slot + late, catch_up=catch_up) is None

    @pytest.mark.parametrize(("catch_up", "seconds"), [("latest", None), ("all", None), ("none", 60)])
    def test_only_the_pending_slot_was_missed(self, catch_up: CatchUp, seconds: int | None) -> None:
        found = restart_slot(self.minutely, slot=self.slot, now=self.slot + 1_001, catch_up=catch_up)
        assert found == (None if seconds is None else self.slot + seconds * 1_000)

    @pytest.mark.parametrize(("catch_up", "minutes"), [("latest", 10), ("all", None), ("none", 11)])
    def test_several_were_missed(self, catch_up: CatchUp, minutes: int | None) -> None:
        found = restart_slot(self.minutely, slot=self.slot, now=self.slot + 600_000, catch_up=catch_up)
        assert found == (None if minutes is None else self.slot + minutes * 60_000)

    def test_all_leaves_out_the_oldest_of_too_many(self) -> None:
        for missed, oldest in ((998, None), (999, None), (1_000, 1), (1_500, 501)):
            now = self.slot + missed * 60_000
            found = restart_slot(self.minutely, slot=self.slot, now=now, catch_up="all")
            assert found == (None if oldest is None else self.slot + oldest * 60_000)

    def test_distance_takes_its_phase_from_the_slot(self) -> None:
        found = restart_slot(Schedule.every(1_000), slot=4_321, now=20_000, catch_up="latest")
        assert found == 19_321

    @pytest.mark.parametrize("expression", ["* * * * * *", "0 0 * * *"])
    def test_long_outage_is_not_walked_through(self, expression: str) -> None:
        schedule = Schedule.cron(expression)
        now = ms("2126-01-01T00:00:00") + 500
        assert restart_slot(schedule, slot=0, now=now, catch_up="latest") == ms("2126-01-01")
        kept = restart_slot(schedule, slot=0, now=now, catch_up="all")
        assert kept is not None
        assert len(list(slots(schedule, kept, now))) == MAX_MISSED


def at(second: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)


def meaning(name: str) -> tuple[Callable[[datetime], bool], int]:
    """Return when something of that name fires, and the seconds between the instants worth asking about."""
    fixed: dict[str, Callable[[datetime], bool]] = {
        "EVERY_WEEK": lambda t: t.isoweekday() == 7 and midnight(t),
        "EVERY_WEEKDAY": lambda t: t.isoweekday() <= 5 and midnight(t),
        "EVERY_WEEKEND": lambda t: t.isoweekday() >= 6 and midnight(t),
        "EVERY_1ST_DAY_OF_MONTH_AT_MIDNIGHT": lambda t: t.day == 1 and midnight(t),
        "EVERY_1ST_DAY_OF_MONTH_AT_NOON": lambda t: t.day == 1 and (t.hour, t.minute) == (12, 0),
        "EVERY_2ND_HOUR": lambda t: t.hour % 2 == 0 and t.minute == 0,
        "EVERY_2ND_HOUR_FROM_1AM_THROUGH_11PM": lambda t: t.hour % 2 == 1 and t.minute == 0,
        "EVERY_2ND_MONTH": lambda t: t.month % 2 == 1 and t.day == 1 and midnight(t),
        "EVERY_QUARTER": lambda t: t.month in {1, 4, 7, 10} and t.day == 1 and midnight(t),
        "EVERY_6_MONTHS": lambda t: t.month in {1, 7} and t.day == 1 and midnight(t),
        "EVERY_YEAR": lambda t: (t.month, t.day) == (1, 1) and midnight(t),
        "EVERY_DAY_AT_MIDNIGHT": midnight,
        "EVERY_DAY_AT_NOON": lambda t: (t.hour, t.minute) == (12, 0),
    }
    if name in fixed:
        return fixed[name], 1_800
    if match := re.fullmatch(r"EVERY_(?:(\d+)_)?(SECOND|MINUTE|HOUR)S?", name):
        n = int(match[1] or 1)
        match match[2]:
            case "SECOND":
                return lambda t: t.second % n == 0, 1
            case "MINUTE":
                return lambda t: t.minute % n == 0, 60
            case _:
                return lambda t: t.hour % n == 0 and t.minute == 0, 1_800
    if match := re.fullmatch(r"EVERY_30_MINUTES_BETWEEN_(\d+)AM_AND_(\d+)PM", name):
        first, last = int(match[1]), int(match[2]) + 12
        return lambda t: first <= t.hour <= last and t.minute % 30 == 0, 60
    match = re.fullmatch(r"(EVERY_DAY|MONDAY_TO_FRIDAY)_AT_(\d+)(?:_(\d+))?(AM|PM)", name)
    assert match is not None, name
    last_day = 7 if match[1] == "EVERY_DAY" else 5
    hour, minute = int(match[2]) % 12 + (12 if match[4] == "PM" else 0), int(match[3] or 0)
    return lambda t: t.isoweekday() <= last_day and (t.hour, t.minute) == (hour, minute), 1_800


def midnight(t: datetime) -> bool:
    return (t.hour, t.minute) == (0, 0)
