//! Any text: a secret in the midst of it is not shown.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    gen_worker_core::testing::check_redacted(text);
});
