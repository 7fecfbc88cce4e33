//! Models whose layers are spread: over two stages of a device, over devices, and with the CPU in any place.

use rwkv_edge::{Device, Model, Quant};

use crate::setup::{
    cases, deviation, device, device_info, devices, in_pieces, open_on, options, within,
    DECODE_BOUND,
};

/// All ways to split a model of `n` layers, of which the head counts as one more.
fn maps(n: usize) -> Vec<String> {
    let d = device();
    let half = n / 2;
    let mut maps = vec![
        format!("{d} *{half} -> {d}"),
        format!("{d} *{half} -> cpu"),
        format!("cpu *{half} -> {d}"),
        format!("cpu *{n} -> {d} *1"),
        format!("{d} *{n} -> cpu"),
        format!("{d} *1 -> cpu *{} -> {d}", n - 1),
        format!("cpu *1 -> {d} *{} -> cpu", n - 1),
    ];
    if let Some(other) = devices()
        .iter()
        .find(|info| info.device != device_info().device)
    {
        let other = &other.device;
        maps.push(format!("{d} *{half} -> {other}"));
        maps.push(format!("{other} *1 -> cpu *{} -> {d}", n - 1));
        maps.push(format!("{other} *1 -> {d} *{} -> {other}", n - 1));
    }
    maps
}

#[test]
fn split_models_are_what_they_are_in_one_piece() {
    for case in cases() {
        let tokens = case.first(40);
        let cpu = open_on("cpu", case.path.clone(), Quant::F16);
        let expected = in_pieces(&cpu, tokens, 1);
        for map in maps(cpu.info().n_layer) {
            let model = open_on(&map, case.path.clone(), Quant::F16);
            assert_eq!(model.tensors().len(), cpu.tensors().len());
            assert_eq!(model.info().fingerprint, cpu.info().fingerprint);
            assert_eq!(model.info().n_params, cpu.info().n_params);
            for (length, bound) in [(1, DECODE_BOUND), (40, case.prefill_bound)] {
                let found = in_pieces(&model, tokens, length);
                let what = format!("{} {map}, pieces of {length}", case.name);
                within(&what, deviation(&found, &expected), bound);
            }
        }
    }
}

#[test]
fn states_of_split_models_are_whole() {
    let case = cases().remove(0);
    let cpu = open_on("cpu", case.path.clone(), Quant::F16);
    let mut straight = cpu.session();
    straight.eval(&case.tokens[..6]).expect("tokens");
    for map in maps(cpu.info().n_layer) {
        let model = open_on(&map, case.path.clone(), Quant::F16);
        let mut session = model.session();
        session.eval(&case.tokens[..3]).expect("tokens");
        // From one map to the next, by way of a clone.
        let mut other = open_on(&device(), case.path.clone(), Quant::F16).session();
        other
            .restore(&session.state().clone(), &[])
            .expect("the same checkpoint");
        other.eval(&case.tokens[3..6]).expect("tokens");
        let (found, expected) = (other.state().as_slice(), straight.state().as_slice());
        within(
            &format!("state of {map}"),
            deviation(found, expected),
            case.prefill_bound,
        );
        assert_eq!(session.state().n_tokens(), 3);
    }
}

