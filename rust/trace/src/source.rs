//! Fetching a file: whole, unpacked, and checked for being text.
//!
//! Whether a file is packed is told by its first bytes, not by its name: traces are renamed, and `zcat` is
//! forgotten. Files are read whole because the readers hand out slices of them.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

use crate::error::TraceError;
use crate::ftrace;

/// RFC 1952, section 2.3.1: ID1, ID2.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// RFC 8878, section 3.1.1: Magic_Number.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How much of a file is looked at to tell text from anything else.
const LOOKED_AT: usize = 4096;

/// Files of the tools that record traces, by their first bytes, and the command that makes text of them.
///
/// Source: trace-cmd.dat(5), "INITIAL FORMAT"; Linux `tools/perf/Documentation/perf.data-file-format.txt`.
const BINARY_FORMATS: [(&[u8], &str); 3] = [
    (b"\x17\x08\x44tracing", "a file of trace-cmd; print it with `trace-cmd report`"),
    (b"PERFILE2", "a file of perf; print it with `perf script`"),
    (b"\x7fELF", "a program"),
];

/// Reads a file into memory, unpacking it if it is gzip or zstd (one member or frame, or several).
///
/// # Errors
/// [`TraceError`]: unreadable, a directory, empty, damaged, or not text.
pub fn read(path: &Path) -> Result<Vec<u8>, TraceError> {
    // Asked first: reading a directory fails with a different error on each system.
    if path.is_dir() {
        return Err(TraceError::Directory { path: path.into() });
    }
    text(path, fs::read(path).map_err(|error| refused(path, &error))?)
}

/// The text that a file of these bytes has; `path` only serves the messages.
///
/// # Errors
/// As [`read`], of a file that could be read.
pub fn text(path: &Path, raw: Vec<u8>) -> Result<Vec<u8>, TraceError> {
    let packed = |format, message| TraceError::Packed { path: path.into(), format, message };
    let bytes = if raw.starts_with(&GZIP_MAGIC) {
        gunzip(&raw).map_err(|error| packed("gzip", error.to_string()))?
    } else if raw.starts_with(&ZSTD_MAGIC) {
        unzstd(&raw).map_err(|message| packed("zstd", message))?
    } else {
        raw
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(TraceError::Empty { path: path.into() });
    }
    match not_text(&bytes) {
        Some(found) => Err(TraceError::NotATrace { path: path.into(), found }),
        None => Ok(bytes),
    }
}

