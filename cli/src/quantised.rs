//! Quantised copies of checkpoints in the user's cache, so that a checkpoint is quantised once.
//!
//! `pull --quant` makes them; every command that opens a model with `--quant` looks here first. A
//! copy is a model file whose name holds a hash of what identifies its source: files of a hub's
//! snapshot by the hashes that they are stored under, others by path, size and times. A source that
//! was changed has another hash, so its old copy is not found; it is removed when the next one is
//! made.
//!
//! A file that is known by the hash it is stored under should never change, but somebody may write to it all
//! the same. So the name also holds a stamp of the times of such files. Where only the stamp differs, the files
//! are read, and the copy is used if they have their hashes still. Times are compared with themselves alone:
//! no clock needs to be right.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{bail, Context, Result};
use rwkv_edge::{Model, Options, Quant};
use rwkv_edge_hub::content_hash;
use xxhash_rust::xxh3::{xxh3_64, Xxh3};

use crate::cache_folder;
use crate::hub::{self, Located};
use crate::progress::{notice, Progress};

/// Loading a local checkpoint of fewer bytes takes a moment only: no word about copies then.
const HINT_FROM_BYTES: u64 = 64 << 20;
/// The coarsest clock of a file system in use, that of FAT.
const CLOCK_STEP: Duration = Duration::from_secs(2);
/// Characters of a source's own name in the name of its copy.
const LABEL_CHARS_MAX: usize = 64;

/// The copy of a source, if there is one and the source has not changed since.
pub(crate) fn find(source: &Located, quant: Quant) -> Option<PathBuf> {
    let identity = Identity::of(&source.path).ok()?;
    let name = name(&source.path, quant, &identity).ok()?;
    let mut copy = name.path();
    if !copy.exists() {
        let found = name.with_another_stamp()?;
        let mut progress = Progress::after_a_second("checking");
        let n_files = identity.stored.len() as u64;
        for (index, file) in identity.stored.iter().enumerate() {
            progress.show(index as u64, n_files);
            if !hub::content_is_right(file) {
                return None;
            }
        }
        // The next time it is found at once, unless the cache cannot be written to.
        copy = match fs::rename(&found, &copy) {
            Ok(()) => copy,
            // Another process was faster.
            Err(_) if copy.exists() => copy,
            Err(_) => found,
        };
    }
    match Model::outline(&copy, &Options::default()) {
        Ok(_) => Some(copy),
        Err(error) => {
            notice(format_args!("{error}; quantising again"));
            None
        }
    }
}

/// Says how to make a copy, where one would save noticeable time.
pub(crate) fn hint(source: &Located, quant: Quant) {
    let is_large = |identity: Identity| identity.size_bytes >= HINT_FROM_BYTES;
    if source.id.is_none() && !Identity::of(&source.path).is_ok_and(is_large) {
        return;
    }
    match Model::outline(&source.path, &Options::default()) {
        // Model files are such copies themselves, and f32 is what nobody keeps.
        Ok(outline) if outline.is_model_file || quant == Quant::F32 => {}
        Ok(outline) if outline.stored != quant => notice(format_args!(
            "quantising while loading; to do it once and for all: rwkv-edge pull {} --quant {quant}",
            shell_word(&name_of(source))
        )),
        // Nothing is converted, or opening will tell what is wrong.
        _ => {}
    }
}

/// Makes the copy of a source and gives its path.
pub(crate) fn make(source: &Located, options: &Options, quant: Quant) -> Result<PathBuf> {
    let identity = settle(&source.path)?;
    let name = name(&source.path, quant, &identity)?;
    let (folder, copy) = (&name.folder, name.path());
    fs::create_dir_all(folder).with_context(|| format!("{}: cannot create", folder.display()))?;
    let mut progress = Progress::at_once("quantising");
    let model = Model::open_with_progress(&source.path, options, &mut |p| {
        progress.show(p.done, p.total)
    })?;
    drop(progress);
    let mut progress = Progress::at_once("writing");
    model.save(&copy, &mut |p| progress.show(p.done, p.total))?;
    drop(progress);
    if Identity::of(&source.path)? != identity {
        drop(fs::remove_file(&copy));
        bail!(
            "{}: changed while it was read; try again",
            source.path.display()
        );
    }
    name.remove_older();
    Ok(copy)
}

