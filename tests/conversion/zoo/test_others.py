"""Networks of the other libraries: what a conversion promises, on the real thing."""

import pytest

from conversion.zoo.check import check
from conversion.zoo.networks import NETWORKS
from conversion.zoo.records import differences


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize(
    "network",
    [network for network in NETWORKS if network.library != "torchvision"],
    ids=lambda network: network.key,
)
def test_a_network_of_the_zoo(network):
    row = check(network)
    assert differences(network.library, network.name, row) == []
