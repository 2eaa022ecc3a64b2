//! The table of intervals: one row per interval and operation.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use gpufeed_schema::Latency;
use serde::Serialize;

use super::histogram::Samples;
use super::{Slot, Way};
use crate::watch::Phase;

/// A table being written.
pub(crate) struct Intervals {
    to: csv::Writer<File>,
}

/// Rates are by completion within the interval; latencies are of the operations recorded in it whose intended start
/// lies in the measured window. The drain's row has latencies only.
#[derive(Serialize)]
struct Row {
    phase: &'static str,
    t_s: f64,
    length_s: f64,
    op: &'static str,
    carrier: &'static str,
    second_target: bool,
    ops: u64,
    bytes: u64,
    errors: u64,
    response_p50_ns: Option<u64>,
    response_p99_ns: Option<u64>,
    response_max_ns: Option<u64>,
    service_p50_ns: Option<u64>,
    service_p99_ns: Option<u64>,
    service_max_ns: Option<u64>,
}

impl Intervals {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { to: csv::Writer::from_path(path).map_err(io::Error::other)? })
    }

    pub(crate) fn write(
        &mut self,
        phase: Phase,
        start: Duration,
        length: Duration,
        way: Way,
        slot: &Slot,
    ) -> io::Result<()> {
        let response = Latency::of(&Samples(&slot.response));
        let service = Latency::of(&Samples(&slot.service));
        let row = Row {
            phase: if phase == Phase::Drain { "drain" } else { "measure" },
            t_s: start.as_secs_f64(),
            length_s: length.as_secs_f64(),
            op: way.verb.name(),
            carrier: way.carrier.name(),
            second_target: way.second,
            ops: slot.completed,
            bytes: slot.completed_bytes,
            errors: slot.errors.iter().sum(),
            response_p50_ns: response.p50_ns,
            response_p99_ns: response.p99_ns,
            response_max_ns: response.max_ns,
            service_p50_ns: service.p50_ns,
            service_p99_ns: service.p99_ns,
            service_max_ns: service.max_ns,
        };
        self.to.serialize(row).map_err(io::Error::other)
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.to.flush()
    }
}
