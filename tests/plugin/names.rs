//! What the host calls by names: every name that a plugin does not know is refused as that, in a text that has it.

use std::ffi::CStr;
use std::ptr::{null, null_mut};

use half::f16;
use rwkv_edge_plugin as abi;

use crate::calls::{
    names, options, options_refused, refused, refused_as, shape_of, table, Options, Room, Tensor,
    A, D, H, TENSORS,
};
use crate::setup::device_info;

const ARGUMENT: abi::Status = abi::ERROR_ARGUMENT;
const UNSUPPORTED: abi::Status = abi::ERROR_UNSUPPORTED;

#[test]
fn what_there_is_has_names() {
    let table = table();
    let architectures = names(table.architectures);
    assert!(
        architectures.contains(&"rwkv-4".into()),
        "{architectures:?}"
    );
    let mut device = abi::Device {
        struct_size: size_of::<abi::Device>() as u32,
        reserved: 0,
        total_bytes: 0,
        free_bytes: 0,
        quants: null(),
        name: [0; 96],
        detail: [0; 96],
    };
    // SAFETY: a struct of the size that it says.
    let status = unsafe { (table.device_info)(options().rest.device, &mut device) };
    assert_eq!(status, abi::OK);
    let quants = names(device.quants);
    for quant in device_info().quants {
        assert!(quants.contains(&quant.name().into()), "{quants:?}");
    }
    for expected in ["f16", "int8"] {
        assert!(quants.contains(&expected.into()), "{quants:?}");
    }
}

/// The text of every refusal has the name.
#[track_caller]
fn name_refused(
    table: &abi::Table,
    options: &Options,
    change: fn(&mut abi::StageOptions),
    (status, name): (abi::Status, &str),
) {
    for text in options_refused(table, options, change, status, name) {
        assert!(text.contains(name), "{name}: {text}");
    }
}

#[test]
fn names_of_options() {
    let table = table();
    type Change = fn(&mut Options);
    let changes: [(Change, abi::Status, &str); 13] = [
        (|o| o.architecture = c"rwkv-0", UNSUPPORTED, "rwkv-0"),
        (|o| o.architecture = c"", UNSUPPORTED, ""),
        (|o| o.architecture = c"rwkv", UNSUPPORTED, "rwkv"),
        (|o| o.quant = c"int9", UNSUPPORTED, "int9"),
        (|o| o.quant = c"f16x", UNSUPPORTED, "f16x"),
        (|o| o.sizes.push((c"n_moon", 3)), UNSUPPORTED, "n_moon"),
        (|o| o.sizes.push((c"n_embd2", 3)), UNSUPPORTED, "n_embd2"),
        (|o| o.numbers.push((c"moon", 3.0)), UNSUPPORTED, "moon"),
        (|o| o.sizes.push(o.sizes[1]), ARGUMENT, "n_embd"),
        (|o| o.numbers.push(o.numbers[0]), ARGUMENT, "norm_epsilon"),
        (|o| o.sizes.clear(), ARGUMENT, ""),
        (|o| o.numbers[1].1 = f64::NAN, ARGUMENT, ""),
        (|o| o.numbers[0].1 = f64::INFINITY, ARGUMENT, ""),
    ];
    for (change, status, name) in changes {
        let mut options = options();
        change(&mut options);
        name_refused(table, &options, |_| {}, (status, name));
    }
    let all = options();
    for (at, (name, _)) in all.sizes.iter().enumerate() {
        let mut options = all.clone();
        options.sizes.remove(at);
        let name = name.to_str().expect("UTF-8");
        name_refused(table, &options, |_| {}, (ARGUMENT, name));
    }
    for (at, (name, _)) in all.numbers.iter().enumerate() {
        let mut options = all.clone();
        options.numbers.remove(at);
        let name = name.to_str().expect("UTF-8");
        name_refused(table, &options, |_| {}, (ARGUMENT, name));
    }
    type RawChange = fn(&mut abi::StageOptions);
    let nulls: [(&str, RawChange); 4] = [
        ("architecture", |o| o.architecture = null()),
        ("quant", |o| o.quant = null()),
        ("sizes", |o| o.sizes = null()),
        ("numbers", |o| o.numbers = null()),
    ];
    for (name, change) in nulls {
        name_refused(table, &all, change, (ARGUMENT, name));
    }
    // A name that is NULL, between others.
    let unnamed = abi::Size {
        name: null(),
        value: 1,
    };
    let sizes = [unnamed; 5];
    let unnamed = options().changed(
        |o| o.sizes = sizes.as_ptr(),
        // SAFETY: as many elements as are said.
        |o| unsafe { (table.state_count)(o, &mut 0) },
    );
    refused(table, unnamed, "a size without a name");
}

