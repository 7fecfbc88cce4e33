//! Stand-in until the readers are merged.
use std::ops::Deref;
use std::sync::Arc;

#[derive(Clone)]
pub(crate) struct FileBytes(Arc<Vec<u8>>);

impl Deref for FileBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
