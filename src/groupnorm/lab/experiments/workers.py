"""The regimes of "non-iid" under the names that its records have."""

from groupnorm.lab.regimes.federated import Federated as FederatedAveraging
from groupnorm.lab.regimes.federated import Workers
from groupnorm.lab.regimes.few_classes import FewClasses

__all__ = ["FederatedAveraging", "FewClasses", "Workers"]
