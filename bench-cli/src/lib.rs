//! Arguments to plan to run.
