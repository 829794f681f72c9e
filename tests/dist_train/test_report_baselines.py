"""Golden: the baselines, worked out by hand."""

import pytest

from dist_train import baselines


def test_a_ring_moves_two_shares_of_the_buffer_out_of_every_replica() -> None:
    # 4 replicas, 100 values of 4 bytes: each sends 2 * 3/4 * 400 = 600 bytes.
    assert baselines.ring_all_reduce_bytes(4, 100, 4) == 2400


def test_one_replica_sends_nothing() -> None:
    assert baselines.ddp_bytes([1, 1], 15, 100, 4) == 0
    assert baselines.diloco_bytes([1, 1], 100, 4) == 0
    assert baselines.sparseloco_reference_wire_bytes([1, 1], 10) == 0


def test_ddp_exchanges_after_every_inner_step() -> None:
    # Two rounds of 3 steps among 2 replicas, one among 3: (2 + 2 + 4) * 100 values * 3 steps.
    assert baselines.ddp_bytes([2, 2, 3], 3, 100, baselines.FP32_BYTES) == 9600
    assert baselines.ddp_bytes([2, 2, 3], 3, 100, baselines.BF16_BYTES) == 4800


def test_diloco_exchanges_once_a_round() -> None:
    assert baselines.diloco_bytes([2, 2, 3], 100, 4) == 3200


def test_the_reference_wire_takes_72_bits_a_value_to_every_other_replica() -> None:
    # 10 values: 3 replicas send 90 bytes to 2 others each, then 2 replicas to one other each.
    assert baselines.sparseloco_reference_wire_bytes([3, 2], 10) == 540 + 180


@pytest.mark.parametrize("replicas", [2, 8, 20])
def test_ddp_costs_diloco_times_the_inner_steps(replicas: int) -> None:
    ddp = baselines.ddp_bytes([replicas] * 4, 30, 12_345, baselines.FP32_BYTES)
    assert ddp == 30 * baselines.diloco_bytes([replicas] * 4, 12_345, 4)
