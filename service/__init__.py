"""Softmax Service: msgpack logits from Kafka to probabilities, micro-batched."""

__version__ = "0.1.0"
