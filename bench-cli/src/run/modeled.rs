//! A target as a run measured it, for virtual time.

use gpufeed_engine::measured::Histograms;
use gpufeed_engine::record::histogram::{empty, merge};
use gpufeed_schema::TransferRates;
use gpufeed_workloads::op::{Op, Tick, Verb};
use gpufeed_workloads::storage::{Answer, MeasuredStorage, Storage};

/// The run's target and, where it had one, its second: a local drive beside shared storage.
#[derive(Debug)]
pub(crate) struct Targets {
    first: MeasuredStorage,
    second: MeasuredStorage,
    /// First key space of the second.
    second_from: u16,
}

impl Targets {
    /// From the first bytes that were recorded and the bandwidth of the bodies.
    pub(crate) fn measured(histograms: &[Histograms], rates: TransferRates, second_from: u16, seed: u64) -> Self {
        let of = |second: bool| {
            [Verb::Get, Verb::Put, Verb::Stat].into_iter().fold(MeasuredStorage::new(seed), |storage, verb| {
                let mut first_bytes = empty();
                let same = |recorded: &&Histograms| recorded.second == second && kind(recorded.verb) == verb;
                histograms.iter().filter(same).for_each(|recorded| merge(&mut first_bytes, &recorded.first_byte));
                storage.first_byte(verb, &first_bytes)
            })
        };
        let first = of(false).bandwidth(rates.read_bytes_per_s, rates.write_bytes_per_s);
        Self { first, second: of(true), second_from }
    }
}

/// The verb whose answers are taken for this one's.
const fn kind(verb: Verb) -> Verb {
    match verb {
        Verb::Put | Verb::Multipart => Verb::Put,
        Verb::Get => Verb::Get,
        Verb::Stat | Verb::List | Verb::Delete => Verb::Stat,
    }
}

impl Storage for Targets {
    fn admit(&mut self, op: &Op, now: Tick) -> Answer {
        let target = if op.key.space >= self.second_from { &mut self.second } else { &mut self.first };
        target.admit(op, now)
    }
}
