"""Every error that storage raises on purpose.

StorageError
├── NameTaken           a name is already used in its table
├── InvalidName         a name that cannot be stored or shown safely
├── NotFound            no row of that name or id
├── InUse               the row is needed by others
├── InvalidTransition   a state cannot follow the one that a run or a job is in
├── RegistryUnusable    the database cannot be read or written: its disk, its rights, or itself
│   └── RegistryFull    there is no space left for what was to be written
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


class RegistryUnusable(StorageError):
    """The database cannot be read or written: its disk, its rights, or itself."""


class RegistryFull(RegistryUnusable):
    """There is no space left for what was to be written."""


class BlobDamaged(StorageError):
    """Stored bytes no longer match their digest."""
