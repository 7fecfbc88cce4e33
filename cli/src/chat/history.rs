//! The lines typed in earlier chats, in a file of the user's: a JSON string a line.
//!
//! rustyline has such files too, but needs Rust 1.89 for them. A history is a convenience: where it cannot
//! be read or written there is none, without a word.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::cache_folder;

/// Lines that are kept; the file is cut back to so many when it has twice as many.
pub(crate) const HISTORY_LINES: usize = 1000;

pub(crate) struct HistoryFile {
    path: PathBuf,
}

impl HistoryFile {
    /// `None` where the system has no place for such a file.
    pub(crate) fn of_user() -> Option<Self> {
        let folder = cache_folder::of_histories()?;
        let path = folder.join("rwkv-edge").join("chat_history");
        Some(HistoryFile { path })
    }

    /// The last lines, the oldest first.
    pub(crate) fn read(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let mut lines: Vec<String> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let n_lines = lines.len();
        lines.drain(..n_lines.saturating_sub(HISTORY_LINES));
        if n_lines > 2 * HISTORY_LINES {
            let _ = self.replace(&lines);
        }
        lines
    }

    /// At once after each line, so that a session that is killed loses nothing.
    pub(crate) fn append(&self, line: &str) {
        let append = || -> io::Result<()> {
            if let Some(folder) = self.path.parent() {
                fs::create_dir_all(folder)?;
            }
            let mut options = OpenOptions::new();
            options.append(true).create(true);
            // What was said is nobody else's business.
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            // One write, so that the lines of two chats at once do not mix.
            options.open(&self.path)?.write_all(&to_line(line)?)
        };
        let _ = append();
    }

    /// Temporary files are private, as this one is.
    fn replace(&self, lines: &[String]) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        for line in lines {
            file.write_all(&to_line(line)?)?;
        }
        file.persist(&self.path)?;
        Ok(())
    }
}

fn to_line(line: &str) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_and_the_file_stays_small() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("not yet there").join("history");
        let history = HistoryFile { path: path.clone() };
        assert!(history.read().is_empty());
        let odd = "two \\\nlines, \"quotes\" and 龍";
        history.append(odd);
        history.append("plain");
        assert_eq!(history.read(), [odd, "plain"]);
        // A line cut by a full disk, and one by another program.
        OpenOptions::new()
            .append(true)
            .open(&path)?
            .write_all(b"\"cut\nnot json\n")?;
        assert_eq!(history.read(), [odd, "plain"]);
        for n in 0..2 * HISTORY_LINES {
            history.append(&n.to_string());
        }
        let lines = history.read();
        assert_eq!((lines.len(), lines[0].as_str()), (HISTORY_LINES, "1000"));
        assert_eq!(fs::read_to_string(&path)?.lines().count(), HISTORY_LINES);
        assert_eq!(history.read(), lines);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
        }
        Ok(())
    }
}
