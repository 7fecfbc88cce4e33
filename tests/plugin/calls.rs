//! The table as a host calls it: its structs with what they point to, and what a refusal is.

use std::ffi::{c_char, c_void, CStr};
use std::ptr::{null, null_mut};

use rwkv_edge_plugin as abi;

use crate::setup::{device, plugin};

pub const V: u32 = 11;
pub const D: u32 = 8;
pub const A: u32 = 8;
pub const H: u32 = 16;

/// The plugin's table. Its library stays loaded.
pub fn table() -> &'static abi::Table {
    device();
    // SAFETY: the engine has loaded this plugin before, and checked its table.
    unsafe {
        let library = libloading::Library::new(plugin().path).expect("loads");
        let entry = library
            .get::<abi::Entry>(abi::SYMBOL.as_bytes())
            .expect("a plugin");
        let table = entry(abi::VERSION);
        for version in [0, abi::VERSION - 1, abi::VERSION + 1] {
            assert!(entry(version).is_null(), "not of version {version}");
        }
        std::mem::forget(library);
        table.as_ref().expect("a table")
    }
}

pub fn last_error(table: &abi::Table) -> String {
    let mut text = [1 as c_char; 512];
    // SAFETY: the buffer has that many characters.
    let length = unsafe { (table.last_error)(text.as_mut_ptr(), text.len()) };
    assert!(length > 0, "an error has a text");
    // SAFETY: NUL-terminated by the header's promise.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    text.to_str().expect("UTF-8").to_owned()
}

/// Refused as what no correct host asks for.
#[track_caller]
pub fn refused(table: &abi::Table, status: abi::Status, what: &str) {
    refused_as(table, status, abi::ERROR_ARGUMENT, what);
}

/// Gives the text.
#[track_caller]
pub fn refused_as(
    table: &abi::Table,
    status: abi::Status,
    expected: abi::Status,
    what: &str,
) -> String {
    assert_eq!(
        status, expected,
        "{what}: see the statuses in docs/PLUGINS.md"
    );
    let text = last_error(table);
    println!("{what}: {text}");
    text
}

/// The names of a list.
pub fn names(list: *const *const c_char) -> Vec<String> {
    assert!(!list.is_null());
    // SAFETY: texts, behind which is a NULL, by the header's promise.
    let texts = (0..).map_while(|i| unsafe {
        let pointer = *list.add(i);
        (!pointer.is_null()).then(|| CStr::from_ptr(pointer))
    });
    let texts = texts.map(|text| text.to_str().expect("UTF-8").to_owned());
    texts.collect()
}

