"""What a run did and what it sent: collected from its directory, shown in the terminal or as JSON."""

from dist_train.report.collect import collect
from dist_train.report.contents import Report
from dist_train.report.terminal import render_terminal

__all__ = ["Report", "collect", "render_terminal"]
