//! The macros, as their users meet them.
//!
//! After a message was changed on purpose: `TRYBUILD=overwrite cargo test -p gen-worker-tests --test ui`.

#[test]
fn every_form_works_and_every_mistake_is_explained() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/fail/*.rs");
}
