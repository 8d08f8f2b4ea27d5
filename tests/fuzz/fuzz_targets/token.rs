#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lb_tests::fuzz::token::check(bytes));
