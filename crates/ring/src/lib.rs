//! Rings: who stores a partition.
