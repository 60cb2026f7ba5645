"""Every error that storage raises on purpose.

StorageError
├── NameTaken           a name is already used in its table
├── InvalidName         a name that cannot be stored or shown safely
├── NotFound            no row of that name or id
├── InUse               the row is needed by others
├── InvalidTransition   a state cannot follow the one that a run or a job is in
└── BlobDamaged         stored bytes no longer match their digest
"""


class StorageError(Exception):
    """Base of all errors with a message meant for the user."""


class NameTaken(StorageError):
    """A name is already used in its table."""


class InvalidName(StorageError):
    """A name that cannot be stored or shown safely."""


class NotFound(StorageError):
    """No row of that name or id."""


class InUse(StorageError):
    """The row is needed by others."""


class InvalidTransition(StorageError):
    """A state cannot follow the one that a run or a job is in."""


class BlobDamaged(StorageError):
    """Stored bytes no longer match their digest."""
