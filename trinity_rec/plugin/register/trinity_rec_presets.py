"""For `trinity run --plugin-dir "$(trinity-rec plugin-dir)"`: the presets by their plain names.

Trinity copies a plugin file into its own package and loads it in every later run. The copy must not take the name `rec`
away from upstream's algorithm there, so the presets are registered only while this directory is asked for.
"""

import os
from pathlib import Path

from trinity.algorithm import ALGORITHM_TYPE

import trinity_rec
from trinity_rec.plugin.algorithm import plain_class
from trinity_rec.presets import PRESETS

_here = Path(trinity_rec.__file__).parent / "plugin" / "register"
_asked_for = [
    Path(folder).resolve() for folder in os.environ.get("TRINITY_PLUGIN_DIRS", "").split(os.pathsep) if folder
]

if _here.resolve() in _asked_for:
    for _name in PRESETS:
        if _name not in ALGORITHM_TYPE.modules:
            ALGORITHM_TYPE.register_module(_name, plain_class(_name))
