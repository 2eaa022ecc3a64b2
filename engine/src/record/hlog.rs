//! The standard HdrHistogram interval log (version 1.3, V2 deflated histograms), one tag per operation and clock.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};

use crate::record::histogram::{empty, merge};

/// A log being written.
pub(crate) struct IntervalLog {
    to: BufWriter<File>,
    serializer: V2DeflateSerializer,
    packed: Vec<u8>,
    text: String,
}

/// Nanoseconds per unit of the log's `Interval_Max` column, which people read: milliseconds.
const MAX_DIVISOR: f64 = 1e6;

impl IntervalLog {
    /// Starts a log whose times are seconds since `start`.
    pub(crate) fn create(path: &Path, start: SystemTime) -> io::Result<Self> {
        let mut to = BufWriter::new(File::create(path)?);
        let start = start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        writeln!(to, "#[Logged with gpufeed {}; histograms are in nanoseconds]", env!("CARGO_PKG_VERSION"))?;
        writeln!(to, "#[Histogram log format version 1.3]")?;
        writeln!(to, "#[StartTime: {start:.3} (seconds since epoch)]")?;
        writeln!(to, "#[BaseTime: {start:.3} (seconds since epoch)]")?;
        writeln!(to, "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"")?;
        Ok(Self { to, serializer: V2DeflateSerializer::new(), packed: Vec::new(), text: String::new() })
    }

    /// Writes one interval; an empty histogram is not worth a line.
    pub(crate) fn write(
        &mut self,
        tag: &str,
        start: Duration,
        length: Duration,
        histogram: &Histogram<u64>,
    ) -> io::Result<()> {
        if histogram.is_empty() {
            return Ok(());
        }
        self.packed.clear();
        self.serializer.serialize(histogram, &mut self.packed).map_err(io::Error::other)?;
        self.text.clear();
        STANDARD.encode_string(&self.packed, &mut self.text);
        let (start, length) = (start.as_secs_f64(), length.as_secs_f64());
        let max = histogram.max() as f64 / MAX_DIVISOR;
        writeln!(self.to, "Tag={tag},{start:.3},{length:.3},{max:.3},{}", self.text)
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Every interval of a log with its tag, in nanoseconds.
///
/// # Errors
/// When the file cannot be read or is no interval log.
pub fn read(path: &Path) -> io::Result<Vec<(String, Histogram<u64>)>> {
    let text = std::fs::read(path)?;
    let wrong = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut all = Vec::new();
    let mut deserializer = Deserializer::new();
    for entry in IntervalLogIterator::new(&text) {
        let entry = entry.map_err(|error| wrong(format!("{error:?}")))?;
        let LogEntry::Interval(interval) = entry else { continue };
        let tag = interval.tag().map(|tag| tag.as_str().to_owned()).unwrap_or_default();
        let packed = STANDARD.decode(interval.encoded_histogram()).map_err(|error| wrong(format!("{tag}: {error}")))?;
        let histogram =
            deserializer.deserialize(&mut &packed[..]).map_err(|error| wrong(format!("{tag}: {error:?}")))?;
        all.push((tag, histogram));
    }
    Ok(all)
}

/// All intervals of some tags as one histogram.
#[must_use]
pub fn merged(intervals: &[(String, Histogram<u64>)], wanted: impl Fn(&str) -> bool) -> Histogram<u64> {
    let mut all = empty();
    intervals.iter().filter(|(tag, _)| wanted(tag)).for_each(|(_, histogram)| merge(&mut all, histogram));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standard_reader_reads_back_every_histogram() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("latency.hlog");
        let start = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
        let mut log = IntervalLog::create(&path, start).expect("create");
        let mut written = Vec::new();
        for second in 0..3u64 {
            let mut histogram = empty();
            (1..=1000).for_each(|i| histogram.saturating_record(i * 1000 * (second + 1)));
            log.write("get-response", Duration::from_secs(second), Duration::from_secs(1), &histogram).expect("write");
            written.push(histogram);
        }
        log.write("get-response", Duration::from_secs(9), Duration::from_secs(1), &empty()).expect("write");
        log.finish().expect("flush");

        let text = std::fs::read(&path).expect("read");
        let mut read = Vec::new();
        for entry in IntervalLogIterator::new(&text) {
            match entry.expect("parses") {
                LogEntry::StartTime(time) | LogEntry::BaseTime(time) => {
                    assert_eq!(time, Duration::from_millis(1_700_000_000_500));
                }
                LogEntry::Interval(interval) => {
                    assert_eq!(interval.tag().map(|tag| tag.as_str().to_owned()), Some("get-response".to_owned()));
                    assert_eq!(interval.start_timestamp(), Duration::from_secs(read.len() as u64));
                    let packed = STANDARD.decode(interval.encoded_histogram()).expect("base64");
                    let histogram: Histogram<u64> =
                        Deserializer::new().deserialize(&mut &packed[..]).expect("histogram");
                    read.push(histogram);
                }
            }
        }
        assert_eq!(read, written);

        let again = super::read(&path).expect("reads");
        assert!(again.iter().all(|(tag, _)| tag == "get-response"));
        assert_eq!(again.iter().map(|(_, histogram)| histogram.clone()).collect::<Vec<_>>(), written);
        let all = merged(&again, |tag| tag.starts_with("get"));
        assert_eq!((all.len(), all.min()), (3000, 1000));
        std::fs::write(&path, "no log at all").expect("written");
        assert!(super::read(&path).is_err());
    }
}
