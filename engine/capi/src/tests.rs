//! The header and this library say the same: every name, constant, field and signature.
//!
//! The header is read by a parser of the little C that it uses. On the other side stand the functions
//! themselves: `functions!` gives each its Rust type, which the compiler checks, and turns the same
//! type into text, which is compared with the prototype. Values and sizes of structs are checked by the
//! C compiler too, in tests/c/header.c.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::mem::{align_of, offset_of, size_of};

use crate::fence::{self, Status};
use crate::model::{self, Model};
use crate::session::{self, Session};
use crate::types::{self, ModelInfo, OnText, Options, Sampling};

const HEADER: &str = include_str!("../include/rwkv_edge.h");

/// The header without comments and lines of the preprocessor.
fn code() -> String {
    let mut code = String::new();
    let mut rest = HEADER;
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        rest = comment.split_once("*/").expect("comments end").1;
    }
    code.push_str(rest);
    let lines = code.lines().filter(|line| !line.starts_with('#'));
    let code = lines.collect::<Vec<_>>().join("\n");
    let code = code.replace("extern \"C\" {", "");
    // One space between words, none around what is not a word.
    let words: Vec<&str> = code.split_whitespace().collect();
    words.join(" ").replace(" *", "*").replace("* ", "*")
}

/// `#define NAME value`
fn constants() -> BTreeMap<String, u32> {
    let mut constants = BTreeMap::new();
    for line in HEADER.lines().filter(|line| line.starts_with("#define")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(value) = words.get(2) {
            let value = value.trim_end_matches('u').parse().expect("a number");
            constants.insert(words[1].to_owned(), value);
        }
    }
    constants
}

/// Statements that end with a semicolon, structs as one.
fn statements() -> Vec<String> {
    let (mut statements, mut statement, mut depth) = (Vec::new(), String::new(), 0);
    for c in code().chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ';' && depth == 0 {
            statements.push(statement.trim().to_owned());
            statement.clear();
        } else {
            statement.push(c);
        }
    }
    statements
}

/// (type, name) of `const char*name`.
fn declaration(text: &str) -> (String, String) {
    let at = text.rfind(['*', ' ']).expect("type and name");
    let (kind, name) = text.split_at(at + 1);
    (kind.trim().to_owned(), name.trim().to_owned())
}

/// Name of each function with its signature: parameter types, then the result.
fn prototypes() -> BTreeMap<String, String> {
    let functions = statements()
        .into_iter()
        .filter(|statement| !statement.starts_with("typedef"));
    let mut prototypes = BTreeMap::new();
    for statement in functions {
        let (start, parameters) = statement.split_once('(').expect("a function");
        let (result, name) = declaration(start);
        prototypes.insert(name, signature(parameters, &result));
    }
    prototypes
}

fn signature(parameters: &str, result: &str) -> String {
    let parameters = parameters.strip_suffix(')').expect("a list of parameters");
    let types: Vec<String> = match parameters {
        "void" => Vec::new(),
        _ => parameters
            .split(',')
            .map(|p| declaration(p.trim()).0)
            .collect(),
    };
    format!("({}) -> {result}", types.join(", "))
}

/// Fields of each struct: (type, name) in order.
fn structs() -> BTreeMap<String, Vec<(String, String)>> {
    let mut structs = BTreeMap::new();
    for statement in statements() {
        let Some((fields, name)) = statement
            .strip_prefix("typedef struct {")
            .and_then(|rest| rest.split_once('}'))
        else {
            continue;
        };
        let mut list = Vec::new();
        for field in fields.split(';').map(str::trim).filter(|f| !f.is_empty()) {
            let (first, more) = field.split_once(',').unwrap_or((field, ""));
            let (kind, first) = declaration(first);
            let more = more.split(',').map(str::trim).filter(|n| !n.is_empty());
            for name in std::iter::once(first.as_str()).chain(more) {
                list.push((kind.clone(), name.to_owned()));
            }
        }
        structs.insert(name.trim().to_owned(), list);
    }
    structs
}