/// What a source is called by whoever wants it again.
fn name_of(source: &Located) -> String {
    match &source.id {
        Some(id) => id.to_string(),
        None => source.path.display().to_string(),
    }
}

fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/-_.@+=:,".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// What tells a source from every other, and from itself after a change.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    hash: u128,
    size_bytes: u64,
    /// The last change of those files that are known by path, size and times.
    newest: Option<SystemTime>,
    /// Of the times of those files that are known by the hash of their content.
    stamp: u64,
    /// Those files.
    stored: Vec<PathBuf>,
}

impl Identity {
    /// Looks at names and times only.
    fn of(source: &Path) -> Result<Self> {
        let mut hash = Xxh3::new();
        let mut identity = Identity {
            hash: 0,
            size_bytes: 0,
            newest: None,
            stamp: 0,
            stored: Vec::new(),
        };
        let mut stamp = Xxh3::new();
        let mut field = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for path in source_files(source)? {
            let failed = || format!("{}: cannot read", path.display());
            let real = fs::canonicalize(&path).with_context(failed)?;
            let metadata = fs::metadata(&real).with_context(failed)?;
            let modified = metadata.modified().with_context(failed)?;
            field(path.file_name().unwrap_or_default().as_encoded_bytes());
            field(&metadata.len().to_le_bytes());
            identity.size_bytes += metadata.len();
            match content_hash(&real) {
                Some(hash) => {
                    field(hash.as_bytes());
                    for time in [modified, changed(&metadata)] {
                        stamp.update(&nanoseconds(time).to_le_bytes());
                    }
                    identity.stored.push(real);
                }
                None => {
                    field(real.as_os_str().as_encoded_bytes());
                    let changed = changed(&metadata).max(modified);
                    for time in [modified, changed] {
                        field(&nanoseconds(time).to_le_bytes());
                    }
                    identity.newest = identity.newest.max(Some(changed));
                }
            }
        }
        identity.hash = hash.digest128();
        if !identity.stored.is_empty() {
            identity.stamp = stamp.digest();
        }
        Ok(identity)
    }
}

/// Of a time since 1970.
fn nanoseconds(time: SystemTime) -> u128 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos()
}

/// When anything about a file changed, its times and name included: that cannot be set back.
#[cfg(unix)]
fn changed(metadata: &Metadata) -> SystemTime {
    use std::os::unix::fs::MetadataExt;
    let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds)
}

#[cfg(not(unix))]
fn changed(_metadata: &Metadata) -> SystemTime {
    SystemTime::UNIX_EPOCH
}

