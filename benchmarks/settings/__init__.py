"""The training pipelines that the benchmarks measure on: `SETTINGS` by name.

::

    setting = SETTINGS["digits-sgd-gentle"]
    run = setting.make(seed=0, folder=Path("build/run"))   # trains and records, every step's state kept
    rerun = run.rerun()                                    # for any estimator

A setting whose data cannot be had raises `NotAvailableError` from `make`.
"""

from examples.fetch import NotAvailableError

from .adult import SETTINGS as _ADULT
from .digits import SETTINGS as _DIGITS
from .mnist import SETTINGS as _MNIST
from .pipeline import Behaviour, Evaluation, Run, Setting, Stage
from .verses import SETTINGS as _VERSES

SETTINGS: dict[str, Setting] = {s.name: s for s in (*_DIGITS, *_MNIST, *_ADULT, *_VERSES)}

__all__ = ["SETTINGS", "Behaviour", "Evaluation", "NotAvailableError", "Run", "Setting", "Stage"]
