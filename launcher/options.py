"""Arguments and options that several commands have, each with its words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run's config.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run's directory (run.directory of its config).")]
Address = Annotated[
    str,
    typer.Argument(
        metavar="ADDRESS", help="Where the run's coordinator is: HOST:PORT, or NAME@PEER (docs/discovery.md)."
    ),
]
Bootstrap = Annotated[
    list[str] | None,
    typer.Option("--bootstrap", metavar="PEER", help="ADDRESS is a name; this peer knows where it is."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="section.key=value", help="Changes to the config.")]
Certificates = Annotated[Path | None, typer.Option("--certificates", help="This member's, for a tls run.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="The run says security.mode = insecure.")]
Coordinator = Annotated[str, typer.Option("--coordinator", metavar="HOST:PORT", help="Where the run is.")]
