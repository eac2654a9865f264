//! The proxy: controllers and the filters of its pipeline.
