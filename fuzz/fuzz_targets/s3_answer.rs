//! Any answer of a store: it names an error in one word, or none.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    gen_worker_upload::check_answer(text);
});