/// As [`read`], and refuses a text in which not one line is a trace's.
///
/// A trace with a header and no events is a trace.
///
/// # Errors
/// As [`read`], and [`TraceError::NotATrace`] with the first line.
pub fn read_trace(path: &Path) -> Result<Vec<u8>, TraceError> {
    let bytes = read(path)?;
    if ftrace::is_trace(&bytes) {
        return Ok(bytes);
    }
    let line = bytes.split(|&byte| byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let mut shown: String = String::from_utf8_lossy(line.trim_ascii()).chars().take(60).collect();
    if shown.len() < line.trim_ascii().len() {
        shown.push_str("...");
    }
    Err(TraceError::NotATrace { path: path.into(), found: format!("no line of a trace; the first line is {shown:?}") })
}

fn refused(path: &Path, error: &io::Error) -> TraceError {
    TraceError::Io { path: path.into(), kind: error.kind(), message: error.to_string() }
}

fn gunzip(raw: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(raw.len().saturating_mul(8));
    MultiGzDecoder::new(raw).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Frame by frame.
fn unzstd(mut raw: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(raw.len().saturating_mul(8));
    while !raw.is_empty() {
        let mut frame = StreamingDecoder::new(&mut raw).map_err(|error| error.to_string())?;
        frame.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    }
    Ok(bytes)
}

/// What the bytes are if they are not text.
///
/// A command name may hold any byte, so a stray one that is not UTF-8 is allowed: text is what has no NUL and is mostly
/// characters.
fn not_text(bytes: &[u8]) -> Option<String> {
    if let Some((_, what)) = BINARY_FORMATS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some((*what).to_owned());
    }
    let head = &bytes[..bytes.len().min(LOOKED_AT)];
    if let Some(at) = memchr::memchr(0, head) {
        return Some(format!("binary data (a NUL byte at offset {at})"));
    }
    let strange = head
        .utf8_chunks()
        .map(|chunk| {
            chunk.invalid().len() + chunk.valid().chars().filter(|c| c.is_control() && !c.is_whitespace()).count()
        })
        .sum::<usize>();
    (strange * 8 > head.len())
        .then(|| format!("binary data ({strange} of the first {} bytes are not text)", head.len()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    const LINE: &[u8] = b"             vmm-1       [000] d..1.     6.959087: kvm_entry: vcpu 0\n";

    /// A file that is gone when the test is.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, bytes: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("debugreg-trace-{}-{name}", std::process::id()));
            fs::write(&path, bytes).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn plain_and_packed_files_read_alike_whatever_their_name() {
        let plain = Scratch::new("plain.gz", LINE);
        assert_eq!(read(&plain.0).unwrap(), LINE);
        let packed = Scratch::new("packed.txt", &gzip(LINE));
        assert_eq!(read_trace(&packed.0).unwrap(), LINE);
    }

    #[test]
    fn gzip_members_follow_one_another() {
        let two = Scratch::new("two", &[gzip(LINE), gzip(b"second\n")].concat());
        assert_eq!(read(&two.0).unwrap(), [LINE, b"second\n"].concat());
    }

    #[test]
    fn cut_or_damaged_gzip_is_an_error() {
        let whole = gzip(&LINE.repeat(50));
        for cut in 2..whole.len() {
            let short = Scratch::new("short", &whole[..cut]);
            assert!(matches!(read(&short.0), Err(TraceError::Packed { format: "gzip", .. })), "cut at {cut}");
        }
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0xff;
        let damaged = Scratch::new("damaged", &damaged);
        assert!(matches!(read(&damaged.0), Err(TraceError::Packed { format: "gzip", .. })));
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn zstd_frames_follow_one_another_and_what_is_cut_is_an_error() {
        let packed = Scratch::new("packed.zst", &zstd(LINE));
        assert_eq!(read_trace(&packed.0).unwrap(), LINE);
        let two = Scratch::new("two.zst", &[zstd(LINE), zstd(b"second\n")].concat());
        assert_eq!(read(&two.0).unwrap(), [LINE, b"second\n"].concat());
        let whole = zstd(&LINE.repeat(50));
        for cut in 4..whole.len() {
            let short = Scratch::new("short.zst", &whole[..cut]);
            assert!(matches!(read(&short.0), Err(TraceError::Packed { format: "zstd", .. })), "cut at {cut}");
        }
    }

    #[test]
    fn empty_files_are_named_so_packed_or_not() {
        for (name, bytes) in [("empty", Vec::new()), ("blank", b" \n\n".to_vec()), ("packed-empty", gzip(b""))] {
            let file = Scratch::new(name, &bytes);
            assert_eq!(read(&file.0), Err(TraceError::Empty { path: file.0.clone() }), "{name}");
        }
    }

    #[test]
    fn a_directory_is_an_error_and_so_is_nothing() {
        let here = std::env::temp_dir();
        assert_eq!(read(&here), Err(TraceError::Directory { path: here.clone() }));
        let nowhere = here.join("debugreg-trace-no-such-file");
        assert!(matches!(read(&nowhere), Err(TraceError::Io { kind: io::ErrorKind::NotFound, .. })));
    }

    #[test]
    fn binary_files_are_refused_with_what_to_do() {
        let cases: [(&[u8], &str); 4] = [
            (b"\x17\x08\x44tracing6\0\0", "trace-cmd report"),
            (b"PERFILE2\x68\0\0", "perf script"),
            (b"some text\0more", "offset 9"),
            (&[0xff, 0xd8, 0xe0, 0x90, 0x10, 0x11, 0xfe], "not text"),
        ];
        for (bytes, part) in cases {
            let file = Scratch::new("binary", bytes);
            let Err(TraceError::NotATrace { found, .. }) = read(&file.0) else {
                panic!("{bytes:?} was taken for text")
            };
            assert!(found.contains(part), "{found}");
        }
    }

    #[test]
    fn a_command_name_in_latin_1_is_still_text() {
        let file = Scratch::new("latin", b"         m\xfcller-1       [000] d..1.     6.959087: kvm_entry: vcpu 0\n");
        assert!(read_trace(&file.0).is_ok());
    }

    #[test]
    fn text_without_a_trace_line_is_refused_with_its_first_line() {
        let file = Scratch::new("prose", b"\nDear kernel,\nplease\n");
        let Err(TraceError::NotATrace { found, .. }) = read_trace(&file.0) else { panic!("taken for a trace") };
        assert!(found.contains("\"Dear kernel,\""), "{found}");
        assert!(read(&file.0).is_ok());
        let header = Scratch::new("header", b"# tracer: nop\n#\n# entries-in-buffer/entries-written: 0/0   #P:2\n");
        assert!(read_trace(&header.0).is_ok());
    }
}
