"""Every error that core raises on purpose.

    WorkbenchError
    ├── InvalidInput          what was given cannot be used
    │   ├── InvalidConfig     an option is unknown, of the wrong kind or out of range
    │   │   ├── CannotShare   a run whose shapes do not allow it to train at once with others
    │   │   └── QuestionableRun  a run that is refused unless somebody insists
    │   ├── PromptTooLong     a prompt that leaves no room for an answer in the context
    │   ├── InvalidData       a data set or one of its rows
    │   ├── InvalidModel      a folder, GGUF file or hub id that is no usable base model
    │   └── InvalidAdapter    adapter files that are malformed, hostile or for other modules
    ├── WrongBase             an adapter meets a base model it was not made for
    ├── BaseTooLarge          a base model has no room in the device's memory
    ├── OutOfSpace            the disk is too full for what was asked
    ├── SourceUnreachable     a download could not be made
    ├── WorkerLost            a process that trains together with others is gone
    └── TrainingDiverged      the loss or a gradient is no longer finite

A message is one or two sentences for the person at the screen: what was given, what was expected, what to do.
"""


class WorkbenchError(Exception):
    """Base of all errors with a message meant for the user."""


class InvalidInput(WorkbenchError):
    """What was given cannot be used."""


class InvalidConfig(InvalidInput):
    """An option is unknown, of the wrong kind or out of range."""


class CannotShare(InvalidConfig):
    """A run whose shapes do not allow it to train at once with others; by itself it can."""


class QuestionableRun(InvalidConfig):
    """A run that can be trained, but is refused with the reason unless somebody insists."""


class PromptTooLong(InvalidInput):
    """A prompt that leaves no room for an answer in the model's context."""


class InvalidData(InvalidInput):
    """A data set, or one of its rows, cannot be used."""


class InvalidModel(InvalidInput):
    """No usable base model where one was expected."""


class InvalidAdapter(InvalidInput):
    """Adapter files that are malformed, hostile or made for other modules."""


class WrongBase(WorkbenchError):
    """An adapter meets a base model it was not made for."""


class BaseTooLarge(WorkbenchError, MemoryError):
    """A base model has no room in the device's memory as it is to be held."""


class OutOfSpace(WorkbenchError):
    """The disk is too full for what was asked."""


class SourceUnreachable(WorkbenchError):
    """A download could not be made."""


class WorkerLost(WorkbenchError):
    """A process that trains together with others has ended, or cannot join them."""


class TrainingDiverged(WorkbenchError):
    """The loss or a gradient is no longer finite."""
