//! HTML, CSV, plots and tables: pure renderers of a report.
//!
//! Everything here is a function of a [`gpufeed_schema::RunReport`]; nothing reads a clock, a file or the environment.

pub mod claims;
pub mod csv;
mod figures;
pub mod html;
mod kv;
pub mod markdown;
pub mod read;
pub mod search;
pub mod terminal;
pub mod validity;
pub mod verdict;
