//! Files written whole or not at all: under a temporary name in the same folder, synced, renamed. A
//! mapping of the old file stays valid, and a failed or killed write leaves the old file.

#![forbid(unsafe_code)]

use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, Result};

/// Names of files that are not complete.
const PREFIX: &str = ".rwkv-edge-";
const SUFFIX: &str = ".part";

/// Whether a file of this name was being written by us, or still is.
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// A file being written; nothing is at its path before [`commit`](Self::commit).
pub(crate) struct OutputFile {
    path: PathBuf,
    writer: BufWriter<NamedTempFile>,
}

impl OutputFile {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let failed = |e| Error::io("create", path, e);
        if path.is_dir() {
            return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).suffix(SUFFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Temporary files are private by default; this one becomes an ordinary file. The
            // process's umask still applies.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder
            .tempfile_in(folder.unwrap_or(Path::new(".")))
            .map_err(failed)?;
        // Large pieces: weights are written row by row.
        Ok(OutputFile {
            path: path.to_owned(),
            writer: BufWriter::with_capacity(1 << 20, file),
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer
            .write_all(bytes)
            .map_err(|e| Error::io("write", &self.path, e))
    }

    /// Overwrites bytes written before.
    pub(crate) fn overwrite(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut overwrite = || {
            self.writer.seek(SeekFrom::Start(offset))?;
            self.writer.write_all(bytes)?;
            self.writer.seek(SeekFrom::End(0)).map(|_| ())
        };
        overwrite().map_err(|e| Error::io("write", &self.path, e))
    }

    /// Syncs the file and gives it its name.
    pub(crate) fn commit(self) -> Result<()> {
        self.finish()?.rename()
    }

    /// Syncs the file, which stays under its temporary name; closes it.
    pub(crate) fn finish(self) -> Result<FinishedFile> {
        let OutputFile { path, writer } = self;
        let file = writer
            .into_inner()
            .map_err(|e| Error::io("write", &path, e.into_error()))?;
        file.as_file()
            .sync_all()
            .map_err(|e| Error::io("sync", &path, e))?;
        let temporary = file.into_temp_path();
        Ok(FinishedFile { path, temporary })
    }
}

/// A complete file that does not have its name yet. Dropped, it is gone.
pub(crate) struct FinishedFile {
    path: PathBuf,
    temporary: TempPath,
}

impl FinishedFile {
    /// Gives the file its name, in place of a file that has it now.
    pub(crate) fn rename(self) -> Result<()> {
        let FinishedFile { path, temporary } = self;
        temporary
            .persist(&path)
            .map_err(|e| Error::io("rename to", &path, e.error))
    }
}

/// Makes what was renamed and removed in a folder last, where the system can be asked to.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| Error::io("sync", folder, e))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Writes a whole file.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = OutputFile::create(path)?;
    file.write(bytes)?;
    file.commit()
}
