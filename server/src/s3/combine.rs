//! CRCs of joined parts from the CRCs of the parts.
//!
//! Appending n zero bits to a message multiplies its CRC by xⁿ modulo the polynomial, which is linear over GF(2); so the
//! CRC of A‖B is the CRC of A moved on by B's length, plus the CRC of B (Adler's `crc32_combine`, zlib 1.2.3). Initial
//! and final values cancel where they are equal, as in all three CRCs of S3.

/// A CRC of S3, by its reflected polynomial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crc {
    polynomial: u64,
    bits: u32,
}

/// CRC-32 (ISO-HDLC).
const CRC32: Crc = Crc { polynomial: 0xedb8_8320, bits: 32 };
/// CRC-32C (Castagnoli).
const CRC32C: Crc = Crc { polynomial: 0x82f6_3b78, bits: 32 };
/// CRC-64/NVME.
const CRC64NVME: Crc = Crc { polynomial: 0x9a6c_9329_ac4b_c9b5, bits: 64 };

impl Crc {
    /// The CRC of this name in S3.
    pub(super) fn called(algorithm: &str) -> Option<Self> {
        match algorithm {
            "CRC32" => Some(CRC32),
            "CRC32C" => Some(CRC32C),
            "CRC64NVME" => Some(CRC64NVME),
            _ => None,
        }
    }

    /// Bytes of a value.
    pub(super) fn bytes(self) -> usize {
        self.bits as usize / 8
    }

    /// a·b modulo the polynomial; the highest bit is the coefficient of x⁰.
    fn multiply(self, a: u64, mut b: u64) -> u64 {
        let top = 1u64 << (self.bits - 1);
        let mut product = 0;
        for i in 0..self.bits {
            if a & (top >> i) != 0 {
                product ^= b;
            }
            b = (b >> 1) ^ if b & 1 == 1 { self.polynomial } else { 0 };
        }
        product
    }

    /// x to the number of bits in `bytes` bytes, modulo the polynomial.
    fn power(self, bytes: u64) -> u64 {
        let one = 1u64 << (self.bits - 1);
        // x⁸, then squared once per bit of the length.
        let mut square = one >> 8;
        let mut power = one;
        let mut left = bytes;
        while left > 0 {
            if left & 1 == 1 {
                power = self.multiply(power, square);
            }
            square = self.multiply(square, square);
            left >>= 1;
        }
        power
    }

    /// The CRC of A‖B, where B is `len_b` bytes.
    pub(super) fn combine(self, a: u64, b: u64, len_b: u64) -> u64 {
        self.multiply(self.power(len_b), a) ^ b
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use s3s::crypto::{Checksum, Crc32, Crc32c, Crc64Nvme};

    use super::*;

    fn value(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    proptest! {
        #[test]
        fn joined_parts_have_the_crc_of_the_whole(
            a in prop::collection::vec(any::<u8>(), 0..3000), b in prop::collection::vec(any::<u8>(), 0..3000)
        ) {
            let whole = [a.clone(), b.clone()].concat();
            let len = b.len() as u64;
            let crc32 = CRC32.combine(value(&Crc32::checksum(&a)), value(&Crc32::checksum(&b)), len);
            prop_assert_eq!(crc32, value(&Crc32::checksum(&whole)));
            let crc32c = CRC32C.combine(value(&Crc32c::checksum(&a)), value(&Crc32c::checksum(&b)), len);
            prop_assert_eq!(crc32c, value(&Crc32c::checksum(&whole)));
            let nvme = CRC64NVME.combine(value(&Crc64Nvme::checksum(&a)), value(&Crc64Nvme::checksum(&b)), len);
            prop_assert_eq!(nvme, value(&Crc64Nvme::checksum(&whole)));
        }
    }
}
