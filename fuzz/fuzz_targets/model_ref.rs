//! Any text: it is refused, or is a reference that means itself.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    gen_worker_core::testing::check_model_ref(text);
});
