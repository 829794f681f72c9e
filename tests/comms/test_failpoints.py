"""Failpoints: what is armed fires once, where and when it was to."""

from __future__ import annotations

from pathlib import Path

import pytest

from comms import failpoints


def test_data_passes_a_place_unharmed_until_a_bit_of_it_is_to_flip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "fired"
    monkeypatch.setenv("DIST_TRAIN_FAILPOINTS_LOG", str(log))
    data = bytes(range(100))
    failpoints.arm("encoded-payload@2=corrupt")
    assert failpoints.spoil("encoded-payload", 1, data) == data
    spoiled = failpoints.spoil("encoded-payload", 2, data)
    assert sum((a ^ b).bit_count() for a, b in zip(data, spoiled, strict=True)) == 1
    assert failpoints.spoil("encoded-payload", 2, data) == data, "it fires once"
    assert log.read_text().split()[:3] == ["encoded-payload", "2", "corrupt"]


@pytest.mark.parametrize("text", ["nowhere=kill", "encoded-payload=explode", "encoded-payload@x=kill", "kill"])
def test_a_failpoint_that_does_not_exist_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not POINT"):
        failpoints.arm(text)
