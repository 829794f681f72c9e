"""What runs first on a host: unpacks what the launcher sends, and says in one line of JSON what it found there.

Its text is read from stdin before dist-train is on the host, by whatever Python is there: so it imports nothing of ours
at the top, and is written for old interpreters. Arguments: the folder of the code, or "" when it must be installed.
After the text comes a tar file, whose entries appear whole or not at all. Nothing that was there is deleted.
"""

import importlib.util
import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

NEEDED = ("torch", "transformers", "grpc", "google.protobuf", "numpy", "safetensors", "pydantic", "typer")


def main() -> None:
    """Unpacks stdin into the working directory, and prints the facts."""
    os.umask(0o077)
    code = sys.argv[1]
    incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir="."))
    try:
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as parcel:
            for entry in parcel:
                unpack(parcel, entry, incoming)
        for path in sorted(incoming.iterdir()):
            put(path, Path(path.name), is_code=path.name == code)
    finally:
        shutil.rmtree(str(incoming), ignore_errors=True)
    facts = {
        "python": list(sys.version_info[:3]),
        "missing": [name for name in NEEDED if not is_there(name)],
        "installed_code": None if code else installed_code(),
    }
    print(json.dumps(facts))  # noqa: T201 - read by the launcher


def unpack(parcel: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> None:
    """Writes one file of the tar file below `folder`."""
    content = parcel.extractfile(entry)
    name = Path(entry.name)
    if content is None or name.is_absolute() or ".." in name.parts:
        raise SystemExit(f"{name} is no plain file below the working directory")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(content, file)


def put(source: Path, target: Path, *, is_code: bool) -> None:
    """Moves a file or a folder to its place; code that is there already is the same, and stays."""
    if not source.is_dir():
        source.replace(target)
    elif not is_code:
        target.mkdir(exist_ok=True)
        for path in sorted(source.iterdir()):
            put(path, target / path.name, is_code=False)
    elif not target.is_dir():
        try:
            source.rename(target)
        except OSError:
            if not target.is_dir():  # else somebody has put the same there just now
                raise


def is_there(module: str) -> bool:
    """Whether a module can be imported, without doing so."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def installed_code() -> "str | None":
    """The digest of the dist-train that is installed here; None when there is none, or an older one."""
    sys.path = [path for path in sys.path if path]  # not the working directory
    try:
        from launcher.parcel import code_digest  # it may not be there
    except ImportError:
        return None
    return code_digest()


if __name__ == "__main__":
    main()
