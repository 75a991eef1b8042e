//! Any key set, a line feed, and any token: neither is more than refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    gen_worker_auth::check_keys_and_token(bytes);
});
