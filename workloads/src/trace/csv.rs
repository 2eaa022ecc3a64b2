//! Tables of arrivals and token counts: Azure 2023 and BurstGPT.

use std::io::BufRead;
use std::sync::Arc;

use csv::{Reader, ReaderBuilder, StringRecord, Trim};
use jiff::civil::DateTime;

use super::jsonl::{S, decimal};
use super::{Format, Record, TraceError};

/// Which columns a table has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns {
    time: &'static str,
    input: &'static str,
    output: &'static str,
    session: Option<&'static str>,
    stamp_ns: fn(&str) -> Option<i64>,
}

impl Columns {
    /// Azure LLM inference traces.
    pub(super) const AZURE: Self = Self {
        time: "TIMESTAMP",
        input: "ContextTokens",
        output: "GeneratedTokens",
        session: None,
        stamp_ns: calendar_ns,
    };

    /// BurstGPT.
    pub(super) const BURSTGPT: Self = Self {
        time: "Timestamp",
        input: "Request tokens",
        output: "Response tokens",
        session: Some("Session ID"),
        stamp_ns: |text| decimal(text, S),
    };
}

/// Nanoseconds since 1970 of a UTC date and time such as `2023-11-16 18:17:03.9799600`, with or without `+00:00`.
fn calendar_ns(text: &str) -> Option<i64> {
    let text = text.strip_suffix("+00:00").or_else(|| text.strip_suffix('Z')).unwrap_or(text);
    let at: DateTime = text.parse().ok()?;
    i64::try_from(at.duration_since(jiff::civil::date(1970, 1, 1).at(0, 0, 0, 0)).as_nanos()).ok()
}

/// The format of a table with this header.
pub(super) fn detect(header: &[u8]) -> Option<Format> {
    let header = str::from_utf8(header).ok()?;
    let has = |name: &str| header.split(',').any(|column| column.trim().trim_matches('"') == name);
    let fits = |columns: &Columns| has(columns.time) && has(columns.input) && has(columns.output);
    [(Columns::AZURE, Format::Azure), (Columns::BURSTGPT, Format::Burstgpt)]
        .into_iter()
        .find_map(|(columns, format)| fits(&columns).then_some(format))
}

/// Places of the columns in this table.
struct Places {
    time: usize,
    input: usize,
    output: usize,
    session: Option<usize>,
}

/// Parses each row; an error names file and line, after which there is nothing more.
pub(super) struct Rows<R> {
    file: Arc<str>,
    table: Reader<R>,
    columns: Columns,
    places: Option<Places>,
    row: StringRecord,
    over: bool,
}

impl<R: BufRead> Rows<R> {
    pub(super) fn new(file: Arc<str>, input: R, columns: Columns) -> Self {
        let table = ReaderBuilder::new().has_headers(false).trim(Trim::All).flexible(true).from_reader(input);
        Self { file, table, columns, places: None, row: StringRecord::new(), over: false }
    }

    fn error(&self, line: u64, what: String) -> TraceError {
        TraceError::Line { file: self.file.to_string(), line, what }
    }

    fn read_error(&self, error: csv::Error) -> TraceError {
        let line = error.position().map_or_else(|| self.table.position().line(), csv::Position::line);
        match error.into_kind() {
            csv::ErrorKind::Io(source) => TraceError::Read { file: self.file.to_string(), line, source },
            csv::ErrorKind::Utf8 { err, .. } => self.error(line, err.to_string()),
            other => self.error(line, format!("it is no row of a table ({other:?})")),
        }
    }

    /// Reads the next row that is not blank; whether there was one.
    fn read_row(&mut self) -> Result<bool, TraceError> {
        loop {
            match self.table.read_record(&mut self.row) {
                Err(error) => return Err(self.read_error(error)),
                Ok(true) if self.row.iter().all(str::is_empty) => {}
                Ok(read) => return Ok(read),
            }
        }
    }

    fn row_line(&self) -> u64 {
        self.row.position().map_or(1, csv::Position::line)
    }

    fn places(&mut self) -> Result<Places, TraceError> {
        self.read_row()?;
        let place = |name: &str| self.row.iter().position(|column| column.trim_start_matches('\u{feff}') == name);
        let needed =
            |name: &str| place(name).ok_or_else(|| self.error(self.row_line(), format!("it has no column `{name}`")));
        Ok(Places {
            time: needed(self.columns.time)?,
            input: needed(self.columns.input)?,
            output: needed(self.columns.output)?,
            session: self.columns.session.and_then(place),
        })
    }

    fn parse(&self, places: &Places) -> Result<Record, String> {
        let field = |place: usize, name: &str| self.row.get(place).ok_or_else(|| format!("it has no {name}"));
        let tokens = |place, name: &str| -> Result<u32, String> {
            let text = field(place, name)?;
            text.parse().map_err(|_| format!("{name} `{text}` is not a number of tokens"))
        };
        let time = field(places.time, self.columns.time)?;
        let stamp = (self.columns.stamp_ns)(time).ok_or_else(|| format!("time `{time}` is not one"))?;
        let session = places.session.and_then(|place| self.row.get(place)).filter(|name| !name.is_empty());
        Ok(Record {
            stamp_ns: Some(stamp),
            input_tokens: tokens(places.input, self.columns.input)?,
            output_tokens: tokens(places.output, self.columns.output)?,
            session: session.map(Into::into),
            ..Record::default()
        })
    }

    fn advance(&mut self) -> Result<Option<Record>, TraceError> {
        let places = match self.places.take() {
            Some(places) => places,
            None => self.places()?,
        };
        if !self.read_row()? {
            return Ok(None);
        }
        let record = self.parse(&places).map_err(|what| self.error(self.row_line(), what))?;
        self.places = Some(places);
        Ok(Some(record))
    }
}

impl<R: BufRead> Iterator for Rows<R> {
    type Item = Result<Record, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.advance().transpose();
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}
