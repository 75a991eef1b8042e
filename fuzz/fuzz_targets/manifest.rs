//! Any bytes: they are no manifest, or all its files stay in their place.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    gen_worker_hub::check_manifest(bytes);
});
