"""Errors that a user can act on. The command line prints their message alone, without a traceback."""

from __future__ import annotations

from cma_clip_core.errors import CheckpointWriteError, CoreError


class JobError(Exception):
    """Something is wrong with the input or the settings; the message says what, where, and what to do."""


class TransientError(JobError):
    """Neither the input nor the settings need be wrong: the command line ends with exit code 1, and Airflow tries again."""


class CriticalDataError(JobError):
    """The day's batch breaks a critical rule; nothing is published from it."""


class RemovalsError(CriticalDataError):
    """A night would remove more of the published products than it may by itself."""


class StalePlanError(JobError):
    """Another run was published after this plan was frozen."""


class LedgerError(JobError):
    """The rows of a run do not add up."""


def as_job_error(error: CoreError) -> JobError:
    """Return what is told, and whether it is worth another try, of what went wrong in a training."""
    return (TransientError if isinstance(error, CheckpointWriteError) else JobError)(str(error))
