//! Zips.
