"""Everything Secateur can refuse, in one family.

Each error is one sentence that names the cause and the remedy; the command line prints it and exits with `exit_code`.
"""

from __future__ import annotations


class SecateurError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the command line's exit status."""

    exit_code: int = 2


class SecateurWarning(UserWarning):
    """What a user should know and nothing has to stop for; the command line prints it as a line of its own."""


class ModelError(SecateurError):
    """The model cannot be used: not a module, its forward fails, it is on the meta device, nothing can be pruned."""


class InputError(SecateurError):
    """The example inputs do not fit the model."""


class WeightsError(SecateurError):
    """A parameter or buffer holds NaN or infinite values."""


class BudgetError(SecateurError):
    """The budget is malformed or cannot be met."""


class PlanError(SecateurError):
    """A plan is malformed or does not fit the graph it is applied to."""


class ConfigError(SecateurError):
    """An option is unknown or has an impossible value."""


class CutError(SecateurError):
    """A cut was refused because it could not be made exactly."""


class VerificationError(SecateurError):
    """The cut network does not compute what the masked original computes."""


class DataError(SecateurError):
    """A data set is missing, empty, damaged or of the wrong shape."""


class RunError(SecateurError):
    """A run's folder cannot be used: damaged, foreign, unfinished or in the way."""


class Diverged(RunError):
    """Training ended in numbers that are not finite."""
