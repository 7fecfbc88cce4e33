//! The model file: written and read back it gives the same bits, is used in place, and is refused when
//! it is damaged.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{golden, goldens, ids, json, open, repository};
use rwkv_edge::{ErrorKind, Model, Options, Quant};

fn save(model: &Model, folder: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = folder.path().join(name);
    model.save(&path, &mut |_| {}).expect("can be written");
    path
}

#[test]
fn a_saved_model_is_used_in_place_and_gives_the_same_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in goldens() {
        let mut tokens = ids(&json(golden(name).join("expected.json"))["input_ids"]);
        tokens.truncate(48);
        for &quant in Quant::ALL {
            let model = open(golden(name), quant, 2);
            let path = save(&model, &folder, &format!("{name}-{quant}"));
            let bytes = std::fs::read(&path).expect("just written");
            assert!(Model::begins_model_file(&bytes[..64]), "{name} {quant}");
            for (no_mmap, huge_pages) in
                [(false, false), (true, false), (false, true), (true, true)]
            {
                let options = Options::new()
                    .no_mmap(no_mmap)
                    .huge_pages(huge_pages)
                    .threads(1);
                let saved = Model::open(&path, &options).expect("just written");
                let (info, saved_info) = (model.info(), saved.info());
                assert_eq!(saved_info.quant, quant);
                assert_eq!(saved_info.fingerprint, info.fingerprint, "{name} {quant}");
                assert_eq!(saved_info.weight_bytes, info.weight_bytes);
                let matrices = saved
                    .tensors()
                    .into_iter()
                    .filter(|tensor| tensor.shape.len() == 2);
                let bytes: u64 = matrices
                    .map(|t| t.shape.iter().product::<usize>() as u64 * bits_per_weight(quant) / 8)
                    .sum();
                let (used, not_used) = match huge_pages {
                    false => (saved_info.mapped_bytes, saved_info.huge_page_bytes),
                    true => (saved_info.huge_page_bytes, saved_info.mapped_bytes),
                };
                assert!(
                    used >= bytes && not_used == 0,
                    "{name} {quant}: weights were copied"
                );
                let logits = model.session().eval_all(&tokens).expect("valid tokens");
                assert_eq!(
                    saved.session().eval_all(&tokens).expect("valid tokens"),
                    logits
                );
                saved.verify(&mut |_| {}).expect("not damaged");
            }
        }
    }
}

/// At least.
fn bits_per_weight(quant: Quant) -> u64 {
    match quant {
        Quant::F32 => 32,
        Quant::F16 => 16,
        Quant::Int8 => 8,
        Quant::Q6 => 6,
        Quant::Q5 => 5,
        Quant::Q4 => 4,
        other => panic!("{other} is not among the quantisations"),
    }
}

#[test]
fn a_saved_model_can_be_quantised_further_but_not_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let name = "small-safetensors";
    let tokens = ids(&json(golden(name).join("expected.json"))["input_ids"]);
    let logits = |model: &Model| model.session().eval_all(&tokens).expect("valid tokens");
    let int8 = open(golden(name), Quant::Int8, 1);
    let wide = save(&open(golden(name), Quant::F32, 1), &folder, "wide");
    assert_eq!(logits(&open(wide, Quant::Int8, 1)), logits(&int8));
    let path = save(&int8, &folder, "int8");
    for quant in [Quant::F32, Quant::F16] {
        let options = Options::new().quant(quant);
        let error = Model::open(&path, &options).expect_err("cannot become more exact");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("int8"), "{error}");
    }
}

#[test]
fn the_tokenizer_travels_inside() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = open(repository("cli/demo"), Quant::Int8, 2);
    let path = save(&model, &folder, "demo.rwkv");
    let saved = Model::open(&path, &Options::default()).expect("just written");
    let text = "Ownership is\n    fn main() {}";
    let tokenizer = saved.tokenizer().expect("is inside");
    let tokens = tokenizer.encode(text).expect("any text");
    assert_eq!(
        tokens,
        model
            .tokenizer()
            .expect("is beside")
            .encode(text)
            .expect("any text")
    );
    assert_eq!(tokenizer.decode(&tokens).expect("valid ids"), text);
    // The safetensors format, as any tool reads it.
    let bytes = fs::read(&path).expect("readable");
    let (size, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("valid");
    assert_eq!((size + 8) % 64, 0, "data starts on a boundary");
    let tensors = metadata.tensors();
    let real = tensors
        .iter()
        .filter(|(name, _)| !name.starts_with("padding."));
    for (name, tensor) in real {
        assert_eq!(tensor.data_offsets.0 % 64, 0, "{name} starts on a boundary");
    }
}

