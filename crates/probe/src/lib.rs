//! Whole clusters under test.
