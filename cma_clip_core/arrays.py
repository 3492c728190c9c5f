"""Aliases for types of numpy arrays. Shapes are documented where an array is used."""

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
