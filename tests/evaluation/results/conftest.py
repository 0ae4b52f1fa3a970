"""Models as if LAMBADA had been measured on them."""

import numpy as np
import pytest
from support.evaluation import measured


@pytest.fixture
def pair():
    """Two of them, of which the second is right everywhere."""
    random = np.random.default_rng(0)
    nats = random.normal(3, 1, 40)
    first = measured("first", [0] * 25 + [1] * 15, nats)
    return first, measured("second", [1] * 40, nats + random.normal(0, 0.1, 40))
