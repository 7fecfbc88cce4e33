//! The Rust interface as its users see it: options, progress, what threads may share, and that it can grow.

mod common;

use std::fs;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use common::{golden, repository};
use rwkv_edge::{
    CheckpointSource, ConvertOptions, Device, DeviceMap, FloatType, GenerateOptions, Lora, Model,
    Options, Progress, ProgressUnit, Quant, Sampler, SamplerOptions, StageMap,
};

/// Each method sets the field of its name, and no other.
#[test]
fn methods_set_fields() {
    assert_eq!(Options::new(), Options::default());
    let limits = vec![(Device::Cpu, 7)];
    let all = Options::new()
        .quant(Quant::Int8)
        .threads(2)
        .tokenizer("words.json")
        .no_mmap(true)
        .huge_pages(true)
        .no_sparsity(true)
        .memory_max(1 << 20)
        .memory_for_text(true)
        .memory_taken(3)
        .device_map(DeviceMap::Auto)
        .device_memory_max(limits.clone())
        .lora("a.pth", 32.0)
        .lora("b.pth", None);
    let mut fields = Options::default();
    fields.quant = Some(Quant::Int8);
    fields.threads = NonZeroUsize::new(2);
    fields.tokenizer = Some(PathBuf::from("words.json"));
    fields.no_mmap = true;
    fields.huge_pages = true;
    fields.no_sparsity = true;
    fields.memory_max = NonZeroU64::new(1 << 20);
    fields.memory_for_text = true;
    fields.memory_taken = 3;
    fields.device_map = DeviceMap::Auto;
    fields.device_memory_max = limits;
    fields.loras = vec![Lora::new("a.pth", 32.0), Lora::new("b.pth", None)];
    assert_eq!(all, fields);
    assert_eq!(Options::new().quant(None), Options::default());

    assert_eq!(SamplerOptions::new(), SamplerOptions::default());
    let all = SamplerOptions::new()
        .temperature(0.5)
        .temperature_last(true)
        .top_p(0.9)
        .top_k(40)
        .min_p(0.05)
        .typical_p(0.95)
        .mirostat_tau(5.0)
        .mirostat_eta(0.2)
        .presence_penalty(0.1)
        .frequency_penalty(0.2)
        .penalty_decay(0.996)
        .repetition_penalty(1.1)
        .banned_tokens([3, 4])
        .seed(7);
    let mut fields = SamplerOptions::default();
    fields.temperature = 0.5;
    fields.temperature_last = true;
    fields.top_p = 0.9;
    fields.top_k = NonZeroUsize::new(40);
    fields.min_p = 0.05;
    fields.typical_p = 0.95;
    fields.mirostat_tau = Some(5.0);
    fields.mirostat_eta = 0.2;
    fields.presence_penalty = 0.1;
    fields.frequency_penalty = 0.2;
    fields.penalty_decay = 0.996;
    fields.repetition_penalty = 1.1;
    fields.banned_tokens = vec![3, 4];
    fields.seed = 7;
    assert_eq!(all, fields);

    assert_eq!(GenerateOptions::new(), GenerateOptions::default());
    let all = GenerateOptions::new()
        .max_new_tokens(0)
        .ignore_end_of_text(true)
        .stop(["\n\n", "User:"]);
    let mut fields = GenerateOptions::default();
    fields.max_new_tokens = 0;
    fields.ignore_end_of_text = true;
    fields.stop = vec!["\n\n".to_owned(), "User:".to_owned()];
    assert_eq!(all, fields);

    assert_eq!(ConvertOptions::new(), ConvertOptions::default());
    let all = ConvertOptions::new()
        .dtype(FloatType::Bf16)
        .overwrite(true)
        .shard_bytes_max(10)
        .tokenizer("words.json");
    let mut fields = ConvertOptions::default();
    fields.dtype = Some(FloatType::Bf16);
    fields.overwrite = true;
    fields.shard_bytes_max = NonZeroU64::new(10);
    fields.tokenizer = Some(PathBuf::from("words.json"));
    assert_eq!(all, fields);

    let all = StageMap::new(Device::Cpu).quant(Quant::F16).n_layers(3);
    let text = DeviceMap::Stages(vec![all, StageMap::new(Device::Cpu)]).to_string();
    assert_eq!(text, "cpu f16 *3 -> cpu");
}

