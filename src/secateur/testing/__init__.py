"""The contract of methods as a test suite, for Secateur's own methods and for anybody's.

secateur.testing.check_method(MyMethod)
"""

from secateur.testing._promises import Check
from secateur.testing.networks import NETWORKS, Network
from secateur.testing.suite import check_method, checks

__all__ = ["NETWORKS", "Check", "Network", "check_method", "checks"]
