"""Errors that a user can act on. Each message names the problem, its location and the remedy."""


class CoreError(Exception):
    """The model, its configuration or its data is invalid."""


class ModelError(CoreError):
    """A model cannot be built, saved or loaded."""


class DataError(CoreError):
    """Examples are missing, or are not what the model expects."""


class NothingToLearnError(DataError):
    """The examples lack the input that this method learns from; other methods may still learn."""


class DeviceError(CoreError):
    """The requested device does not exist, or its memory is too small."""


class CheckpointError(CoreError):
    """A training checkpoint cannot be written, read or resumed."""


class CheckpointWriteError(CheckpointError):
    """A training checkpoint cannot be written, for example because the disk is full."""


class DivergedError(CoreError):
    """The loss or the gradient became infinite or NaN in training."""