#[test]
fn options_come_in_any_order() {
    let table = table();
    let mut turned = options();
    turned.sizes.reverse();
    turned.numbers.reverse();
    let estimate = |options: &Options| {
        let mut memory = abi::Memory {
            struct_size: size_of::<abi::Memory>() as u32,
            ..abi::Memory::default()
        };
        let status = options.changed(
            |_| {},
            // SAFETY: structs of the sizes that they say.
            |o| unsafe { (table.stage_estimate)(o, &mut memory) },
        );
        assert_eq!(status, abi::OK);
        [
            memory.weight_bytes,
            memory.workspace_bytes,
            memory.state_bytes,
        ]
    };
    assert_eq!(estimate(&turned), estimate(&options()));
}

#[test]
fn numbers_of_a_state() {
    let table = table();
    let of_layer = u64::from(2 * D + 3 * A);
    // Layers of the model, the first of the stage, how many it has, embedding and head, and how many count.
    for (n_layer, first, n, has, expected) in [
        (1, 0, 1, (1, 1), 1),
        (5, 0, 5, (1, 1), 5),
        (5, 0, 2, (1, 0), 2),
        (5, 2, 2, (0, 0), 2),
        (5, 4, 1, (0, 1), 1),
        (5, 5, 0, (0, 1), 0),
    ] {
        let mut options = options();
        options.set(c"n_layer", n_layer);
        (options.rest.first_layer, options.rest.layer_count) = (first, n);
        (options.rest.has_embedding, options.rest.has_head) = has;
        let mut count = 77;
        let status = options.changed(
            |_| {},
            // SAFETY: valid options, and a number.
            |o| unsafe { (table.state_count)(o, &mut count) },
        );
        assert_eq!(status, abi::OK);
        assert_eq!(count, expected * of_layer, "{n} of {n_layer} layers");
    }
    let status = options().changed(
        |_| {},
        // SAFETY: NULL is what is tested.
        |o| unsafe { (table.state_count)(o, null_mut()) },
    );
    refused(table, status, "NULL count");
}