/// Options of a stage.
#[derive(Clone)]
pub struct Options {
    pub architecture: &'static CStr,
    pub quant: &'static CStr,
    pub sizes: Vec<(&'static CStr, u64)>,
    pub numbers: Vec<(&'static CStr, f64)>,
    /// All that has no name.
    pub rest: abi::StageOptions,
}

impl Options {
    pub fn size(&self, name: &CStr) -> u64 {
        let found = self.sizes.iter().find(|(known, _)| *known == name);
        found.map(|&(_, value)| value).expect("a size")
    }

    /// Changes a size, with n_embd the width of rows.
    pub fn set(&mut self, name: &CStr, to: u64) {
        let found = self.sizes.iter_mut().find(|(known, _)| *known == name);
        found.expect("a size").1 = to;
        if name == c"n_embd" {
            self.rest.row_width = to as u32;
        }
    }

    /// Calls `call` with the table's struct, as `change` leaves it.
    pub fn changed<T>(
        &self,
        change: impl FnOnce(&mut abi::StageOptions),
        call: impl FnOnce(*const abi::StageOptions) -> T,
    ) -> T {
        let size = |&(name, value): &(&CStr, u64)| abi::Size {
            name: name.as_ptr(),
            value,
        };
        let number = |&(name, value): &(&CStr, f64)| abi::Number {
            name: name.as_ptr(),
            value,
        };
        let sizes: Vec<_> = self.sizes.iter().map(size).collect();
        let numbers: Vec<_> = self.numbers.iter().map(number).collect();
        let mut options = abi::StageOptions {
            architecture: self.architecture.as_ptr(),
            quant: self.quant.as_ptr(),
            sizes: sizes.as_ptr(),
            numbers: numbers.as_ptr(),
            n_sizes: sizes.len() as u32,
            n_numbers: numbers.len() as u32,
            ..self.rest
        };
        change(&mut options);
        call(&options)
    }

    pub fn new_stage(&self, table: &abi::Table) -> *mut abi::Stage {
        let mut stage = null_mut();
        let status = self.changed(
            |_| {},
            // SAFETY: valid options and a pointer to a pointer.
            |options| unsafe { (table.stage_new)(options, &mut stage) },
        );
        assert_eq!(status, abi::OK, "{}", last_error(table));
        stage
    }
}

/// Of a stage that is the whole of a small model.
pub fn options() -> Options {
    let index = device()
        .split(':')
        .nth(1)
        .map_or(0, |i| i.parse().expect("a number"));
    Options {
        architecture: c"rwkv-4",
        quant: c"f16",
        sizes: vec![
            (c"n_vocab", V.into()),
            (c"n_embd", D.into()),
            (c"n_layer", 1),
            (c"n_attention", A.into()),
            (c"n_hidden", H.into()),
        ],
        numbers: vec![(c"norm_epsilon", 1e-5), (c"norm_out_epsilon", 1e-5)],
        rest: abi::StageOptions {
            struct_size: size_of::<abi::StageOptions>() as u32,
            device: index,
            architecture: null(),
            quant: null(),
            sizes: null(),
            numbers: null(),
            n_sizes: 0,
            n_numbers: 0,
            first_layer: 0,
            layer_count: 1,
            has_embedding: 1,
            has_head: 1,
            rows_max: 4,
            row_width: D,
        },
    }
}

/// The three functions that take options refuse them alike, and write nothing. Gives their texts.
#[track_caller]
pub fn options_refused(
    table: &abi::Table,
    options: &Options,
    change: fn(&mut abi::StageOptions),
    expected: abi::Status,
    what: &str,
) -> [String; 3] {
    let mut memory = abi::Memory {
        struct_size: size_of::<abi::Memory>() as u32,
        ..abi::Memory::default()
    };
    let (mut count, mut stage) = (77, null_mut());
    // SAFETY: a struct that says less than its size is not read any further; texts and arrays are as long as it says, or
    // NULL.
    let texts = options.changed(change, |options| unsafe {
        let as_expected = |status, function| {
            let what = format!("{what}, {function}");
            refused_as(table, status, expected, &what)
        };
        [
            as_expected((table.stage_estimate)(options, &mut memory), "estimate"),
            as_expected((table.state_count)(options, &mut count), "count"),
            as_expected((table.stage_new)(options, &mut stage), "new"),
        ]
    });
    let untouched = memory.weight_bytes == 0 && memory.workspace_bytes == 0;
    assert!(
        untouched && count == 77 && stage.is_null(),
        "{what}: an output is written only on success"
    );
    texts
}

/// All tensors of a model of one layer.
pub const TENSORS: [&CStr; 24] = [
    c"emb.weight",
    c"ln0.weight",
    c"ln0.bias",
    c"ln1.weight",
    c"ln1.bias",
    c"att.time_mix_k",
    c"att.time_mix_v",
    c"att.time_mix_r",
    c"att.decay_log",
    c"att.time_first",
    c"att.key.weight",
    c"att.value.weight",
    c"att.receptance.weight",
    c"att.output.weight",
    c"ln2.weight",
    c"ln2.bias",
    c"ffn.time_mix_k",
    c"ffn.time_mix_r",
    c"ffn.key.weight",
    c"ffn.receptance.weight",
    c"ffn.value.weight",
    c"ln_out.weight",
    c"ln_out.bias",
    c"head.weight",
];

/// The layer that it is sent with.
fn layer_of(name: &CStr) -> u32 {
    match name.to_bytes() {
        b"emb.weight" | b"head.weight" | b"ln_out.weight" | b"ln_out.bias" => abi::NO_LAYER,
        _ => 0,
    }
}

/// Shape of a tensor: (rows, columns, is a matrix).
pub fn shape_of(options: &Options, name: &CStr) -> (u64, u64, bool) {
    let [v, d, a, h] =
        [c"n_vocab", c"n_embd", c"n_attention", c"n_hidden"].map(|name| options.size(name));
    match name.to_bytes() {
        b"emb.weight" | b"head.weight" => (v, d, true),
        b"att.key.weight" | b"att.value.weight" | b"att.receptance.weight" => (a, d, true),
        b"att.output.weight" => (d, a, true),
        b"ffn.key.weight" | b"ffn.value.weight" => (h, d, true),
        b"ffn.receptance.weight" => (d, d, true),
        b"att.decay_log" | b"att.time_first" => (1, a, false),
        _ => (1, d, false),
    }
}

/// One of a tensor's parts: its name, where it is, and its bytes.
pub type Part = (&'static CStr, *const u8, u64);

/// A tensor, or some of its rows. Its pointers are to numbers that somebody else keeps.
#[derive(Clone)]
pub struct Tensor {
    pub name: &'static CStr,
    pub quant: &'static CStr,
    pub parts: Vec<Part>,
    /// All that has no name.
    pub rest: abi::Tensor,
}

impl Tensor {
    /// All rows.
    pub fn new(options: &Options, name: &'static CStr, parts: Vec<Part>) -> Self {
        let (n_rows, n_cols, is_matrix) = shape_of(options, name);
        Tensor {
            name,
            quant: if is_matrix { options.quant } else { c"f32" },
            parts,
            rest: abi::Tensor {
                struct_size: size_of::<abi::Tensor>() as u32,
                layer: layer_of(name),
                name: null(),
                quant: null(),
                n_rows,
                n_cols,
                first_row: 0,
                row_count: n_rows,
                parts: null(),
                n_parts: 0,
                reserved: 0,
            },
        }
    }

    /// Some rows of a tensor that is whole.
    pub fn rows(&self, first_row: u64, row_count: u64) -> Self {
        let part = |&(name, data, bytes): &Part| match name.to_bytes() {
            b"column_exponents" => (name, data, bytes),
            _ => {
                let row_bytes = bytes / self.rest.n_rows;
                let data = data.wrapping_add((first_row * row_bytes) as usize);
                (name, data, row_count * row_bytes)
            }
        };
        Tensor {
            parts: self.parts.iter().map(part).collect(),
            rest: abi::Tensor {
                first_row,
                row_count,
                ..self.rest
            },
            ..self.clone()
        }
    }

    /// Sends it as `change` leaves it.
    pub fn changed(
        &self,
        table: &abi::Table,
        stage: *mut abi::Stage,
        change: impl FnOnce(&mut abi::Tensor),
    ) -> abi::Status {
        let part = |&(name, data, bytes): &Part| abi::Part {
            name: name.as_ptr(),
            data: data.cast::<c_void>(),
            bytes,
        };
        let parts: Vec<_> = self.parts.iter().map(part).collect();
        let mut tensor = abi::Tensor {
            name: self.name.as_ptr(),
            quant: self.quant.as_ptr(),
            parts: parts.as_ptr(),
            n_parts: parts.len() as u32,
            ..self.rest
        };
        change(&mut tensor);
        // SAFETY: texts and arrays as long as the struct says, or NULL.
        unsafe { (table.stage_tensor)(stage, &tensor) }
    }

    pub fn send(&self, table: &abi::Table, stage: *mut abi::Stage) -> abi::Status {
        self.changed(table, stage, |_| {})
    }
}

/// Numbers for any tensor of the small model: positive ones for vectors, and for matrices f16 of either sign, 1 to 2 in
/// size, so that no two tokens have the same logits.
pub struct Room {
    vector: Vec<f32>,
    matrix: Vec<u16>,
}

impl Room {
    const LEN: usize = 4096;

    pub fn new() -> Self {
        let scrambled = |i: u32| (i.wrapping_mul(0x9e37_79b9) >> 16) as u16;
        let matrix = (0..Self::LEN as u32).map(|i| 0x3c00 | scrambled(i) & 0x83ff);
        Room {
            vector: vec![0.5; Self::LEN],
            matrix: matrix.collect(),
        }
    }

    /// A tensor in f16 or f32.
    pub fn tensor(&self, name: &'static CStr) -> Tensor {
        let (n_rows, n_cols, is_matrix) = shape_of(&options(), name);
        let (data, bytes) = match is_matrix {
            true => (self.matrix.as_ptr().cast(), 2),
            false => (self.vector.as_ptr().cast(), 4),
        };
        let values = (c"values", data, n_rows * n_cols * bytes);
        Tensor::new(&options(), name, vec![values])
    }
}

/// A stage that is the whole of the small model, with all its tensors.
pub fn finished_stage(table: &abi::Table) -> *mut abi::Stage {
    let room = Room::new();
    let stage = options().new_stage(table);
    for name in TENSORS {
        assert_eq!(room.tensor(name).send(table, stage), abi::OK);
    }
    // SAFETY: the stage was just made.
    assert_eq!(unsafe { (table.stage_finish)(stage) }, abi::OK);
    stage
}

pub fn batch() -> abi::Batch {
    abi::Batch {
        struct_size: size_of::<abi::Batch>() as u32,
        n_spans: 0,
        spans: null(),
        n_rows: 0,
        write: abi::WRITE_NOTHING,
        tokens: null(),
        rows_in: null(),
        numbers: null_mut(),
        tokens_out: null_mut(),
    }
}
