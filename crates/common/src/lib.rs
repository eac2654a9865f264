//! The nouns of Swift and the bytes they become: pure, synchronous, no tokio.
