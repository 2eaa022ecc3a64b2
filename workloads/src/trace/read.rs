//! Opens trace files, tells their format by content, and yields records one by one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::jsonl::{self, Lines};
use super::{Component, Format, Record, csv, weka};

/// Longest line taken: well over a prompt of ten million tokens in 16-token blocks.
pub(super) const LINE_BYTES_MAX: u64 = 64 << 20;

/// Bytes read to tell a format by.
const DETECT_BYTES: u64 = 1 << 20;

/// Why a trace could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file or folder does not open.
    #[error("cannot open trace {file}")]
    Open {
        /// Which.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// Reading stopped.
    #[error("cannot read line {line} of trace {file}")]
    Read {
        /// Which file.
        file: String,
        /// Which line, from one.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// A line is not what its format says.
    #[error("line {line} of trace {file} is malformed: {what}")]
    Line {
        /// Which file.
        file: String,
        /// Which line, from one.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The content is that of no known format.
    #[error(
        "cannot tell the format of trace {file}: it must be one of mooncake, bailian, ragpulse, weka, azure, burstgpt \
         or aiperf"
    )]
    Unknown {
        /// Which file.
        file: String,
    },
    /// The file or folder has no requests.
    #[error("trace {file} holds no requests")]
    Empty {
        /// Which.
        file: String,
    },
}

/// How to read a trace.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Its format; told by content where none is given.
    pub format: Option<Format>,
    /// Tokens of a block, against what the file or its format says.
    pub block_tokens: Option<u32>,
}

/// Records of a trace, read as they are asked for.
pub type Records = Box<dyn Iterator<Item = Result<Record, TraceError>>>;

/// Token lengths of parts, by component and id.
pub(super) type PartTokens = FxHashMap<(Component, u64), u32>;

/// Opens a trace file, or a folder of WEKA conversations or of RAGPulse's files.
///
/// # Errors
/// When nothing can be opened or the format cannot be told.
pub fn records(path: &Path, options: &Options) -> Result<(Format, Records), TraceError> {
    let shown = path.display().to_string();
    let opening = |source| TraceError::Open { file: shown.clone(), source };
    if !path.is_dir() {
        let file = File::open(path).map_err(opening)?;
        return records_from(&shown, BufReader::with_capacity(1 << 18, file), options, path.parent());
    }
    let mut names = Vec::new();
    for entry in path.read_dir().map_err(opening)? {
        names.push(entry.map_err(opening)?.path());
    }
    names.sort();
    if let Some(trace) = names.iter().find(|name| name.file_name().is_some_and(|name| name == "0_trace.jsonl")) {
        return records(trace, options);
    }
    names.retain(|name| name.extension().is_some_and(|extension| extension == "json"));
    if names.is_empty() {
        return Err(TraceError::Empty { file: shown });
    }
    Ok((Format::Weka, Box::new(weka::Conversations::new(names.into_iter().map(open_conversation)))))
}

fn open_conversation(path: PathBuf) -> Result<(Arc<str>, Box<dyn BufRead>), TraceError> {
    let file: Arc<str> = path.display().to_string().into();
    match File::open(&path) {
        Ok(open) => Ok((file, Box::new(BufReader::new(open)))),
        Err(source) => Err(TraceError::Open { file: file.to_string(), source }),
    }
}

/// Records of `input`, which errors call `file`; RAGPulse's token lengths are looked for in `folder`.
///
/// # Errors
/// When the format cannot be told, or RAGPulse's token lengths are missing or malformed.
pub fn records_from(
    file: &str,
    mut input: impl BufRead + 'static,
    options: &Options,
    folder: Option<&Path>,
) -> Result<(Format, Records), TraceError> {
    let name: Arc<str> = file.into();
    let reading = |source| TraceError::Read { file: file.to_owned(), line: 1, source };
    // The first line that is not blank tells the format; what was read of it is read again.
    let mut head = Vec::new();
    let mut start = 0;
    while head.len() < DETECT_BYTES as usize {
        start = head.len();
        let read = input.by_ref().take(DETECT_BYTES).read_until(b'\n', &mut head).map_err(reading)?;
        if read == 0 || !head[start..].trim_ascii().is_empty() {
            break;
        }
    }
    let first = head[start..].trim_ascii();
    let first = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(first);
    if first.is_empty() && options.format.is_none() {
        return Err(TraceError::Empty { file: file.to_owned() });
    }
    let format = options
        .format
        .or_else(|| csv::detect(first))
        .or_else(|| jsonl::detect(first))
        .ok_or_else(|| TraceError::Unknown { file: file.to_owned() })?;
    let input = Cursor::new(head).chain(input);
    let records: Records = match format {
        Format::Mooncake | Format::Aiperf => Box::new(Lines::new(name, input, jsonl::mooncake)),
        Format::Bailian => Box::new(Lines::new(name, input, jsonl::bailian)),
        Format::Ragpulse => {
            let tokens = match folder {
                Some(folder) => part_tokens(folder)?,
                None => PartTokens::default(),
            };
            Box::new(Lines::new(name, input, move |line: &[u8]| jsonl::ragpulse(line, &tokens)))
        }
        Format::Weka => {
            let one: (Arc<str>, Box<dyn BufRead>) = (name, Box::new(input));
            Box::new(weka::Conversations::new(std::iter::once(Ok(one))))
        }
        Format::Azure => Box::new(csv::Rows::new(name, input, csv::Columns::AZURE)),
        Format::Burstgpt => Box::new(csv::Rows::new(name, input, csv::Columns::BURSTGPT)),
    };
    Ok((format, records))
}

/// Reads RAGPulse's component files: the numbered ones beside the trace.
fn part_tokens(folder: &Path) -> Result<PartTokens, TraceError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut tokens = PartTokens::default();
    let names =
        ["1_sys_prompt.jsonl", "2_passages.jsonl", "3_history.jsonl", "4_user_input.jsonl", "5_web_search.jsonl"];
    for name in names {
        let path = folder.join(name);
        let shown = path.display().to_string();
        let file = match File::open(&path) {
            Ok(file) => file,
            // The line that needs a missing length says so.
            Err(source) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(TraceError::Open { file: shown, source }),
        };
        for entry in Lines::new(shown.into(), BufReader::new(file), jsonl::part_length) {
            let (component, id, length) = entry?;
            tokens.insert((component, id), length);
        }
    }
    Ok(tokens)
}
