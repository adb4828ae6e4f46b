"""How much memory a rank of a run takes, computed from its config alone."""

from harness.doctor.need.count import exponentials_of, need_of, products_of
from harness.doctor.need.record import Need

__all__ = ["Need", "exponentials_of", "need_of", "products_of"]
