"""Errors that a user can act on; the message says what, where, and what to do."""


class CoreError(Exception):
    """The model, its configuration or its data is not what it must be."""


class ModelError(CoreError):
    """A model cannot be built, saved or loaded."""


class DataError(CoreError):
    """Examples are missing, or are not what the model expects."""


class NothingToLearnError(DataError):
    """What a method learns from is nowhere in the examples: other methods may still learn."""


class DeviceError(CoreError):
    """The device that was asked for is not there."""


class CheckpointError(CoreError):
    """A training checkpoint cannot be written, read or resumed."""


class CheckpointWriteError(CheckpointError):
    """A training checkpoint cannot be written, such as on a full disk; nothing else need be wrong."""


class DivergedError(CoreError):
    """Training gave a loss that is no number."""
