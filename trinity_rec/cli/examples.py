"""`trinity-rec examples`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from trinity_rec.terminal import UsageError, known_name

EXAMPLE = "trinity-rec examples rec_gsm8k/gsm8k.yaml --copy ."


def command(
    name: Annotated[str | None, typer.Argument(help="One of them; prints its path.")] = None,
    copy: Annotated[Path | None, typer.Option(help="Copy it, or all of them, into this directory.")] = None,
) -> None:
    """List the example YAMLs, find one, or copy them to a directory of yours."""
    from trinity_rec.shipped import example, example_names

    names = example_names() if name is None else [known_name(name, example_names(), "example")]
    for each in names:
        if copy is None:
            print(each if name is None else example(each))
        else:
            target = copy / Path(each).name
            if target.exists():
                raise UsageError(f"{target} is there already")
            copy.mkdir(parents=True, exist_ok=True)
            print(shutil.copyfile(example(each), target))
