//! Seeded randomness that stays the same across versions and platforms: streams, quantiles, permutations.
//!
//! Plans are reproduced and hashed, so the generator is fixed here and not taken from a library that may change it.

use rand::RngCore;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection that passes as random.
#[must_use]
pub const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(GOLDEN);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Hashes two words into one; order matters.
#[must_use]
pub const fn mix2(a: u64, b: u64) -> u64 {
    mix(mix(a) ^ b)
}

/// The upper 53 bits of a random word as a number in [0, 1).
#[must_use]
pub const fn unit(word: u64) -> f64 {
    (word >> 11) as f64 / (1u64 << 53) as f64
}

/// One stream of SplitMix64. Streams of one seed are independent of each other.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Stream number `stream` of `seed`.
    #[must_use]
    pub const fn stream(seed: u64, stream: u64) -> Self {
        Self { state: mix2(seed, stream) }
    }

    /// The next random word.
    pub const fn word(&mut self) -> u64 {
        let word = mix(self.state);
        self.state = self.state.wrapping_add(GOLDEN);
        word
    }

    /// A number in [0, 1).
    pub const fn unit(&mut self) -> f64 {
        unit(self.word())
    }

    /// A whole number in `0..n`, zero for `n` of zero. Its bias is under n / 2⁶⁴ (Lemire 2019, without rejection).
    pub const fn below(&mut self, n: u64) -> u64 {
        ((self.word() as u128 * n as u128) >> 64) as u64
    }

    /// An exponential variate of mean one.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }
}

impl RngCore for Random {
    fn next_u32(&mut self) -> u32 {
        (self.word() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.word()
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Quantile of the standard normal distribution at `p` in (0, 1), to 1.2e-9 relative (P. J. Acklam, "An algorithm for
/// computing the inverse normal cumulative distribution function", 2003).
#[must_use]
pub fn normal_quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 5] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
    ];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 4] =
        [7.784_695_709_041_462e-3, 3.224_671_290_700_398e-1, 2.445_134_137_142_996, 3.754_408_661_907_416];
    let horner = |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    let tail = |p: f64| {
        let q = (-2.0 * p.ln()).sqrt();
        horner(&C, q) / (horner(&D, q) * q + 1.0)
    };
    let p = p.clamp(f64::MIN_POSITIVE, 1.0 - f64::EPSILON / 2.0);
    if p < 0.02425 {
        tail(p)
    } else if p > 1.0 - 0.02425 {
        -tail(1.0 - p)
    } else {
        let q = p - 0.5;
        let r = q * q;
        horner(&A, r) * q / (horner(&B, r) * r + 1.0)
    }
}

/// A permutation of `0..n` without a table: an alternating Feistel network over the least power of two that holds `n`,
/// walked until it falls below `n` (Black and Rogaway 2002). Any position costs the same, whatever `n`.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    n: u64,
    key: u64,
    low_bits: u32,
    low_mask: u64,
    high_mask: u64,
}

impl Permutation {
    /// The permutation of `0..n` that `key` stands for.
    #[must_use]
    pub const fn new(n: u64, key: u64) -> Self {
        let bits = if n < 2 { 0 } else { 64 - (n - 1).leading_zeros() };
        let low_bits = bits - bits / 2;
        Self { n, key, low_bits, low_mask: (1 << low_bits) - 1, high_mask: (1 << (bits / 2)) - 1 }
    }

    /// Where position `i` goes.
    ///
    /// # Panics
    /// When `i` is not below `n`.
    #[must_use]
    pub const fn at(&self, i: u64) -> u64 {
        assert!(i < self.n, "position beyond the permutation");
        let mut x = i;
        loop {
            let (mut high, mut low) = (x >> self.low_bits, x & self.low_mask);
            let mut round = 0;
            while round < 3 {
                high ^= mix(self.key ^ (low << 3) ^ round) & self.high_mask;
                low ^= (mix(self.key ^ (high << 3) ^ round ^ 4) >> 32) & self.low_mask;
                round += 1;
            }
            x = high << self.low_bits | low;
            if x < self.n {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normal_quantiles_are_those_of_the_tables() {
        for (p, z) in [(0.5, 0.0), (0.975, 1.959_963_985), (0.001, -3.090_232_306), (0.841_344_746, 1.0)] {
            assert!((normal_quantile(p) - z).abs() < 1e-8, "{p}");
        }
        assert!(normal_quantile(0.0).is_finite() && normal_quantile(1.0).is_finite());
    }

    #[test]
    fn streams_are_uniform_and_differ() {
        let mut random = Random::stream(1, 2);
        let mut counts = [0u32; 10];
        for _ in 0..100_000 {
            counts[random.below(10) as usize] += 1;
        }
        // Chi-square with 9 degrees of freedom stays under 27.9 with p = 0.999.
        let chi: f64 = counts.iter().map(|&c| (f64::from(c) - 1e4).powi(2) / 1e4).sum();
        assert!(chi < 27.9, "{chi}");
        assert_ne!(Random::stream(1, 3).word(), Random::stream(1, 2).word());
    }

    #[test]
    fn permutations_spread_every_position_evenly() {
        // Position 0 of 8 under 8,000 keys: each image about 1,000 times (7 degrees of freedom, p = 0.999 at 24.3).
        let mut counts = [0u32; 8];
        for key in 0..8000 {
            counts[Permutation::new(8, mix(key)).at(0) as usize] += 1;
        }
        let chi: f64 = counts.iter().map(|&c| (f64::from(c) - 1e3).powi(2) / 1e3).sum();
        assert!(chi < 24.3, "{counts:?}");
    }

    proptest! {
        #[test]
        fn permutations_hit_every_place_once(n in 1u64..3000, key: u64) {
            let permutation = Permutation::new(n, key);
            let mut seen = vec![false; n as usize];
            for i in 0..n {
                let at = permutation.at(i) as usize;
                prop_assert!(!seen[at]);
                seen[at] = true;
            }
        }
    }
}
