//! Any text as `output_upload`: it is refused in words without its secrets, or is a place.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    gen_worker_upload::check_output_upload(text);
});
