//! What the plugin can do, as lists of names.

use std::ffi::{c_char, CString};
use std::ptr::null;
use std::sync::OnceLock;

use crate::names;

/// Names that live as long as the library, as the table wants them.
pub(crate) struct List {
    texts: Vec<CString>,
    pointers: Vec<*const c_char>,
}

// SAFETY: nothing writes to a list, and its pointers are to its own texts.
unsafe impl Send for List {}
// SAFETY: as above.
unsafe impl Sync for List {}

impl List {
    /// Of what a variable says, or of all there is.
    fn new(variable: &str, all: &str) -> Self {
        let names = std::env::var(variable).unwrap_or_else(|_| all.into());
        let names = names.split(',').filter(|name| !name.is_empty());
        let texts: Vec<_> = names.filter_map(|name| CString::new(name).ok()).collect();
        let mut pointers: Vec<_> = texts.iter().map(|text| text.as_ptr()).collect();
        pointers.push(null());
        List { texts, pointers }
    }

    pub(crate) fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.texts
            .iter()
            .any(|text| text.as_bytes() == name.as_bytes())
    }
}

pub(crate) fn architectures() -> &'static List {
    static LIST: OnceLock<List> = OnceLock::new();
    LIST.get_or_init(|| List::new("CPUPLUG_ARCHITECTURES", names::ARCHITECTURE))
}

pub(crate) fn quants() -> &'static List {
    static LIST: OnceLock<List> = OnceLock::new();
    LIST.get_or_init(|| List::new("CPUPLUG_QUANTS", "f32,f16,int8"))
}
