#![no_main]

use debugreg_fuzz::events::{Walk, survive};

libfuzzer_sys::fuzz_target!(|walk: Walk| drop(survive(&walk)));
