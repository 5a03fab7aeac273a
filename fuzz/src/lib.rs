//! What the fuzz targets do with what they are given. The crates' own tests use the same files
//! (`rust/model/tests/fuzz.rs`, `rust/trace/tests/fuzz.rs`), without a fuzzer.

pub mod events;
pub mod parser;
pub mod policy;
pub mod trace;