/// As on the command line and in C.
#[test]
fn to_methods_0_is_none() {
    let options = Options::new().threads(1).memory_max(1);
    assert_eq!(options.threads(0).memory_max(0), Options::default());
    let options = SamplerOptions::new().top_k(1);
    assert_eq!(options.top_k(0), SamplerOptions::default());
    assert_eq!(
        ConvertOptions::new().shard_bytes_max(0).shard_bytes_max,
        None
    );
    let stage = StageMap::new(Device::Cpu).n_layers(1);
    assert_eq!(stage.n_layers(0), StageMap::new(Device::Cpu));
    let n_threads = |options: &Options| {
        let model = Model::open(golden("small-safetensors"), options);
        model.expect("a valid checkpoint").info().threads
    };
    assert_eq!(n_threads(&Options::new().threads(3)), 3);
    assert!(n_threads(&Options::new()) >= 1);
}

#[test]
fn a_checkpoint_may_be_one_file_or_many() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = CheckpointSource::open(golden("small-safetensors")).expect("a valid checkpoint");
    let n_files = |options: &ConvertOptions, name: &str| {
        let converted = source.to_hugging_face(folder.path().join(name), options, &mut |_| {});
        converted.expect("room on the disk").weight_files.len()
    };
    assert_eq!(n_files(&ConvertOptions::new(), "default"), 1);
    assert_eq!(n_files(&ConvertOptions::new().shard_bytes_max(0), "one"), 1);
    assert!(n_files(&ConvertOptions::new().shard_bytes_max(4096), "many") > 1);
}

/// What a callback got.
#[derive(Default)]
struct Seen(Vec<Progress>);

impl Seen {
    /// Grows from something to all of it, in one unit.
    fn check(self, what: &str, unit: ProgressUnit) -> u64 {
        let last = *self.0.last().expect(what);
        assert!(
            last.is_finished() && last.done == last.total,
            "{what}: {last:?}"
        );
        assert!(last.total > 0, "{what}");
        for pair in self.0.windows(2) {
            assert!(pair[0].done <= pair[1].done, "{what}: {pair:?}");
            assert!(
                !pair[0].is_finished() || pair[0].done == pair[1].done,
                "{what}: {pair:?}"
            );
        }
        let is_same = |p: &Progress| p.total == last.total && p.unit == unit;
        assert!(self.0.iter().all(is_same), "{what}: {:?}", self.0);
        last.total
    }
}

#[test]
fn progress_says_what_it_counts_and_reaches_all_of_it() {
    use ProgressUnit::{Bytes, Weights};

    let folder = tempfile::tempdir().expect("a folder");
    let size = |path: &Path| fs::metadata(path).expect("a file").len();
    let source = golden("small-safetensors");

    let mut seen = Seen::default();
    let options = Options::new().quant(Quant::Int8);
    let model = Model::open_with_progress(&source, &options, &mut |p| seen.0.push(p));
    let model = model.expect("a valid checkpoint");
    assert!(seen.0.len() > 10, "one a tensor");
    assert_eq!(seen.check("open", Weights), model.info().n_params);

    let (path, mut seen) = (folder.path().join("model"), Seen::default());
    let saved = model.save(&path, &mut |p| seen.0.push(p));
    saved.expect("room on the disk");
    assert_eq!(seen.check("save", Bytes), size(&path));

    let (model, mut seen) = (Model::open(&path, &options), Seen::default());
    let verified = model.expect("just written").verify(&mut |p| seen.0.push(p));
    verified.expect("not damaged");
    assert_eq!(seen.check("verify", Bytes), size(&path));

    let source = CheckpointSource::open(source).expect("a valid checkpoint");
    let (path, mut seen) = (folder.path().join("raw.pth"), Seen::default());
    let written = source.to_raw(path, &ConvertOptions::new(), &mut |p| seen.0.push(p));
    let written = written.expect("room on the disk");
    assert_eq!(seen.check("to_raw", Bytes), written.size_bytes);

    let (path, mut seen) = (folder.path().join("folder"), Seen::default());
    let options = ConvertOptions::new().shard_bytes_max(4096);
    let written = source.to_hugging_face(path, &options, &mut |p| seen.0.push(p));
    let written = written.expect("room on the disk");
    assert_eq!(seen.check("to_hugging_face", Bytes), written.size_bytes);
    assert_eq!(format!("{Weights}, {Bytes:>6}"), "weights,  bytes");
}

