"""The report as text: every fact in it, and nothing beyond 100 columns."""

import pytest
from rich.console import Console

from dist_train.report import Report, render_terminal
from dist_train.report.contents import (
    BaselinesPart,
    LossPart,
    ModelPart,
    PseudoGradientPart,
    ReplicaPart,
    RoundPart,
    TrafficPart,
)
from dist_train.report.quantities import bytes_text, count_text, loss_text, ratio_text, seconds_text

DETAILS = tuple(
    RoundPart(
        round=number,
        contributors=tuple(f"replica-{n}" for n in range(20)),
        theta_digest="ab" * 32,
        loss=5.0 - number / 10,
        compute_s=12.0,
        exchange_s=0.5,
        validation_loss=None,
        tokens=8192,
        agreed=number != 11,
        absent={},
    )
    for number in range(1, 13)
)
REPORT = Report(
    run="demo",
    status="complete",
    rounds=12,
    rounds_planned=12,
    config_digest="00" * 32,
    method="sparseloco",
    model=ModelPart(name="llama", parameters=1_200_000),
    replicas=tuple(
        ReplicaPart(id=f"replica-{n}", kind="dense", ranks=1, stages=1, rank_k=None, tokens=9, rounds_committed=12)
        for n in range(20)
    ),
    rounds_detail=DETAILS,
    traffic=(
        TrafficPart(kind="pseudo_gradient", sent_bytes=2_000_000, received_bytes=2_000_000, predicted_bytes=1_900_000),
        TrafficPart(kind="activation", sent_bytes=0, received_bytes=0, predicted_bytes=None),
        TrafficPart(kind="control", sent_bytes=4_000, received_bytes=4_000, predicted_bytes=None),
    ),
    pseudo_gradient=PseudoGradientPart(density=0.0156, bits_per_value=9.0, bits_per_parameter=0.14, ratio_vs_fp32=228),
    links=(),
    baselines=BaselinesPart(
        ddp_fp32_bytes=1_290_000_000,
        ddp_bf16_bytes=645_000_000,
        diloco_fp32_bytes=86_000_000,
        sparseloco_reference_wire_bytes=1_000_000,
    ),
    loss=LossPart(train_first=5.5, train_last=2.713, validation_first=5.6, validation_last=2.8, unigram_entropy=3.2),
    tokens=98_304,
    utilisation=0.96,
)


def rendered(report: Report) -> str:
    console = Console(width=100, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(render_terminal(report))
    return capture.get()


def test_the_facts_are_said() -> None:
    text = rendered(REPORT)
    for fact in ("complete", "12 of 12", "1.2M parameters", "5.500 → 2.713", "96.0% of the time", "2.0 MB", "105.3%"):
        assert fact in text
    assert "228x smaller than fp32" in text
    assert "9.00 bits a sent value" in text
    assert "645x less" in text  # DDP, fp32
    assert "43x less" in text  # DiLoCo
    assert "2.0x more" in text  # the reference wire, in this made-up run


def test_kinds_without_a_byte_are_left_out_and_only_the_last_rounds_shown() -> None:
    text = rendered(REPORT)
    assert "activation" not in text
    lines = [line.split()[0] for line in text.splitlines() if "abababab" in line]
    assert lines == [str(number) for number in range(5, 13)]


def test_a_round_without_agreement_is_named() -> None:
    assert "digests DIFFERED in round 11" in rendered(REPORT)
    agreed = tuple(detail.model_copy(update={"agreed": True}) for detail in DETAILS)
    assert "same digest everywhere in all 12 rounds" in rendered(REPORT.model_copy(update={"rounds_detail": agreed}))


def test_it_fits_into_100_columns() -> None:
    assert max(len(line.rstrip()) for line in rendered(REPORT).splitlines()) <= 100


def test_a_run_without_a_round_is_short_and_honest() -> None:
    empty = REPORT.model_copy(
        update={
            "status": "interrupted",
            "rounds": 0,
            "rounds_detail": (),
            "traffic": (),
            "utilisation": None,
            "pseudo_gradient": PseudoGradientPart(
                density=None, bits_per_value=None, bits_per_parameter=None, ratio_vs_fp32=None
            ),
            "baselines": BaselinesPart(
                ddp_fp32_bytes=0, ddp_bf16_bytes=0, diloco_fp32_bytes=0, sparseloco_reference_wire_bytes=None
            ),
        }
    )
    text = rendered(empty)
    assert "no round was committed" in text
    assert "Traffic" not in text
    assert "other means" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(999), "999 B"),
        (bytes_text(41_234), "41.2 kB"),
        (bytes_text(999_960), "1.0 MB"),
        (bytes_text(3_200_000_000), "3.2 GB"),
        (bytes_text(None), "-"),
        (count_text(18_300), "18.3k"),
        (count_text(None), "-"),
        (seconds_text(0.44), "0.4s"),
        (seconds_text(59.4), "59s"),
        (seconds_text(59.6), "1m00s"),
        (seconds_text(80), "1m20s"),
        (seconds_text(11_100), "3h05m"),
        (seconds_text(float("inf")), "-"),
        (loss_text(float("nan")), "nan"),
        (ratio_text(43.2), "43x"),
        (ratio_text(1.84), "1.8x"),
        (ratio_text(1_290.0), "1,290x"),
    ],
)
def test_quantities(text: str, expected: str) -> None:
    assert text == expected
