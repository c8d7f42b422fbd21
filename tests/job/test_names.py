"""Which names and ids are taken."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers_module.errors import InvalidNameError
from workers_module.job.names import MAX_KEY_BYTES, NameKind, check_job_id, check_key, check_name

KINDS: tuple[NameKind, ...] = ("queue", "job", "schedule", "lock", "tag")
GOOD = ["a", "sync-data", "Email_2.x", "..", "-", "7", "x" * 128]
BAD: list[object] = [
    "", " ", "a b", "a\n", "\n", "a\r", "a\0", "../x", "a/b", "a\\b", "a:b", "a*", "a?", "[a]", "{}", "{a", "a}", "é",
    "a\u200b", "a@b", "x" * 129, "\ud800", "\u0661", None, 3, b"a", ["a"],
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GOOD)
def test_good_names_come_back(kind: NameKind, name: str) -> None:
    assert check_name(kind, name) == name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_bad_names_are_refused_with_kind_and_rule(kind: NameKind, name: object) -> None:
    with pytest.raises(InvalidNameError, match=rf"{kind} name .*at most 128") as caught:
        check_name(kind, name)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("name", ["{email}", "{a}b", "a{b}c", "x{y}"])
def test_a_queue_may_stand_in_one_pair_of_braces(name: str) -> None:
    assert check_name("queue", name) == name
    with pytest.raises(InvalidNameError):
        check_name("job", name)


@pytest.mark.parametrize("name", ["{}", "{a}{b}", "{{a}}", "}a{", "{a b}", "{" + "a" * 127 + "}"])
def test_other_braces_are_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        check_name("queue", name)


@pytest.mark.parametrize("id", ["order-1", "1a", "0x1", "-1", "1.5", "x" * 128])
def test_good_job_ids_come_back(id: str) -> None:
    assert check_job_id(id) == id


@pytest.mark.parametrize("id", ["1", "012", "0", "a:b", "repeat:x:1", "", "x" * 129, "a b", 7, None])
def test_bad_job_ids_are_refused(id: object) -> None:
    with pytest.raises(InvalidNameError, match="job_id"):
        check_job_id(id)


@pytest.mark.parametrize("key", ["ann@example.org", "a:b", " ", "😀", "x" * MAX_KEY_BYTES])
def test_keys_are_free_text(key: str) -> None:
    assert check_key("Dedup", key) == key


@pytest.mark.parametrize("key", ["", "a\0", "\ud800", "x" * (MAX_KEY_BYTES + 1), "é" * MAX_KEY_BYTES, None, 3])
def test_keys_that_no_store_keeps_are_refused(key: object) -> None:
    with pytest.raises(InvalidNameError, match="Dedup"):
        check_key("Dedup", key)


@given(st.text(max_size=140) | st.from_regex(r"[A-Za-z0-9_.\-]{1,140}", fullmatch=True))
def test_the_rule_is_the_whole_rule(name: str) -> None:
    allowed = re.fullmatch(r"[A-Za-z0-9_.\-]{1,128}", name) is not None
    try:
        assert check_name("job", name) == name
    except InvalidNameError:
        assert not allowed
    else:
        assert allowed
