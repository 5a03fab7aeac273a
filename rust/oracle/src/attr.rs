//! `perf_event_attr`, as bytes: another process hands them to the kernel.

use debugreg_model::Attr;

/// Up to `sig_data`'s predecessors: what this driver sets ends with `bp_len` (PERF_ATTR_SIZE_VER5).
pub(crate) const SIZE: usize = 112;

const TYPE_SOFTWARE: u32 = 1;
const TYPE_BREAKPOINT: u32 = 5;
const COUNT_SW_DUMMY: u64 = 9;
const SAMPLE_TIME: u64 = 1 << 2;

fn bytes(kind: u32, words: &[(usize, u64)]) -> [u8; SIZE] {
    let mut attr = [0; SIZE];
    attr[..4].copy_from_slice(&kind.to_le_bytes());
    attr[4..8].copy_from_slice(&(SIZE as u32).to_le_bytes());
    for &(at, word) in words {
        attr[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    attr
}

/// A breakpoint; `sampling` gives every hit a time stamp.
pub(crate) fn breakpoint(attr: &Attr, sampling: bool) -> [u8; SIZE] {
    let flags = [
        (0, attr.disabled),
        (1, attr.inherit),
        (2, attr.pinned),
        (4, attr.exclude_user),
        (5, attr.exclude_kernel),
        (35, attr.inherit_thread),
        (36, attr.remove_on_exec),
        (37, attr.sigtrap),
    ];
    let flags = flags.into_iter().fold(0, |flags, (bit, set)| flags | u64::from(set) << bit);
    // A signal is sent when a sample is due: with every hit.
    let period = u64::from(sampling || attr.sigtrap);
    let sample = if sampling { SAMPLE_TIME } else { 0 };
    let bp_type = (attr.bp_type as u64) << 32; // behind wakeup_events
    bytes(
        TYPE_BREAKPOINT,
        &[(16, period), (24, sample), (40, flags), (48, bp_type), (56, attr.bp_addr), (64, attr.bp_len)],
    )
}

/// An event that counts nothing.
pub(crate) fn dummy() -> [u8; SIZE] {
    bytes(TYPE_SOFTWARE, &[(8, COUNT_SW_DUMMY)])
}
