//! Draws the top of a report as one SVG file, as in the README:
//!
//! ```sh
//! cargo run --release -- run quick --out DIR
//! cargo run -p gpufeed-reports --example picture -- DIR/report.json > docs/report.svg
//! ```

use std::error::Error;
use std::io::Write as _;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("name a report.json")?;
    let report = gpufeed_reports::read::report(&std::fs::read_to_string(path)?)?;
    let mut out = std::io::stdout().lock();
    gpufeed_reports::html::picture::render(&report, &mut out)?;
    out.flush()?;
    Ok(())
}
