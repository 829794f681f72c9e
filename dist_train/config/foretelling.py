"""What `dist-train plan` should believe: [[device]], [plan], [prices]."""

from __future__ import annotations

from pydantic import Field

from dist_train.config.section import Section
from dist_train.config.texts import Fraction, Identifier, LatencyText, LineText


class DeviceConfig(Section):
    """[[device]]: what `dist-train plan` should believe of a machine. Nothing else reads it."""

    name: Identifier
    """A replica's id, a member of its pipeline, or what `plan.device` names; others are placed by the plan."""
    tflops: float | None = Field(default=None, gt=0)
    """10^12 operations a second reached in training, all accelerators of the machine together; see `plan --measure`."""
    memory_bytes: float | None = Field(default=None, gt=0)
    """Memory of the accelerators (or of the machine, where it trains on its processor)."""
    line: LineText | None = None
    """Its way into the internet: "50mbit" both ways, "10mbit/50mbit" up/down."""
    latency: LatencyText | None = None
    """To the others, each way: "40ms"."""
    encode_parameters_per_s: float | None = Field(default=None, gt=0)
    """Parameters that its codec encodes in a second."""
    decode_parameters_per_s: float | None = Field(default=None, gt=0)
    """Parameters of one payload that its codec decodes and adds up in a second."""
    apply_parameters_per_s: float | None = Field(default=None, gt=0)
    """Parameters that take the outer step, and are digested, in a second."""
    count: int = Field(default=1, ge=1)
    """So many machines like this one, called NAME-1, NAME-2, …, when above 1."""


class PlanConfig(Section):
    """[plan]: what `dist-train plan` assumes. Nothing else reads it."""

    replicas: int | None = Field(default=None, ge=1)
    """So many replicas like the first one, instead of the [[replica]] sections."""
    device: Identifier | None = None
    """The [[device]] that replicas are which name none."""
    coordinator: Identifier | None = None
    """The [[device]] that stores and forwards under `exchange.route = "relay"`; without limits when left out."""
    bits_per_value: float | None = Field(default=None, gt=0)
    """Bits of a sent value, place included, instead of our codec's: 14 is the published count."""
    useful_utilisation: Fraction = 0.9
    """Share of the time spent computing below which the plan says what to change."""


class PricesConfig(Section):
    """[prices]: for the plan's costs."""

    device_hour: float = Field(default=0.0, ge=0)
    """One [[device]] for an hour."""
    sent_gigabyte: float = Field(default=0.0, ge=0)
    """10^9 bytes leaving a machine."""
    currency: str = "USD"
    """What prices are in; only shown."""