/// Each stage as it is asked for.
#[test]
fn stages_have_their_own_quantisation() {
    let case = cases().remove(0);
    let d = device();
    let model = Model::open(
        &case.path,
        &options(
            &format!("{d} f16 *1 -> {d} int8 *1 -> cpu int8"),
            Quant::F32,
        ),
    )
    .expect("a valid map");
    let info = model.info();
    let quants: Vec<Quant> = info.stages.iter().map(|stage| stage.quant).collect();
    assert_eq!(quants, [Quant::F16, Quant::Int8, Quant::Int8]);
    let of = |name: &str| {
        let tensors = model.tensors();
        let tensor = tensors
            .iter()
            .find(|t| t.name == name)
            .expect("there is one");
        (tensor.quant, tensor.device.clone())
    };
    let place = device_info().device;
    assert_eq!(of("emb.weight"), (Quant::F16, place.clone()));
    assert_eq!(of("blocks.1.att.key.weight"), (Quant::Int8, place));
    assert_eq!(of("head.weight"), (Quant::Int8, "cpu".to_owned()));
    let exact = in_pieces(
        &open_on("cpu", case.path.clone(), Quant::F32),
        &case.tokens,
        64,
    );
    let found = in_pieces(&model, &case.tokens, 64);
    let what = format!("{} f16 and int8 stages (L2)", case.name);
    within(&what, crate::setup::distance(&found, &exact), 0.06);
    let folder = tempfile::tempdir().expect("a folder");
    for error in [
        model
            .save(folder.path().join("m"), &mut |_| {})
            .expect_err("on a device"),
        model.verify(&mut |_| {}).expect_err("on a device"),
        model
            .with_matrices_of(&model, &[])
            .map(|_| ())
            .expect_err("on a device"),
    ] {
        assert!(error.to_string().contains("device cpu"), "{error}");
    }
}

/// The same limit of memory for every device.
fn of_each_device(bytes: u64) -> Vec<(Device, u64)> {
    let device = |name: &str| name.parse().expect("a device");
    let all = devices().into_iter();
    all.map(|info| (device(&info.device), bytes)).collect()
}

/// A stored f32 model goes to f16 where the device has no f32, and auto fills devices within limits.
#[test]
fn auto_fills_devices_and_gives_the_cpu_the_rest() {
    for case in cases() {
        let open = |limit: Option<u64>| {
            let options = options("auto", Quant::F16)
                .device_memory_max(limit.map_or(Vec::new(), of_each_device));
            Model::open(&case.path, &options).expect("fits somewhere")
        };
        let all = open(None);
        let info = all.info();
        assert_eq!(info.stages.len(), 1, "{}: {:?}", case.name, info.stages);
        assert_ne!(info.stages[0].device, "cpu");
        let tokens = &case.tokens[..8];
        let cpu = open_on("cpu", case.path.clone(), Quant::F16);
        let expected = in_pieces(&cpu, tokens, 8);
        let check = |model: &Model| {
            let found = in_pieces(model, tokens, 8);
            let what = format!("{} auto in {} stages", case.name, model.info().stages.len());
            within(&what, deviation(&found, &expected), case.prefill_bound);
        };
        check(&all);
        // Limits in which less and less of it fits.
        for part in [2, 4, 8, 16] {
            let limit = info.stages[0].estimated_bytes / part;
            let model = open(Some(limit));
            for stage in model.info().stages {
                let place = (&stage.device, &stage.layers, stage.has_head);
                println!("{}: {limit} bytes a device: {place:?}", case.name);
                assert!(stage.estimated_bytes <= limit, "{stage:?}");
            }
            check(&model);
        }
        let on_cpu = open(Some(1000));
        assert_eq!(on_cpu.info().stages[0].device, "cpu");
        let note = on_cpu.info().device_note.expect("says why");
        assert!(note.contains("not one layer fits"), "{note}");
        check(&on_cpu);
    }
}

#[test]
fn maps_that_cannot_be() {
    let case = cases().remove(0);
    let d = device();
    for (map, part) in [
        (format!("{d} *1 -> cpu *1"), "have a place"),
        (format!("{d} *100"), "are not enough"),
        (format!("{d} *4 -> cpu"), "are not enough"),
        (
            "nosuchplugin".to_owned(),
            "no plugin for the device nosuchplugin",
        ),
        (
            format!("{}:77", crate::setup::plugin_name()),
            "no such device",
        ),
    ] {
        let error = Model::open(&case.path, &options(&map, Quant::F16)).expect_err(&map);
        assert!(error.to_string().contains(part), "{map}: {error}");
    }
    let options = options(&d, Quant::F16).device_memory_max(of_each_device(1000));
    let error = Model::open(&case.path, &options).expect_err("too little memory");
    assert_eq!(error.kind(), rwkv_edge::ErrorKind::Memory);
    let text = error.to_string();
    assert!(
        text.contains("needs") && text.contains("1000 bytes allowed"),
        "{text}"
    );
}
