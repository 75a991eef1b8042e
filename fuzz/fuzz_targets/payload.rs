//! Any bytes: they are no payload, or are read to the end or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    gen_worker_core::testing::check_payload(bytes);
});
