//! Reads the text of `--target`: pure syntax, no look at the network or the disk.

use std::path::PathBuf;

use crate::exit::usage;

/// A target as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// `embedded`, `embedded:mem`, `embedded:synth`
    Embedded {
        /// `mem` or `synth`.
        store: &'static str,
    },
    /// `s3://bucket/prefix`
    S3 {
        /// Bucket.
        bucket: String,
        /// Empty, or ends with `/`.
        prefix: String,
    },
    /// `file:///dir`
    File(PathBuf),
    /// `mem:`
    Null,
}

/// Reads `text`.
///
/// # Errors
/// One sentence that lists what there is.
pub(crate) fn parse(text: &str) -> anyhow::Result<Target> {
    let unknown = || {
        usage(format!(
            "`{text}` is not a target: write embedded, embedded:synth, s3://bucket/prefix, file:///directory or mem:"
        ))
    };
    match text {
        "embedded" | "embedded:mem" => return Ok(Target::Embedded { store: "mem" }),
        "embedded:synth" => return Ok(Target::Embedded { store: "synth" }),
        "mem:" | "mem" => return Ok(Target::Null),
        _ => {}
    }
    let Some((scheme, rest)) = text.split_once("://") else { return Err(unknown()) };
    match scheme {
        "s3" => {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(usage(format!("`{text}` names no bucket: write s3://bucket/prefix")));
            }
            let prefix = prefix.trim_end_matches('/');
            let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
            Ok(Target::S3 { bucket: bucket.to_owned(), prefix })
        }
        "file" if rest.starts_with('/') => Ok(Target::File(PathBuf::from(rest))),
        "file" => Err(usage(format!("`{text}` is not an absolute directory: write file:///directory"))),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        let s3 = |bucket: &str, prefix: &str| Target::S3 { bucket: bucket.into(), prefix: prefix.into() };
        for (text, target) in [
            ("embedded", Target::Embedded { store: "mem" }),
            ("embedded:synth", Target::Embedded { store: "synth" }),
            ("s3://b", s3("b", "")),
            ("s3://b/", s3("b", "")),
            ("s3://b/x/y", s3("b", "x/y/")),
            ("s3://b/x/", s3("b", "x/")),
            ("file:///mnt/nvme", Target::File("/mnt/nvme".into())),
            ("mem:", Target::Null),
        ] {
            assert_eq!(parse(text).expect(text), target);
        }
    }

    #[test]
    fn others_are_refused_with_a_way_out() {
        for text in ["", "s3:/b", "s3://", "file://relative", "ftp://x", "embedded:tape"] {
            let error = parse(text).expect_err(text);
            assert!(error.to_string().contains("write "), "{error}");
            assert_eq!(crate::exit::of(&error), crate::exit::Exit::Usage);
        }
    }
}
