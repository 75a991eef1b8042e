//! Any text: it is read, and each mistake has a place in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    gen_worker::__command::check_cozy_toml(text);
});
