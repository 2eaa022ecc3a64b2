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
    /// `kv://host:port/bucket/prefix`
    Kv {
        /// `host:port`.
        address: String,
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

/// The bucket of an embedded target, of a server that is told of none, and of a KV target that names none.
pub(crate) const DEFAULT_BUCKET: &str = "gpufeed";

/// Bucket and prefix of `bucket/prefix`.
fn place(text: &str) -> (&str, String) {
    let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
    let prefix = prefix.trim_end_matches('/');
    (bucket, if prefix.is_empty() { String::new() } else { format!("{prefix}/") })
}

/// Reads `text`.
///
/// # Errors
/// One sentence that lists what there is.
pub(crate) fn parse(text: &str) -> anyhow::Result<Target> {
    let unknown = || {
        usage(format!(
            "`{text}` is not a target: write embedded, embedded:synth, s3://bucket/prefix, kv://host:9900/bucket, file:///directory or mem:"
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
            let (bucket, prefix) = place(rest);
            if bucket.is_empty() {
                return Err(usage(format!("`{text}` names no bucket: write s3://bucket/prefix")));
            }
            Ok(Target::S3 { bucket: bucket.to_owned(), prefix })
        }
        "kv" => {
            let (host, rest) = rest.split_once('/').unwrap_or((rest, ""));
            // Of `[::1]:9900` the last colon parts the port; in `[::1]` there is none.
            let port = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map(|(_, port)| port);
            let named =
                !host.is_empty() && !host.starts_with(':') && port.is_none_or(|port| port.parse::<u16>().is_ok());
            if !named {
                return Err(usage(format!("`{text}` names no server: write kv://host:9900/bucket")));
            }
            let address = if port.is_some() { host.to_owned() } else { format!("{host}:{}", gpufeed_wire::PORT) };
            let (bucket, prefix) = place(rest);
            let bucket = if bucket.is_empty() { DEFAULT_BUCKET } else { bucket };
            Ok(Target::Kv { address, bucket: bucket.to_owned(), prefix })
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
        let kv = |address: &str, bucket: &str, prefix: &str| Target::Kv {
            address: address.into(),
            bucket: bucket.into(),
            prefix: prefix.into(),
        };
        let s3 = |bucket: &str, prefix: &str| Target::S3 { bucket: bucket.into(), prefix: prefix.into() };
        for (text, target) in [
            ("embedded", Target::Embedded { store: "mem" }),
            ("embedded:synth", Target::Embedded { store: "synth" }),
            ("s3://b", s3("b", "")),
            ("s3://b/", s3("b", "")),
            ("s3://b/x/y", s3("b", "x/y/")),
            ("s3://b/x/", s3("b", "x/")),
            ("kv://host:9901/b/x", kv("host:9901", "b", "x/")),
            ("kv://host", kv("host:9900", "gpufeed", "")),
            ("kv://[::1]/b", kv("[::1]:9900", "b", "")),
            ("kv://[::1]:7", kv("[::1]:7", "gpufeed", "")),
            ("file:///mnt/nvme", Target::File("/mnt/nvme".into())),
            ("mem:", Target::Null),
        ] {
            assert_eq!(parse(text).expect(text), target);
        }
    }

    #[test]
    fn others_are_refused_with_a_way_out() {
        for text in
            ["", "s3:/b", "s3://", "file://relative", "ftp://x", "embedded:tape", "kv://", "kv://:9900", "kv://h:port"]
        {
            let error = parse(text).expect_err(text);
            assert!(error.to_string().contains("write "), "{error}");
            assert_eq!(crate::exit::of(&error), crate::exit::Exit::Usage);
        }
    }
}
