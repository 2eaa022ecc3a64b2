//! Text that may be a report: read, and rendered in every form.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(report) = gpufeed_reports::read::report(text) {
        gpufeed_reports::html::render(&report, &mut std::io::sink()).expect("a sink takes all");
        let _ = gpufeed_reports::markdown::render(&report);
        gpufeed_reports::csv::render(&report, &mut std::io::sink()).expect("a sink takes all");
        let _ = gpufeed_reports::terminal::render(&report, gpufeed_reports::terminal::Style::default());
        let _ = gpufeed_reports::verdict::sentence(&report);
    }
});
