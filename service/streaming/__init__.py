"""Everything that touches Kafka; aiokafka is imported here and nowhere else."""
