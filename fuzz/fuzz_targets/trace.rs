//! Bytes that may be a trace, of any format: read to the end or to an error that names the line.
#![no_main]

use std::io::Cursor;

use gpufeed_workloads::trace::{Options, Trace, records_from};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok((format, records)) = records_from("trace", Cursor::new(bytes.to_vec()), &Options::default(), None) else {
        return;
    };
    if let Ok(trace) = Trace::from_records(format, records, None) {
        for request in trace.requests() {
            let _ = (trace.blocks(request), trace.parts(request));
        }
        let _ = (trace.duration(), trace.by_arrival().len(), gpufeed_workloads::trace::info(&trace, &[1, 100]));
    }
});
