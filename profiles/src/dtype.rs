//! Number formats of weights and KV caches.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floating point.
    Fp32,
    /// 16-bit brain floating point.
    #[default]
    #[serde(alias = "bfloat16")]
    Bf16,
    /// 16-bit floating point.
    #[serde(alias = "float16")]
    Fp16,
    /// 8-bit floating point.
    Fp8,
    /// 8-bit integers.
    Int8,
    /// 4-bit floating point with a scale of eight bits for every 32 numbers (OCP microscaling formats, v1.0 §5).
    Mxfp4,
}

impl Dtype {
    /// Every format, widest first.
    pub const ALL: [Self; 6] = [Self::Fp32, Self::Bf16, Self::Fp16, Self::Fp8, Self::Int8, Self::Mxfp4];

    /// Bytes of a number, its share of the scales included.
    #[must_use]
    pub const fn bytes(self) -> f64 {
        match self {
            Self::Fp32 => 4.0,
            Self::Bf16 | Self::Fp16 => 2.0,
            Self::Fp8 | Self::Int8 => 1.0,
            Self::Mxfp4 => 4.25 / 8.0,
        }
    }

    /// The name used in profiles and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Mxfp4 => "mxfp4",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text that names no number format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no number format is called `{0}`; use fp32, bf16, fp16, fp8, int8 or mxfp4")]
pub struct DtypeError(String);

impl FromStr for Dtype {
    type Err = DtypeError;

    fn from_str(text: &str) -> Result<Self, DtypeError> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| DtypeError(text.to_owned()))
    }
}
