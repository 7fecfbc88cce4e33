//! A plugin of the first version of the table, of which nothing but the symbol is left.

/// A host of a later version looks for it, and must not call what it does not know.
#[no_mangle]
pub extern "C" fn rwkv_edge_plugin_v1(_host_version: u32) -> *const u8 {
    std::process::abort()
}