/// What is done to a tensor, and how it is refused then.
type Wrong = (&'static str, abi::Status, fn(&mut Tensor));

/// Tries what is wrong with a tensor, and sends it as it is in the end.
#[track_caller]
fn tensor_refused(
    (table, stage): (&abi::Table, *mut abi::Stage),
    whole: &Tensor,
    changes: &[Wrong],
) {
    for &(what, expected, change) in changes {
        let mut tensor = whole.clone();
        change(&mut tensor);
        let status = tensor.send(table, stage);
        let text = refused_as(table, status, expected, what);
        if expected == UNSUPPORTED {
            assert!(text.contains(what), "{what}: {text}");
        }
    }
    assert_eq!(whole.send(table, stage), abi::OK, "none of that did harm");
}

#[test]
fn names_of_tensors() {
    let table = table();
    let room = Room::new();
    let stage = options().new_stage(table);
    let changes: &[Wrong] = &[
        ("att.moon.weight", UNSUPPORTED, |t| {
            t.name = c"att.moon.weight"
        }),
        ("blocks.0.att.key.weight", UNSUPPORTED, |t| {
            t.name = c"blocks.0.att.key.weight"
        }),
        ("att.key.weights", UNSUPPORTED, |t| {
            t.name = c"att.key.weights"
        }),
        ("int9", UNSUPPORTED, |t| t.quant = c"int9"),
        ("another quant, f32", ARGUMENT, |t| t.quant = c"f32"),
        ("another quant, int8", ARGUMENT, |t| t.quant = c"int8"),
        ("a layer that it has not", ARGUMENT, |t| t.rest.layer = 1),
        ("no layer", ARGUMENT, |t| t.rest.layer = abi::NO_LAYER),
    ];
    tensor_refused((table, stage), &room.tensor(c"att.key.weight"), changes);
    let no_layer: &[Wrong] = &[("no layer", ARGUMENT, |t| t.rest.layer = abi::NO_LAYER)];
    tensor_refused((table, stage), &room.tensor(c"ln0.bias"), no_layer);
    let a_layer: &[Wrong] = &[("a layer", ARGUMENT, |t| t.rest.layer = 0)];
    for outside in [c"emb.weight", c"ln_out.bias", c"head.weight"] {
        tensor_refused((table, stage), &room.tensor(outside), a_layer);
    }
    let vector: &[Wrong] = &[("a vector in f16", ARGUMENT, |t| t.quant = c"f16")];
    tensor_refused((table, stage), &room.tensor(c"ln1.bias"), vector);
    let tensor = room.tensor(c"att.value.weight");
    let status = tensor.changed(table, stage, |t| t.name = null());
    refused(table, status, "NULL name");
    let status = tensor.changed(table, stage, |t| t.quant = null());
    refused(table, status, "NULL quant");
    // SAFETY: the stage was made above.
    unsafe { (table.stage_free)(stage) };
}

/// A stage of some of a model's layers has none of the others' tensors.
#[test]
fn tensors_of_other_stages() {
    let table = table();
    let room = Room::new();
    let mut middle = options();
    middle.set(c"n_layer", 3);
    middle.rest.first_layer = 1;
    (middle.rest.has_embedding, middle.rest.has_head) = (0, 0);
    let stage = middle.new_stage(table);
    for name in TENSORS {
        let mut tensor = room.tensor(name);
        refused(table, tensor.send(table, stage), "of another stage");
        if tensor.rest.layer == 0 && !name.to_bytes().starts_with(b"ln0") {
            tensor.rest.layer = 1;
            assert_eq!(tensor.send(table, stage), abi::OK, "{name:?}");
        }
    }
    // SAFETY: the stage was made above, and nothing is missing.
    unsafe {
        assert_eq!((table.stage_finish)(stage), abi::OK);
        (table.stage_free)(stage);
    }
}

#[test]
fn parts_of_tensors() {
    let table = table();
    let room = Room::new();
    let stage = options().new_stage(table);
    let of_values: &[Wrong] = &[
        ("moons", UNSUPPORTED, |t| {
            t.parts.push((c"moons", t.parts[0].1, 8))
        }),
        ("row_scales", UNSUPPORTED, |t| {
            t.parts.push((c"row_scales", t.parts[0].1, 16))
        }),
        ("no parts", ARGUMENT, |t| t.parts.clear()),
        ("values twice", ARGUMENT, |t| t.parts.push(t.parts[0])),
        ("values at NULL", ARGUMENT, |t| t.parts[0].1 = null()),
        ("a byte too few", ARGUMENT, |t| t.parts[0].2 -= 1),
        ("a byte too many", ARGUMENT, |t| t.parts[0].2 += 1),
        ("no bytes", ARGUMENT, |t| t.parts[0].2 = 0),
        ("far too many bytes", ARGUMENT, |t| t.parts[0].2 = u64::MAX),
    ];
    for name in [c"att.key.weight", c"ffn.value.weight", c"att.decay_log"] {
        tensor_refused((table, stage), &room.tensor(name), of_values);
    }
    let tensor = room.tensor(c"att.value.weight");
    let status = tensor.changed(table, stage, |t| t.parts = null());
    refused(table, status, "NULL parts");
    let unnamed = abi::Part {
        name: null(),
        data: null(),
        bytes: 0,
    };
    let status = tensor.changed(table, stage, |t| t.parts = &unnamed);
    refused(table, status, "a part without a name");
    // SAFETY: the stage was made above.
    unsafe { (table.stage_free)(stage) };

    let int8 = Options {
        quant: c"int8",
        ..options()
    };
    let stage = int8.new_stage(table);
    let numbers = Int8::new();
    let changes: &[Wrong] = &[
        ("moons", UNSUPPORTED, |t| t.parts[2].0 = c"moons"),
        ("no row_scales", ARGUMENT, |t| t.parts.truncate(1)),
        ("no values", ARGUMENT, |t| {
            t.parts.swap_remove(0);
        }),
        ("row_scales at NULL", ARGUMENT, |t| t.parts[1].1 = null()),
        ("a scale too few", ARGUMENT, |t| t.parts[1].2 -= 2),
        ("a scale too many", ARGUMENT, |t| t.parts[1].2 += 2),
        ("an exponent too few", ARGUMENT, |t| t.parts[2].2 -= 1),
        ("an exponent too many", ARGUMENT, |t| t.parts[2].2 += 1),
        ("exponents at NULL", ARGUMENT, |t| t.parts[2].1 = null()),
        ("exponents twice", ARGUMENT, |t| t.parts.push(t.parts[2])),
        ("another quant", ARGUMENT, |t| t.quant = c"f16"),
    ];
    for name in [c"ffn.key.weight", c"ffn.value.weight"] {
        tensor_refused((table, stage), &numbers.tensor(&int8, name), changes);
    }
    // Parts in another order, and without exponents.
    let mut turned = numbers.tensor(&int8, c"att.key.weight");
    turned.parts.reverse();
    assert_eq!(turned.send(table, stage), abi::OK);
    let mut plain = numbers.tensor(&int8, c"att.value.weight");
    plain.parts.truncate(2);
    assert_eq!(plain.send(table, stage), abi::OK);
    // SAFETY: the stage was made above.
    unsafe { (table.stage_free)(stage) };
}

/// Numbers for any matrix of the small model, and some more.
struct Int8 {
    values: Vec<i8>,
    row_scales: Vec<u16>,
    column_exponents: Vec<i8>,
}

impl Int8 {
    fn new() -> Self {
        let n = H as usize;
        Int8 {
            values: vec![1; n * n],
            row_scales: vec![f16::ONE.to_bits(); 2 * n],
            column_exponents: vec![4; 2 * n],
        }
    }

    fn tensor(&self, options: &Options, name: &'static CStr) -> Tensor {
        let (n_rows, n_cols, _) = shape_of(options, name);
        let parts = vec![
            (c"values", self.values.as_ptr().cast(), n_rows * n_cols),
            (c"row_scales", self.row_scales.as_ptr().cast(), 2 * n_rows),
            (
                c"column_exponents",
                self.column_exponents.as_ptr().cast(),
                n_cols,
            ),
        ];
        Tensor::new(options, name, parts)
    }
}

/// A struct of a host that knows more fields.
#[repr(C)]
#[derive(Clone, Copy)]
struct Larger<T> {
    known: T,
    more: [u64; 3],
}

#[test]
fn structs_of_newer_hosts_are_read_as_far_as_they_are_known() {
    let table = table();
    const MORE: [u64; 3] = [u64::MAX; 3];
    let memory = abi::Memory {
        struct_size: size_of::<Larger<abi::Memory>>() as u32,
        ..abi::Memory::default()
    };
    let mut memory = Larger {
        known: memory,
        more: MORE,
    };
    let mut stage = null_mut();
    options().changed(
        |o| o.struct_size = size_of::<Larger<abi::StageOptions>>() as u32,
        |o| {
            let o = Larger {
                // SAFETY: the options of the line above.
                known: unsafe { *o },
                more: MORE,
            };
            // SAFETY: structs of the sizes that they say, and a pointer to a pointer.
            unsafe {
                let (o, memory) = (&raw const o.known, &raw mut memory.known);
                assert_eq!((table.stage_estimate)(o, memory), abi::OK);
                assert_eq!((table.stage_new)(o, &mut stage), abi::OK);
            }
        },
    );
    assert!(memory.known.weight_bytes > 0);
    assert_eq!(memory.more, MORE, "no more than both sides know");
    let room = Room::new();
    for name in TENSORS {
        let mut tensor = room.tensor(name);
        tensor.rest.struct_size += 64;
        assert_eq!(tensor.send(table, stage), abi::OK);
    }
    // SAFETY: the stage has all its tensors.
    unsafe {
        assert_eq!((table.stage_finish)(stage), abi::OK);
        (table.stage_free)(stage);
    }
}
