"""Small changes to what a script imports, each only where it was asked for.

Python imports this at its start when its folder comes first in PYTHONPATH. `CRUCIBLE_RESEED=N` adds N * 1,000,003 to
every seed that the script gives to torch, numpy's global generator or `random`, so that a script that sets its seed at
every start draws other numbers after a restart. `CRUCIBLE_PRINTED_BAR=1` lets Lightning choose tqdm's progress bar
where it would choose rich's, which outside a terminal prints nothing before its end. A `sitecustomize` that the
environment has of its own is run afterwards. `python -I` and `-S` skip both. It runs in other people's programs, on any
Python 3.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys

STRIDE = 1_000_003
HERE = os.path.dirname(os.path.abspath(__file__))


def shifted(function, shift, limit):
    """`function` with its first argument, a whole number, shifted; anything else is left alone."""

    def seed(*arguments, **named):
        for name in ("seed", "a"):
            if name in named and isinstance(named[name], int):
                named[name] = (named[name] + shift) % limit
        if arguments and isinstance(arguments[0], int):
            arguments = ((arguments[0] + shift) % limit, *arguments[1:])
        return function(*arguments, **named)

    return seed


def patch(module, shift):
    """Replace the seeding functions of a module that has just been imported."""
    if module.__name__ == "torch":
        module.manual_seed = shifted(module.manual_seed, shift, 2**63)
    elif module.__name__ == "numpy.random":
        module.seed = shifted(module.seed, shift, 2**32)
    elif module.__name__ == "random":
        module.seed = shifted(module.seed, shift, 2**63)
    elif hasattr(module, "RichProgressBar") and hasattr(module, "TQDMProgressBar"):
        module.RichProgressBar = module.TQDMProgressBar  # of Lightning's own choice only


class Finder(importlib.abc.MetaPathFinder):
    """Lets each module be imported as ever, and patches it then."""

    def __init__(self, names, shift):
        self.names, self.shift = set(names), shift

    def find_spec(self, name, path=None, target=None):
        """None for everything but the modules to be patched, each once."""
        if name not in self.names:
            return None
        self.names.discard(name)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            patch(module, self.shift)

        spec.loader.exec_module = exec_module
        return spec


SEEDED = ("torch", "numpy.random", "random")
CHOOSES_A_BAR = tuple(
    f"{name}.trainer.connectors.callback_connector" for name in ("lightning.pytorch", "pytorch_lightning")
)


def install(names, number):
    """Change these modules, also those that are imported already; seeds are shifted by `number` strides."""
    shift = number * STRIDE
    for name in names:
        if name in sys.modules:
            patch(sys.modules[name], shift)
    sys.meta_path.insert(0, Finder([name for name in names if name not in sys.modules], shift))


def run_the_next_one():
    """The `sitecustomize` that Python would have imported without this one."""
    elsewhere = [place for place in sys.path if os.path.abspath(place or ".") != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


wanted = os.environ.get("CRUCIBLE_RESEED", "")
strides = int(wanted) if wanted.isdigit() else 0
changed = (SEEDED if strides else ()) + (CHOOSES_A_BAR if os.environ.get("CRUCIBLE_PRINTED_BAR") == "1" else ())
if changed:
    install(changed, strides)
run_the_next_one()