/// The C spelling of a Rust type.
fn c_type(rust: &str) -> String {
    let rust = rust.trim();
    let pointer = |to: &str, constant: bool| {
        let to = c_type(to);
        let constant = if constant { "const " } else { "" };
        format!("{constant}{to}*")
    };
    if let Some(to) = rust.strip_prefix("*const ") {
        return pointer(to, true);
    }
    if let Some(to) = rust.strip_prefix("*mut ") {
        return pointer(to, false);
    }
    let names = [
        ("c_char", "char"),
        ("c_void", "void"),
        ("u32", "uint32_t"),
        ("u64", "uint64_t"),
        ("usize", "size_t"),
        ("f32", "float"),
        ("bool", "bool"),
        ("Status", "rwkv_edge_status"),
        ("Model", "rwkv_edge_model"),
        ("Session", "rwkv_edge_session"),
        ("Options", "rwkv_edge_options"),
        ("ModelInfo", "rwkv_edge_model_info"),
        ("Sampling", "rwkv_edge_sampling"),
        ("Option<OnText>", "rwkv_edge_on_text"),
    ];
    let name = names.iter().find(|(name, _)| *name == rust);
    name.unwrap_or_else(|| panic!("{rust} has no C name here"))
        .1
        .to_owned()
}

/// `(A, B) -> C` in C's words.
fn c_signature(parameters: &[&str], result: &str) -> String {
    let types: Vec<String> = parameters.iter().map(|p| c_type(p)).collect();
    let result = match result {
        "" => "void".to_owned(),
        result => c_type(result),
    };
    format!("({}) -> {result}", types.join(", "))
}

/// One line a function: the compiler checks that it has this type, and its text is kept for the test.
macro_rules! functions {
    ($($module:ident :: $name:ident ( $($parameter:ty),* ) $(-> $result:ty)? $(, $safe:ident)?;)*) => {{
        let mut functions = BTreeMap::new();
        $(
            let _: unsafe extern "C" fn($($parameter),*) $(-> $result)? = $module::$name;
            let parameters: &[&str] = &[$(stringify!($parameter)),*];
            let result = concat!($(stringify!($result))?);
            functions.insert(stringify!($name).to_owned(), c_signature(parameters, result));
        )*
        functions
    }};
}

#[test]
fn functions_are_those_of_the_header() {
    use crate as library;
    let functions = functions! {
        library::rwkv_edge_abi_version() -> u32;
        library::rwkv_edge_version() -> *const c_char;
        library::rwkv_edge_last_error() -> *const c_char;
        library::rwkv_edge_install_sigbus_handler() -> Status;
        model::rwkv_edge_model_open(*const c_char, *const Options, *mut *mut Model) -> Status;
        model::rwkv_edge_model_open_memory(
            *const c_void, usize, *const Options, *mut *mut Model
        ) -> Status;
        model::rwkv_edge_model_get_info(*const Model, *mut ModelInfo) -> Status;
        model::rwkv_edge_model_free(*mut Model);
        model::rwkv_edge_tokenize(
            *const Model, *const c_char, usize, *mut u32, usize, *mut usize
        ) -> Status;
        model::rwkv_edge_detokenize(
            *const Model, *const u32, usize, *mut c_char, usize, *mut usize
        ) -> Status;
        session::rwkv_edge_session_new(*const Model, *mut *mut Session) -> Status;
        session::rwkv_edge_session_reset(*mut Session) -> Status;
        session::rwkv_edge_session_free(*mut Session);
        session::rwkv_edge_eval(*mut Session, *const u32, usize, *mut f32) -> Status;
        session::rwkv_edge_set_sampling(*mut Session, *const Sampling) -> Status;
        session::rwkv_edge_sample(*mut Session, *mut u32) -> Status;
        session::rwkv_edge_generate(
            *mut Session, *const c_char, usize, u32, Option<OnText>, *mut c_void
        ) -> Status;
        session::rwkv_edge_state_save(*const Session, *mut c_void, usize, *mut usize) -> Status;
        session::rwkv_edge_state_load(*mut Session, *const c_void, usize) -> Status;
    };
    assert_eq!(functions, prototypes());
}