/// All files that opening a source may read, in one order.
fn source_files(source: &Path) -> Result<Vec<PathBuf>> {
    let failed = |path: &Path| format!("{}: cannot read", path.display());
    let metadata = fs::metadata(source).with_context(|| failed(source))?;
    let (folder, is_part): (&Path, fn(&str) -> bool) = if metadata.is_dir() {
        (source, |name| is_model_part(name) || goes_beside(name))
    } else {
        let parent = source
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        (parent.unwrap_or(Path::new(".")), goes_beside)
    };
    let mut files = Vec::new();
    // Where a conversion was killed, part of the model is still in this folder.
    let moving = folder.join(".rwkv-edge-new");
    let entries = fs::read_dir(folder).with_context(|| failed(folder))?;
    for entry in entries.chain(fs::read_dir(moving).into_iter().flatten()) {
        let path = entry.with_context(|| failed(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_part(&name) && path.is_file() {
            files.push(path);
        }
    }
    if metadata.is_file() {
        files.push(source.to_owned());
    }
    files.sort();
    Ok(files)
}

fn is_model_part(name: &str) -> bool {
    let endings = [".safetensors", ".bin", ".pth", ".index.json"];
    name == "config.json" || endings.iter().any(|ending| name.ends_with(ending))
}

/// What a copy holds beside weights: a tokenizer, and a chat template.
fn goes_beside(name: &str) -> bool {
    let is_list = name.starts_with("rwkv_vocab") && name.ends_with(".txt");
    let is_template = matches!(name, "chat_template.jinja" | "tokenizer_config.json");
    matches!(name, "tokenizer.json" | "vocab.txt") || is_list || is_template
}

/// The identity of a source, when the clock has moved on since its last change: a change from now
/// on gives another time.
fn settle(source: &Path) -> Result<Identity> {
    let identity = Identity::of(source)?;
    let age = identity
        .newest
        .and_then(|newest| SystemTime::now().duration_since(newest).ok());
    match age {
        Some(age) if age < CLOCK_STEP => {
            thread::sleep(CLOCK_STEP - age);
            Identity::of(source)
        }
        _ => Ok(identity),
    }
}

/// Where a copy is.
struct CopyName {
    folder: PathBuf,
    /// Of all copies of the same source, whatever it held.
    start: String,
    identity: String,
    stamp: String,
    /// Of all copies in the same form.
    end: String,
}

fn name(source: &Path, quant: Quant, identity: &Identity) -> Result<CopyName> {
    // Of a snapshot's file the link and not the blob: the same file of two commits has two copies.
    let place = match (source.is_dir(), source.parent(), source.file_name()) {
        (false, Some(folder), Some(name)) if !folder.as_os_str().is_empty() => {
            fs::canonicalize(folder).map(|folder| folder.join(name))
        }
        (false, _, Some(name)) => fs::canonicalize(".").map(|folder| folder.join(name)),
        _ => fs::canonicalize(source),
    };
    let place = place.with_context(|| format!("{}: cannot read", source.display()))?;
    // Another version may quantise in another way.
    let version = env!("CARGO_PKG_VERSION");
    Ok(CopyName {
        folder: folder()?,
        start: format!(
            "{}-{:016x}-",
            label(&place),
            xxh3_64(place.as_os_str().as_encoded_bytes())
        ),
        identity: format!("{:032x}", identity.hash),
        stamp: format!("-{:016x}", identity.stamp),
        end: format!("-{version}-{quant}.safetensors"),
    })
}

/// Tells people which model a copy is of.
fn label(place: &Path) -> String {
    let of_hub = |part: &OsStr| Some(part.to_str()?.strip_prefix("models--")?.to_owned());
    let label = place.iter().find_map(of_hub).unwrap_or_else(|| {
        let name = place.file_stem().unwrap_or_default();
        name.to_string_lossy().into_owned()
    });
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
    let label = label.trim_start_matches('.').chars().filter(allowed);
    label.take(LABEL_CHARS_MAX).collect()
}

impl CopyName {
    fn path(&self) -> PathBuf {
        let CopyName {
            start,
            identity,
            stamp,
            end,
            ..
        } = self;
        self.folder.join(format!("{start}{identity}{stamp}{end}"))
    }

    /// A copy of the same contents, made when their files had other times.
    fn with_another_stamp(&self) -> Option<PathBuf> {
        let start = format!("{}{}-", self.start, self.identity);
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut paths = entries.map(|entry| entry.path());
        paths.find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let middle = name
                .strip_prefix(&start)
                .and_then(|it| it.strip_suffix(&self.end));
            middle.is_some_and(|stamp| stamp.len() + 1 == self.stamp.len())
        })
    }

    /// Removes the copies of what the source was before.
    fn remove_older(&self) {
        let (own, quant_end) = (
            self.path(),
            self.end.rsplit('-').next().unwrap_or(&self.end),
        );
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_of_source = name.starts_with(&self.start) && name.ends_with(quant_end);
            if is_of_source && entry.path() != own {
                drop(fs::remove_file(entry.path()));
            }
        }
    }
}

fn folder() -> Result<PathBuf> {
    Ok(cache_folder::of_program()?.join("quantised"))
}
