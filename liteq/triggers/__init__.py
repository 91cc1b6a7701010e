"""When something is due: ``crontab(...)``, ``every(...)``, ``at(...)``, and what can be made of them.

Floor 0: pure values, no I/O, no threads, no reading of the clock. The rooms, from the ground up:

==================  ===============================================================================================
``fields.py``       which readings of a wall clock match a cron expression
``expression.py``   the grammar of cron expressions
``zones.py``        clock arithmetic: offsets, gaps, folds
``moments.py``      durations and moments as triggers keep them; jitter
``english.py``      phrases for ``describe``
``trigger.py``      ``Trigger``, and the triggers made of others
``plain.py``        ``every``, ``at``, ``@reboot``
``cron.py``         ``crontab``
``text.py``         ``parse_trigger``
==================  ===============================================================================================
"""

from liteq.triggers.cron import Crontab, crontab
from liteq.triggers.moments import jitter_of
from liteq.triggers.plain import At, Every, Reboot, at, every
from liteq.triggers.text import parse_trigger
from liteq.triggers.trigger import Trigger

__all__ = ["At", "Crontab", "Every", "Reboot", "Trigger", "at", "crontab", "every", "jitter_of", "parse_trigger"]