#[test]
fn a_flipped_bit_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = save(&open(golden("odd-bin"), Quant::Int8, 1), &folder, "model");
    let good = fs::read(&path).expect("readable");
    let mut opened = 0;
    for at in (0..good.len()).step_by(good.len() / 300) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        let path = folder.path().join("bad");
        fs::write(&path, &bad).expect("can be written");
        if let Ok(model) = Model::open(&path, &Options::new().threads(1)) {
            opened += 1;
            let error = model.verify(&mut |_| {}).expect_err("one bit differs");
            assert_eq!(error.kind(), ErrorKind::Format, "byte {at}");
            // Wrong weights are wrong text, never a crash.
            model.session().eval(&[1, 2, 3]).expect("valid tokens");
        }
    }
    assert!(opened > 100, "most bits are weights: {opened} opened");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = save(&open(golden("odd-bin"), Quant::Int8, 1), &folder, "model");
    let mut bytes = fs::read(&path).expect("readable");
    let old = b"\"format_version\":\"1\"";
    let at = bytes
        .windows(old.len())
        .position(|window| window == old)
        .expect("is there");
    bytes[at + old.len() - 2] = b'9';
    fs::write(&path, bytes).expect("can be written");
    let error = Model::open(&path, &Options::default()).expect_err("from the future");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("format version 9"), "{error}");
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = open(golden("odd-bin"), Quant::Int8, 1);
    let path = save(&model, &folder, "model");
    let old = fs::read(&path).expect("readable");
    // A model that is mapped from the file it is saved to stays valid: the name moves to a new file.
    let saved = Model::open(&path, &Options::default()).expect("just written");
    saved.save(&path, &mut |_| {}).expect("can be written");
    assert_eq!(fs::read(&path).expect("readable"), old);
    let error = model
        .save(folder.path(), &mut |_| {})
        .expect_err("is a folder");
    assert_eq!(error.kind(), ErrorKind::Io);
    let error = model.save(folder.path().join("no/such/folder"), &mut |_| {});
    assert_eq!(error.expect_err("no such folder").kind(), ErrorKind::Io);
    let names: Vec<_> = fs::read_dir(folder.path()).expect("readable").collect();
    assert_eq!(names.len(), 1, "nothing is left behind: {names:?}");
}

#[test]
fn an_outline_says_what_opening_would_give() {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = Options::default();
    let demo = open(repository("cli/demo"), Quant::Int8, 1);
    let file = save(&demo, &folder, "demo");
    for (path, n_vocab, has_tokenizer, stored, is_model_file) in [
        (repository("cli/demo"), 4096, true, Quant::F16, false),
        (golden("deep-sharded"), 160, false, Quant::F32, false),
        (file.clone(), 4096, true, Quant::Int8, true),
    ] {
        let outline = Model::outline(&path, &plain).expect("a model");
        let found = (outline.n_vocab, outline.has_tokenizer, outline.stored);
        assert_eq!(found, (n_vocab, has_tokenizer, stored));
        assert_eq!(outline.is_model_file, is_model_file);
        assert_eq!(
            Model::open(&path, &plain).expect("a model").info().quant,
            stored
        );
    }
    let bytes = fs::read(&file).expect("readable");
    fs::write(&file, &bytes[..bytes.len() / 2]).expect("can be written");
    let error = Model::outline(&file, &plain).expect_err("half a file");
    assert_eq!(error.kind(), ErrorKind::Format);
}

/// With the names of tokens that it writes; files of before have none, and a damaged one is named.
#[test]
fn the_chat_template_travels_inside() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("model");
    fs::create_dir(&source).expect("can be made");
    for name in ["config.json", "model.safetensors"] {
        let from = golden("small-safetensors").join(name);
        fs::copy(from, source.join(name)).expect("can be copied");
    }
    let path = save(&open(source.clone(), Quant::Int8, 1), &folder, "without");
    assert_eq!(Model::chat_template(&path).expect("a model file"), None);
    let text = "{{ bos_token }}\u{1f980}\n\"checksum\":\"";
    let config =
        serde_json::json!({ "chat_template": text, "bos_token": "<s>", "eos_token": null });
    fs::write(source.join("tokenizer_config.json"), config.to_string()).expect("can be written");
    let path = save(&open(source.clone(), Quant::F16, 1), &folder, "wide");
    // A copy of a copy has it, too.
    let path = save(&open(path, Quant::Int8, 1), &folder, "narrow");
    let found = Model::chat_template(&path)
        .expect("a model file")
        .expect("is inside");
    assert_eq!(
        (&*found.text, found.bos_token.as_deref()),
        (text, Some("<s>"))
    );
    assert_eq!(found.eos_token, None);
    assert!(found.place.ends_with("narrow"), "{}", found.place);
    open(path.clone(), Quant::Int8, 1)
        .verify(&mut |_| {})
        .expect("not damaged");
    // A folder may hold a model file as its weights.
    let other = folder.path().join("other");
    fs::create_dir(&other).expect("can be made");
    fs::copy(&path, other.join("model.safetensors")).expect("can be copied");
    let found = Model::chat_template(&other)
        .expect("a folder")
        .expect("is inside");
    assert_eq!(found.text, text);

    let bytes = fs::read(&path).expect("just written");
    let key = br#""chat_template":"{"#;
    let at = bytes.windows(key.len()).position(|window| window == key);
    let mut damaged = bytes;
    damaged[at.expect("is there") + key.len() - 1] = b'x';
    fs::write(&path, damaged).expect("can be written");
    let error = Model::chat_template(&path)
        .expect_err("damaged")
        .to_string();
    assert!(
        error.contains("narrow: metadata: damaged `chat_template`"),
        "{error}"
    );
}
