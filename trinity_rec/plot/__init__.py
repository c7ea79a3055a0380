"""Pictures of training runs: `events` reads Trinity's TensorBoard logs, `draw` draws curves, `page` shows many runs."""
