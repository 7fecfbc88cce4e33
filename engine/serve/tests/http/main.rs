//! The HTTP layer over real sockets, in front of a backend that answers as it is told.

#![allow(clippy::unwrap_used)]

mod access;
mod chat;
mod completions;
mod ends;
mod fields;
mod hostile;
mod others;
mod streams;
mod support;
#[path = "../../../../tests/common/tiny.rs"]
mod tiny;
