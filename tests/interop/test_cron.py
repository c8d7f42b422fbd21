"""Scenario 43: the slots of cron patterns, ours beside Node's, across both changes of the clocks."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from tests.interop.peer import Node, NodeError
from workers_module import ScheduleError
from workers_module.job.schedule import Schedule

PATTERNS = [
    *("* * * * *", "*/5 * * * *", "*/20 * * * *", "0 * * * *", "30 * * * *", "0 */2 * * *", "0 */6 * * *"),
    *("15 4 * * *", "0 0 * * *", "59 23 * * *", "30 2 * * *", "*/20 2 * * *", "0 1-3 * * *", "30 1 * * *"),
    *("0 9-17 * * 1-5", "0 9 * * MON", "0 12 * * 0", "0 12 * * 7", "0 0 1 * *", "0 0 31 * *", "0 0 L * *"),
    *("0 0 1 1 *", "0 3 15 * 5", "0 6 * 3,10,11 *", "0 6 * MAR *", "0 0 * * 5L", "0 0 * * 1#2"),
    *("*/15 * * * * *", "30 0 * * * *", "0 30 2 * * *", "0 0 1 1 * *", "10,40 */30 * * * *", "0 0 8-10/2 * * *"),
]
CASES = [
    ("UTC", datetime(2026, 3, 28, 12, tzinfo=UTC)),
    # An hour and a half before the clocks change.
    ("Europe/Berlin", datetime(2026, 3, 28, 23, 30, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 24, 23, 30, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 8, 5, 30, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, 4, 30, tzinfo=UTC)),
    ("Asia/Kolkata", datetime(2026, 12, 31, 10, tzinfo=UTC)),
]
FIRST = 24
"""So many slots of each pattern are compared."""
SLOTS = """
const strategy = t.bullmq.getNextMillis ?? t.require('bullmq/dist/cjs/classes/job-scheduler').defaultRepeatStrategy
const found = []
for (const [pattern, tz, start] of wanted) {
  const slots = []
  let at = start
  for (let n = 0; n < count; n++) {
    at = await strategy(at, {pattern, tz})
    slots.push(at)
  }
  found.push(slots)
}
return found
"""


# Where ours differ, and only there (decision 10): slots that only we have, and slots that only Node has.
#   A fixed time that the clocks leave out is run when they jump; Node runs it an hour late.
#   A running schedule (a step or * in minutes or hours) follows real time: it runs in both passes of a repeated hour,
#   where Node leaves the second one out, and not in the hour that is left out, where Node runs at its end.
BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
DIFFERENT: dict[tuple[str, str], tuple[list[str], list[str]]] = {
    ("30 2 * * *", BERLIN): (["2026-03-29 03:00:00+02:00"], ["2026-03-29 03:30:00+02:00"]),
    ("30 2 * * *", NEW_YORK): (["2026-03-08 03:00:00-04:00"], ["2026-03-08 03:30:00-04:00"]),
    ("0 30 2 * * *", BERLIN): (["2026-03-29 03:00:00+02:00"], ["2026-03-29 03:30:00+02:00"]),
    ("0 30 2 * * *", NEW_YORK): (["2026-03-08 03:00:00-04:00"], ["2026-03-08 03:30:00-04:00"]),
    ("0 */2 * * *", BERLIN): (["2026-10-25 02:00:00+01:00"], ["2026-03-29 03:00:00+02:00"]),
    ("0 */2 * * *", NEW_YORK): ([], ["2026-03-08 03:00:00-04:00"]),
    ("*/20 2 * * *", BERLIN): (
        ["2026-10-25 02:00:00+01:00", "2026-10-25 02:20:00+01:00", "2026-10-25 02:40:00+01:00"],
        ["2026-03-29 03:00:00+02:00"],
    ),
    ("*/20 2 * * *", NEW_YORK): ([], ["2026-03-08 03:00:00-04:00"]),
}


def first_slots(pattern: str, tz: str, start: int) -> list[int]:
    """Return the first slots after an instant."""
    schedule = Schedule.cron(pattern, tz=tz)
    slots: list[int] = []
    while len(slots) < FIRST:
        slot = schedule.next_slot(slots[-1] if slots else start)
        assert slot is not None
        slots.append(slot)
    return slots


@pytest.mark.scenario(43)
async def test_slots_are_those_of_node(node: Node) -> None:
    wanted = [(p, zone, int(start.timestamp() * 1_000)) for p in PATTERNS for zone, start in CASES]
    theirs: list[list[int]] = await node.run(SLOTS, wanted=wanted, count=FIRST)
    differ: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for (pattern, tz, start), slots in zip(wanted, theirs, strict=True):
        ours = first_slots(pattern, tz, start)
        last = min(ours[-1], slots[-1])
        for side, (some, others) in enumerate(((ours, slots), (slots, ours))):
            for slot in some:
                if slot <= last and slot not in others:
                    shown = str(datetime.fromtimestamp(slot / 1_000, ZoneInfo(tz)))
                    differ.setdefault((pattern, tz), ([], []))[side].append(shown)
    assert differ == DIFFERENT


@pytest.mark.scenario(43)
@pytest.mark.parametrize("pattern", ["0 0 15W * *", "0 22-2 * * *", "nonsense", "61 * * * *"])
async def test_patterns_that_node_cannot_read_are_refused(node: Node, pattern: str) -> None:
    with pytest.raises(ScheduleError):
        Schedule.cron(pattern)
    with pytest.raises(NodeError):
        await node.run("t.require('cron-parser').CronExpressionParser.parse(pattern)", pattern=pattern)


@pytest.mark.scenario(43)
@pytest.mark.parametrize("pattern", ["H * * * *", "* * * *"])
async def test_patterns_of_chance_are_refused(pattern: str) -> None:
    # Node draws a number for H, and fills in fields that are missing: what runs when would be anybody's guess.
    with pytest.raises(ScheduleError):
        Schedule.cron(pattern)
