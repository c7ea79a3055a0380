"""Runs that are kept beside the page that tells of them, and results that follow from them."""

import json
import tarfile


def unpack(archives, out):
    """Into `out`, as the page says to, so that the command goes on from them."""
    for archive in archives:
        with tarfile.open(archive) as packed:
            packed.extractall(out, filter="data")


def columns_of(archives):
    """The tasks and lags that they hold, an archive each."""
    return {archive.name.removesuffix(".tar.xz") for archive in archives}


def said_in(path):
    """But for the last bits of a mean."""
    return json.loads(path.read_text(encoding="utf-8"), parse_float=lambda number: round(float(number), 9))
