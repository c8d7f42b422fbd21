"""How long restarts wait."""

from workers_module.cli.supervisor import pause_s


def test_five_quick_ends_are_forgiven_and_then_pauses_double_to_a_minute() -> None:
    assert [pause_s(ends) for ends in range(12)] == [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60]
