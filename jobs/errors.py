"""Errors that a user can act on. The command line prints only their message, without a traceback."""

from __future__ import annotations

from cma_clip_core.errors import CheckpointWriteError, CoreError


class JobError(Exception):
    """A fault of the input or the settings. The message says what is wrong, where, and what to do."""


class TransientError(JobError):
    """A failure that may pass without a change of input or settings. The exit code is 1, and Airflow retries."""


class CriticalDataError(JobError):
    """The batch of a day breaks a critical rule; nothing is published from it."""


class RemovalsError(CriticalDataError):
    """A night would remove more published products than it may without permission."""


class StalePlanError(JobError):
    """Another run was published after this plan was made."""


class LedgerError(JobError):
    """The rows of a run do not add up."""


def as_job_error(error: CoreError) -> JobError:
    """Return the error of a failed training as a JobError, transient if only a checkpoint could not be written."""
    return (TransientError if isinstance(error, CheckpointWriteError) else JobError)(str(error))
