"""What a host gets from the launcher before a process of a run begins there: our code, the config, the process's keys.

code-DIGEST/          dist-train itself, named by its content (`ssh.code = "send"`)
RUN-KEY/config.toml   the run's config, with the folders as they are on the host
RUN-KEY/certs/        what that replica shows of itself, and nobody else's keys (`security.mode = "tls"`)
"""

from __future__ import annotations

import hashlib
import io
import secrets
import tarfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dist_train.config import Config
    from dist_train.run_directory import RunDirectory

PACKAGES = ("protos", "comms", "compression", "dist_train", "launcher")
KEY_FILE = "run.key-on-hosts"
"""In the run directory: what tells this run from others of the same name on its hosts. It is no secret."""
CERTIFICATES = "certs"


@cache
def code_digest() -> str:
    """SHA-256 (hex) of dist-train's own files, as they are imported here."""
    digest = hashlib.sha256()
    for name, path in _code_files():
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def code_folder() -> str:
    """Where that code is on a host, in the working folder there."""
    return f"code-{code_digest()[:16]}"


def new_run_key(directory: RunDirectory) -> None:
    """Makes a run new for its hosts, too: what they keep of an earlier one of its name is not touched."""
    (directory.path / KEY_FILE).write_text(f"{secrets.token_hex(4)}\n")


def run_folder(config: Config, directory: RunDirectory) -> str:
    """The run directory on a host, in the working folder there."""
    try:
        key = (directory.path / KEY_FILE).read_text().strip()
    except OSError:
        key = "NEW"  # to be made when the run is started
    return f"{config.run.name}-{key}"


def make_parcel(config: Config, directory: RunDirectory, replica: str) -> bytes:
    """The tar file for a process of `replica`. ConfigError when a certificate can't be read."""
    folder, stream = run_folder(config, directory), io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        if config.ssh.code == "send":
            for name, path in _code_files():
                _add(tar, f"{code_folder()}/{name}", path.read_bytes())
        _add(tar, f"{folder}/config.toml", _config_there(config, folder).to_toml().encode())
        if config.security.mode == "tls":
            for name, path in certificate_files(config, replica):
                _add(tar, f"{folder}/{CERTIFICATES}/{name}", _read(path))
    return stream.getvalue()


def certificate_files(config: Config, member: str) -> tuple[tuple[str, Path], ...]:
    """What `member` needs to show who it is: the name of each file where it is needed, and where it is here."""
    folder = Path(config.security.certificates).expanduser()
    token = config.security.token_file
    return (
        ("ca.pem", folder / "ca.pem"),
        ("run.token", Path(token).expanduser() if token is not None else folder / "run.token"),
        (f"{member}.pem", folder / f"{member}.pem"),
        (f"{member}.key", folder / f"{member}.key"),
    )


def _config_there(config: Config, folder: str) -> Config:
    run = config.run.model_copy(update={"directory": folder})
    keys = {"certificates": f"{folder}/{CERTIFICATES}", "token_file": None}
    return config.model_copy(update={"run": run, "security": config.security.model_copy(update=keys)})


def _code_files() -> Iterator[tuple[str, Path]]:
    root = Path(__file__).parent.parent
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield str(path.relative_to(root)), path


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o600
    tar.addfile(entry, io.BytesIO(content))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f'security.mode = "tls", but {path}: {error.strerror}') from None