#[test]
fn constants_are_those_of_the_header() {
    let ours = [
        ("RWKV_EDGE_ABI_VERSION", crate::ABI_VERSION),
        ("RWKV_EDGE_OK", fence::OK as u32),
        ("RWKV_EDGE_ERROR_ARGUMENT", fence::ARGUMENT as u32),
        ("RWKV_EDGE_ERROR_IO", fence::IO as u32),
        ("RWKV_EDGE_ERROR_FORMAT", fence::FORMAT as u32),
        ("RWKV_EDGE_ERROR_UNSUPPORTED", fence::UNSUPPORTED as u32),
        ("RWKV_EDGE_ERROR_MEMORY", fence::MEMORY as u32),
        ("RWKV_EDGE_ERROR_STATE", fence::STATE as u32),
        ("RWKV_EDGE_ERROR_TOKENIZER", fence::TOKENIZER as u32),
        ("RWKV_EDGE_ERROR_BACKEND", fence::BACKEND as u32),
        ("RWKV_EDGE_ERROR_PANIC", fence::PANIC as u32),
        ("RWKV_EDGE_QUANT_KEEP", types::QUANT_KEEP),
        ("RWKV_EDGE_QUANT_F32", types::QUANT_F32),
        ("RWKV_EDGE_QUANT_F16", types::QUANT_F16),
        ("RWKV_EDGE_QUANT_INT8", types::QUANT_INT8),
        ("RWKV_EDGE_QUANT_Q4", types::QUANT_Q4),
        ("RWKV_EDGE_QUANT_Q5", types::QUANT_Q5),
        ("RWKV_EDGE_QUANT_Q6", types::QUANT_Q6),
        ("RWKV_EDGE_FLAG_NO_MMAP", types::FLAG_NO_MMAP),
    ];
    let ours: BTreeMap<String, u32> = ours.map(|(name, value)| (name.to_owned(), value)).into();
    assert_eq!(ours, constants());
}

#[test]
fn every_quantisation_has_a_code_of_its_own() {
    for &quant in engine::Quant::ALL {
        let code = types::code_of_quant(quant);
        let back = types::quant_of_code(code).unwrap_or_else(|_| panic!("{quant} as {code}"));
        assert_eq!(back, Some(quant), "code {code}");
    }
}

/// Offset of every field as C lays them out, and the size of the whole.
fn c_layout(fields: &[(String, String)]) -> (Vec<(String, usize)>, usize) {
    let (mut offsets, mut end, mut align_max) = (Vec::new(), 0usize, 1);
    for (kind, name) in fields {
        let (size, align) = match kind.as_str() {
            "uint32_t" => (4, align_of::<u32>()),
            "float" => (4, align_of::<f32>()),
            "uint64_t" => (8, align_of::<u64>()),
            "const uint32_t*" => (size_of::<*const u32>(), align_of::<*const u32>()),
            "const char*" => (size_of::<*const c_char>(), align_of::<*const c_char>()),
            _ => panic!("{kind} {name}: a type that this test does not know"),
        };
        let offset = end.next_multiple_of(align);
        offsets.push((name.clone(), offset));
        end = offset + size;
        align_max = align_max.max(align);
    }
    (offsets, end.next_multiple_of(align_max))
}

macro_rules! layout {
    ($name:ty: $($field:ident),*) => {(
        vec![$((stringify!($field).to_owned(), offset_of!($name, $field))),*],
        size_of::<$name>(),
    )};
}

#[test]
fn structs_are_those_of_the_header() {
    let ours = [
        (
            "rwkv_edge_options",
            layout!(Options: struct_size, quant, threads, flags, max_memory, tokenizer, device_map),
        ),
        (
            "rwkv_edge_model_info",
            layout!(ModelInfo: struct_size, version, n_vocab, n_embd, n_layer, quant, n_params,
                weight_bytes, state_bytes),
        ),
        (
            "rwkv_edge_sampling",
            layout!(Sampling: struct_size, temperature, top_p, top_k, presence_penalty,
                frequency_penalty, seed, min_p, typical_p, mirostat_tau, mirostat_eta, penalty_decay,
                repetition_penalty, temperature_last, reserved, n_banned_tokens, n_uncounted_tokens,
                banned_tokens, uncounted_tokens),
        ),
    ];
    let ours: BTreeMap<String, _> = ours.map(|(name, layout)| (name.to_owned(), layout)).into();
    let header: BTreeMap<String, _> = structs()
        .into_iter()
        .map(|(name, fields)| (name, c_layout(&fields)))
        .collect();
    assert_eq!(ours, header);
    // Types of fields, which a layout does not tell apart: floats are those of the sampling.
    let floats = |fields: &[(String, String)]| fields.iter().filter(|f| f.0 == "float").count();
    let counts: Vec<usize> = structs().values().map(|fields| floats(fields)).collect();
    assert_eq!(counts, [0, 0, 10]);
}

