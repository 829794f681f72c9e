"""The changes of [simulate] in simulated time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dist_train.links import Begun, begin, plan_at
from dist_train.rates import seconds
from dist_train.virtual.machines import together

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comms.virtual_network import VirtualNetwork
    from dist_train.config import Config


class Schedule:
    """Changes the links of `network` when it is time."""

    def __init__(
        self,
        config: Config,
        network: VirtualNetwork,
        owned: Mapping[str, Mapping[str, float]],
        on_round: Callable[[int], None] | None,
    ) -> None:
        """`owned`: see `together`."""
        self._config = config
        self._network = network
        self._owned = owned
        self._on_round = on_round
        self._begun: Begun = {}
        self._open_round = 0
        for change in config.simulate.change:
            if change.after is not None:
                network.world.at(seconds(change.after), self._look)

    def opened(self, round_number: int) -> None:
        """A round begins."""
        self._open_round = round_number
        if self._config.simulate.change:
            self._look()
        if self._on_round is not None:
            self._on_round(round_number)

    def _look(self) -> None:
        now_s = self._network.world.now_s
        before, self._begun = self._begun, begin(self._config, self._begun, now_s, self._open_round)
        for number in self._begun.keys() - before.keys():
            lasts = self._config.simulate.change[number].lasts
            if lasts is not None:
                self._network.world.at(now_s + seconds(lasts), self._look)
        self._network.become(together(plan_at(self._config, self._begun, now_s), self._owned))
