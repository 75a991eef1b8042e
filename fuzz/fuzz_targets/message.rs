//! Any bytes on the stream: they are no message, or a command, or ignored.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    gen_worker_runtime::check_message(bytes);
});
