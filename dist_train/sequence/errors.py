"""What planning can fail with."""

from __future__ import annotations


class PlanningError(ValueError):
    """A step that cannot be planned as asked: says what is too long or wrong, and what it would need."""
