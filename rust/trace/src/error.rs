//! What can be wrong with a file, as data; the sentence is made from it here and nowhere else.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file could not be read as what it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The operating system refused.
    #[error("{}: cannot be read: {message}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What kind of refusal, for callers that have their own word for a missing file.
        kind: io::ErrorKind,
        /// What the operating system said.
        message: String,
    },
    /// A directory where a file was expected.
    #[error("{}: is a directory; name a trace file in it", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// Nothing in it, or nothing once unpacked.
    #[error("{}: is empty", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The first bytes say gzip or zstd, the rest does not hold up: corrupt, or cut short.
    #[error("{}: {format} data is damaged or cut short: {message}", .path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// What the first bytes say.
        format: &'static str,
        /// What the unpacker said.
        message: String,
    },
    /// Readable, and not a trace.
    #[error("{}: not a trace in text form: found {found}", .path.display())]
    NotATrace {
        /// The file.
        path: PathBuf,
        /// What was found instead, and what to do about it if we know.
        found: String,
    },
    /// A line of a step file that is not a step.
    #[error("{}:{line}:{column}: found `{found}`, allowed here: {allowed}", .path.display())]
    Steps {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u32,
        /// Byte in the line, from 1.
        column: u32,
        /// The word that stands there; empty at the end of a line.
        found: String,
        /// What may stand there.
        allowed: &'static str,
    },
}

impl TraceError {
    /// The file that the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::Directory { path }
            | Self::Empty { path }
            | Self::Packed { path, .. }
            | Self::NotATrace { path, .. }
            | Self::Steps { path, .. } => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_one_line_that_names_the_file() {
        let path = PathBuf::from("dir/x.txt.gz");
        let errors = [
            TraceError::Io { path: path.clone(), kind: io::ErrorKind::NotFound, message: "No such file".into() },
            TraceError::Directory { path: path.clone() },
            TraceError::Empty { path: path.clone() },
            TraceError::Packed { path: path.clone(), format: "gzip", message: "corrupt deflate stream".into() },
            TraceError::NotATrace { path: path.clone(), found: "perf.data".into() },
            TraceError::Steps { path: path.clone(), line: 3, column: 7, found: "Q".into(), allowed: "W, R, E or M" },
        ];
        for error in errors {
            let text = error.to_string();
            assert!(text.starts_with("dir/x.txt.gz:"), "{text}");
            assert!(!text.contains('\n'), "{text}");
            assert_eq!(error.path(), path);
        }
    }
}
