//! HTML, CSV, plots and tables: pure renderers of a report.
