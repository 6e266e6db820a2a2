"""Compiles every kernel that a role loads, into numba's cache. Run where an image is built."""

from __future__ import annotations

from featurizer.cluster import practise as practise_stages
from featurizer.cluster import schema_number
from featurizer.features import INDEX
from featurizer.kafka_settings import kafka_settings
from fraudsvc.policy import DEFAULT_POLICY, load_policy
from fraudsvc.practice import practise
from fraudsvc.shared_tail import compile_kernels


def main() -> None:
    """Do what each role does before it is ready."""
    practise(load_policy(DEFAULT_POLICY.read_bytes(), INDEX))
    practise_stages(kafka_settings("kafka://127.0.0.1:9092?entity_partitions=8"), schema_number())
    compile_kernels()


if __name__ == "__main__":
    main()
