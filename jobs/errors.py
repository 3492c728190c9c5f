"""Errors that a user can act on. The command line prints their message alone, without a traceback."""


class JobError(Exception):
    """Something is wrong with the input or the settings; the message says what, where, and what to do."""


class TransientError(JobError):
    """Neither the input nor the settings need be wrong: the command line ends with exit code 1, and Airflow tries again."""


class CriticalDataError(JobError):
    """The day's batch breaks a critical rule; nothing is published from it."""


class StalePlanError(JobError):
    """Another run was published after this plan was frozen."""


class LedgerError(JobError):
    """The rows of a run do not add up."""
