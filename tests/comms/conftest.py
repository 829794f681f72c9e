"""What these tests share: certificates; and that properties are tried with the same values, on slow machines too."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from comms.certificates import issue
from tests.comms.strangers import MEMBERS

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the members of the run have."""
    folder = tmp_path_factory.mktemp("run") / "certs"
    issue(folder, MEMBERS, days=30)
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same names, by somebody else's authority."""
    folder = tmp_path_factory.mktemp("foreign") / "certs"
    issue(folder, MEMBERS, days=30)
    return folder