/// Sizes of structs in versions of the library that are out there. None is ever taken away.
#[test]
fn structs_of_all_versions_are_taken() {
    use crate::arguments::Versioned;
    let pointer = size_of::<*const u32>();
    let sizes = [32, 72 + 2 * pointer];
    assert_eq!(<Sampling as Versioned>::SIZES, sizes);
    assert_eq!(<Options as Versioned>::SIZES, [24 + 2 * pointer]);
    assert_eq!(<ModelInfo as Versioned>::SIZES, [48]);
    assert_eq!(sizes[1], size_of::<Sampling>());
}

/// A caller's struct of the first version, and one of this with nothing but zeros behind it, mean the same.
#[test]
fn fields_that_are_0_are_off() {
    #[repr(C, align(8))]
    struct First(u32, [f32; 2], u32, [f32; 2], u64);
    assert_eq!(size_of::<First>(), 32);
    let first = First(32, [0.7, 0.9], 40, [0.1, 0.2], 7);
    // SAFETY: as large as it says.
    let read = unsafe { crate::arguments::versioned(std::ptr::from_ref(&first).cast(), "x") };
    let sampling: Sampling = read.unwrap_or_else(|_| panic!("refused"));
    let old = engine::SamplerOptions::new()
        .temperature(0.7)
        .top_p(0.9)
        .top_k(40)
        .presence_penalty(0.1)
        .frequency_penalty(0.2)
        .seed(7);
    let options = |sampling: Sampling| sampling.options().unwrap_or_else(|_| panic!("refused"));
    assert_eq!(options(sampling), old);
    assert!(sampling.banned_tokens.is_null() && sampling.uncounted_tokens.is_null());
    assert_eq!(
        (sampling.n_banned_tokens, sampling.n_uncounted_tokens),
        (0, 0)
    );
    // Each new field arrives as its own option, and no other.
    type Change = (fn(&mut Sampling), fn(&mut engine::SamplerOptions));
    let changes: [Change; 7] = [
        (|c| c.min_p = 0.1, |o| o.min_p = 0.1),
        (|c| c.typical_p = 0.2, |o| o.typical_p = 0.2),
        (|c| c.mirostat_tau = 3.0, |o| o.mirostat_tau = Some(3.0)),
        (|c| c.mirostat_eta = 0.4, |o| o.mirostat_eta = 0.4),
        (|c| c.penalty_decay = 0.5, |o| o.penalty_decay = 0.5),
        (
            |c| c.repetition_penalty = 1.6,
            |o| o.repetition_penalty = 1.6,
        ),
        (|c| c.temperature_last = 1, |o| o.temperature_last = true),
    ];
    for (change, expected) in changes {
        let (mut given, mut wanted) = (sampling, old.clone());
        change(&mut given);
        expected(&mut wanted);
        assert_eq!(options(given), wanted);
    }
    for change in [
        |c: &mut Sampling| c.temperature_last = 2,
        |c: &mut Sampling| c.reserved = 1,
    ] {
        let mut given = sampling;
        change(&mut given);
        assert!(given.options().is_err());
    }
}

#[test]
fn the_callback_and_the_handles_are_those_of_the_header() {
    let statements = statements();
    let callback = "typedef bool(*rwkv_edge_on_text)(const char*text, size_t size, void*user)";
    let squeezed = |text: &str| text.replace(' ', "");
    let has = |wanted: &str| statements.iter().any(|s| squeezed(s) == squeezed(wanted));
    assert!(has(callback), "{statements:?}");
    let _: OnText = {
        unsafe extern "C-unwind" fn on_text(_: *const c_char, _: usize, _: *mut c_void) -> bool {
            true
        }
        on_text
    };
    assert!(has("typedef int32_t rwkv_edge_status"));
    let _: Status = 0_i32;
    for handle in ["rwkv_edge_model", "rwkv_edge_session"] {
        assert!(has(&format!("typedef struct {handle} {handle}")));
    }
    // Nothing of the header was left out by the tests of this file.
    let known = 4 + structs().len() + prototypes().len();
    assert_eq!(statements.len(), known, "{statements:?}");
}

#[test]
fn the_versions_are_those_of_the_package_and_header() {
    let version = std::ffi::CStr::from_bytes_with_nul(crate::VERSION.as_bytes());
    assert_eq!(
        version.expect("a C string").to_str(),
        Ok(env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(
        crate::rwkv_edge_abi_version(),
        constants()["RWKV_EDGE_ABI_VERSION"]
    );
}
