"""Arrays of numpy, for the arithmetic of some hundred floats: its operations cost a third of torch's."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

quiet = np.errstate(all="ignore")
"""Decorator that silences warnings, because an update with a gradient that is not finite is skipped and counted."""
