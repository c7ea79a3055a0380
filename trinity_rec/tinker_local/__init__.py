"""A local backend for Trinity-RFT: a server that speaks the Tinker API, on torch, with or without a GPU.

`serve` starts it (`trinity-rec serve` on the command line). Modules, from the outside in: `server` (HTTP routes,
process) with `connections`, `wire` (formats, checks), `backend` (sessions, runs), `losses`, `training` (with
`packing`), `sampling` (with `kv_cache` and `streams`), `weights` (snapshots on disk), `model` and `logprobs` (what
trainer and sampler share).
"""

from trinity_rec.tinker_local.errors import ServeError
from trinity_rec.tinker_local.server import serve

__all__ = ["ServeError", "serve"]
