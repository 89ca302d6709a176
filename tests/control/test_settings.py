"""What the operator's own defaults promise to others."""

from dataclasses import fields

from nimway.control.runtime import RESYNC_JITTER
from nimway.control.settings import Settings

DEFAULTS = {each.name: each.default for each in fields(Settings)}


def test_everything_is_listed_afresh_every_minute_at_the_latest() -> None:
    period_s = DEFAULTS["resync_s"]
    assert isinstance(period_s, float)
    assert (period_s, RESYNC_JITTER) == (50.0, 0.1)
    assert period_s * (1 + RESYNC_JITTER) <= 60


def test_a_table_is_written_four_times_a_second_at_most() -> None:
    assert DEFAULTS["table_period_s"] == 0.25
