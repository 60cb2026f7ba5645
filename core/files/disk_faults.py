"""Faults of a disk: never to be told as faults of the files that were read or of the network."""

from __future__ import annotations

import errno

_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def is_disk_fault(error: BaseException) -> bool:
    """Whether the system says that a disk is full, fails or cannot be written."""
    return isinstance(error, OSError) and error.errno in _OF_A_DISK
