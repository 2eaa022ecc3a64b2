//! A Range header as the server reads it: whatever it says, what is sent lies within the object.
#![no_main]

use libfuzzer_sys::fuzz_target;
use s3s::dto::Range;

fuzz_target!(|input: (u64, &str)| {
    let (len, header) = input;
    if let Ok(range) = Range::parse(header)
        && let Ok(part) = range.check(len)
    {
        assert!(part.start <= part.end && part.end <= len, "{part:?} of {len} bytes for {header:?}");
    }
});
