"""Error feedback: what is not sent is kept, and a round that fails changes nothing."""

from __future__ import annotations

import pytest
import torch

from compression.codec import Update
from compression.feedback import ErrorFeedback
from compression.sparse import SparseCodec

pytestmark = pytest.mark.timeout(60)


def test_golden_two_rounds_by_hand() -> None:
    feedback = ErrorFeedback(0.5)
    assert feedback.accumulate("f", torch.tensor([4.0, 1.0, -2.0])).tolist() == [4, 1, -2]
    feedback.settle("f", Update(torch.tensor([0, 2]), torch.tensor([3.0, -2.5])))
    assert feedback.state_dict()["f"].tolist() == [1, 1, 0.5]
    assert feedback.accumulate("f", torch.tensor([1.0, 1.0, 1.0])).tolist() == [1.5, 1.5, 1.25]
    feedback.settle("f", Update(None, torch.tensor([1.5, 0.0, 1.0])))
    assert feedback.state_dict()["f"].tolist() == [0, 1.5, 0.25]


def test_a_round_that_does_not_commit_keeps_all_that_was_wanted() -> None:
    feedback = ErrorFeedback(0.5)
    feedback.accumulate("f", torch.tensor([4.0]))
    assert feedback.accumulate("f", torch.tensor([1.0])).tolist() == [3.0]


def test_the_change_is_read_and_not_taken_over() -> None:
    feedback = ErrorFeedback(1.0)
    delta = torch.ones(2)
    feedback.accumulate("f", delta)
    feedback.accumulate("f", delta)
    assert delta.tolist() == [1, 1]
    assert feedback.state_dict()["f"].tolist() == [2, 2]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [1, 2, 32])
def test_conservation_over_many_rounds(seed: int, width: int) -> None:
    """With decay 1, all that was sent plus what is kept is all that was wanted; exact in whole numbers."""
    codec = SparseCodec(16, 3, width)
    layout = codec.layout({"w": (9, 7), "b": (5,)})
    generator = torch.Generator().manual_seed(seed)
    feedback = ErrorFeedback(1.0)
    wanted, sent = torch.zeros(layout.num_values), torch.zeros(layout.num_values)
    for round_number in range(12):
        tensors = {n: torch.randint(-50, 50, s, generator=generator).float() for n, s in layout.shapes.items()}
        delta = layout.pack(tensors)
        wanted += delta
        accumulated = feedback.accumulate("f", delta)
        update = codec.decode(codec.encode(accumulated, layout), layout)
        if round_number % 4 != 3:  # each fourth round fails
            feedback.settle("f", update)
            update.add_to(sent)
    assert torch.equal(sent + feedback.state_dict()["f"], wanted)


def test_a_state_that_was_saved_goes_on_as_if_never_stopped() -> None:
    one = ErrorFeedback(0.9)
    one.accumulate("f", torch.tensor([0.1, 0.2]))
    two = ErrorFeedback(0.9)
    two.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    delta = torch.tensor([0.3, 0.4])
    assert torch.equal(one.accumulate("f", delta), two.accumulate("f", delta))


def test_settling_twice_or_without_a_round_is_refused() -> None:
    feedback = ErrorFeedback(0.9)
    update = Update(None, torch.zeros(1))
    with pytest.raises(ValueError, match="f: nothing was accumulated"):
        feedback.settle("f", update)
    feedback.accumulate("f", torch.zeros(1))
    feedback.settle("f", update)
    with pytest.raises(ValueError, match="f: nothing was accumulated"):
        feedback.settle("f", update)


def test_another_shape_and_a_decay_out_of_range_are_refused() -> None:
    feedback = ErrorFeedback(0.9)
    feedback.accumulate("f", torch.zeros(2))
    with pytest.raises(ValueError, match=r"f: the residual is \(2,\)"):
        feedback.accumulate("f", torch.zeros(3))
    for decay in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="is not between 0 and 1"):
            ErrorFeedback(decay)


def test_the_quantizer_error_is_relative_to_what_was_kept() -> None:
    feedback = ErrorFeedback(0.9)
    assert feedback.quantizer_error is None
    feedback.accumulate("x", torch.tensor([3.0, 100.0, 4.0]))
    # Of 3 and 4 the round sent 3 and 3: 1 is missing, of a norm of 5. What was not kept at all does not count.
    feedback.settle("x", Update(torch.tensor([0, 2]), torch.tensor([3.0, 3.0])))
    assert feedback.quantizer_error == pytest.approx(1 / 5)
