#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| debugreg_fuzz::trace::survive(bytes));
