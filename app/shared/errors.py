"""Errors of the app itself, and the tuple of all errors whose message is meant for the user.

AppError
├── EngineUnavailable    the engine did not start, or ended while it was asked something
│   └── EngineSilent     it is there, but says nothing
├── MeasuringEnded       what a run would take is not measured to the end, as somebody wished
├── JobFailed            a job ended without its result
├── QuotaExceeded        the home folder holds more than is allowed
├── NotYours             a folder belongs to another user
├── CannotListen         the page cannot be opened as it was asked for
└── AlreadyRunning       the page is open already on this home folder, or the port is taken
"""

from core.errors import WorkbenchError
from storage.errors import StorageError


class AppError(Exception):
    """Base of the app's own errors."""


class EngineUnavailable(AppError):
    """The engine did not start, or ended while it was asked something."""


class EngineSilent(EngineUnavailable):
    """The engine is there, but says nothing."""


class MeasuringEnded(AppError):
    """Measuring was ended before it had a result, as somebody wished."""


class JobFailed(AppError):
    """A job ended without its result."""


class QuotaExceeded(AppError):
    """The home folder holds more than is allowed."""


class NotYours(AppError):
    """A folder belongs to another user."""


class CannotListen(AppError):
    """The page cannot be opened as it was asked for, or no page is open."""


class AlreadyRunning(AppError):
    """The page is open already on this home folder, or the port is taken."""


USER_ERRORS = (AppError, WorkbenchError, StorageError)