/// Compiles only where threads may have them.
#[test]
fn threads_may_share_and_send() {
    fn shared<T: Send + Sync + 'static>() {}
    fn sent<T: Send + 'static>() {}
    shared::<Model>();
    shared::<rwkv_edge::State>();
    shared::<Sampler>();
    shared::<rwkv_edge::Tokenizer>();
    shared::<rwkv_edge::StopTexts>();
    shared::<rwkv_edge::Reservation>();
    shared::<CheckpointSource>();
    shared::<Options>();
    shared::<rwkv_edge::Info>();
    shared::<rwkv_edge::Error>();
    sent::<rwkv_edge::Session>();
    sent::<rwkv_edge::Workspace>();
    sent::<rwkv_edge::TextStream<'static>>();
    sent::<rwkv_edge::Span<'static>>();
}

/// Every public struct with public fields, and every public enum, can get more of them: here and in the crates on top.
#[test]
fn public_types_can_grow() {
    for (root, n_types) in [
        ("engine/src", 25),
        ("engine/chat/src", 8),
        ("engine/hub/src", 5),
        ("engine/scoring/src", 7),
    ] {
        let root = repository(root);
        let lib = fs::read_to_string(root.join("lib.rs")).expect("a source file");
        let public = lib.split("pub mod internals").next().unwrap_or_default();
        let mut n_checked = 0;
        for statement in public.split(';') {
            let Some((_, path)) = statement.split_once("\npub use ") else {
                continue;
            };
            let path = path.replace('\n', " ");
            let (module, names) = path.rsplit_once("::").expect("a path");
            let names = names.trim_matches(['{', '}']).split(',').map(str::trim);
            for name in names.filter(|name| name.starts_with(char::is_uppercase)) {
                // The path may end at a module that only passes it on.
                let folder = root.join(module.split("::").next().unwrap_or_default());
                let Some(declaration) = declaration(&folder, name) else {
                    continue;
                };
                n_checked += 1;
                assert!(
                    declaration.contains("#[non_exhaustive]"),
                    "{name}:\n{declaration}"
                );
            }
        }
        assert!(n_checked >= n_types, "{}: {n_checked}", root.display());
    }
}

/// A type with its attributes, if it is an enum or has public fields.
fn declaration(at: &Path, name: &str) -> Option<String> {
    let file = at.with_extension("rs");
    if file.is_file() {
        return declaration_in(&fs::read_to_string(file).expect("a source file"), name);
    }
    let entries = fs::read_dir(at).expect("a folder");
    let mut paths = entries.map(|entry| entry.expect("an entry").path());
    paths.find_map(|path| match path.is_dir() {
        true => declaration(&path, name),
        false => declaration_in(&fs::read_to_string(path).expect("a source file"), name),
    })
}

fn declaration_in(text: &str, name: &str) -> Option<String> {
    let kinds = ["enum", "struct"].into_iter();
    let at = kinds
        .flat_map(|kind| {
            text.match_indices(&format!("pub {kind} {name}"))
                .map(|m| m.0 + m.1.len())
                .collect::<Vec<_>>()
        })
        .find(|&behind| text[behind..].starts_with([' ', '<']))?;
    let begin = text[..at].rfind("\n\n").map_or(0, |blank| blank + 2);
    let end = text[at..].find("\n}")? + at;
    let is_open = text[begin..at].contains("pub enum") || text[at..end].contains("\n    pub ");
    // Behind the name there may be variants that can grow by themselves.
    is_open.then(|| text[begin..at].to_owned())
}
