//! Defaults of plain load.

use std::time::Duration;

use gpufeed_profiles::units::Bytes;
use gpufeed_workloads::op::Verb;
use gpufeed_workloads::ops::{Mix, OpsSpec, SizeSpec};
use gpufeed_workloads::schedule::{Arrivals, Load};

use super::{apply, bounded_by_work, own_settings, prefix, timed};
use crate::args::{ArrivalsArg, OpsArgs};
use crate::exit::{OrUsage, usage};
use crate::plan::{MemberPlan, SpecPlan, TargetPlan};

const DURATION: Duration = Duration::from_secs(30);
/// Operations an open loop may have in flight unless told otherwise.
const OPEN_CLIENTS: u32 = 64;
/// Most bytes the set has unless told otherwise.
const SET_BYTES: u64 = 1 << 30;

/// One member for each combination of size and depth.
pub(super) fn members(args: &OpsArgs, target: &TargetPlan) -> anyhow::Result<Vec<MemberPlan>> {
    let (own, others) = own_settings(&args.shared.set, "ops");
    if let Some(other) = others.first() {
        return Err(usage(format!("--set {other}: `run ops` takes ops.key=value only")));
    }
    let mix: Mix = args.op.parse().or_usage()?;
    let sizes = split_outside(&args.size);
    let depths = args.depth.clone().unwrap_or_else(|| vec![if args.rate.is_some() { OPEN_CLIENTS } else { 16 }]);
    let sweep = sizes.len() * depths.len() > 1;
    let mut members = Vec::new();
    for size in &sizes {
        for &depth in &depths {
            let sizes: SizeSpec = size.parse().or_usage()?;
            let load = match args.rate {
                None => Load::Closed { depth },
                Some(rate_per_s) => {
                    let arrivals = match args.arrivals {
                        ArrivalsArg::Constant => Arrivals::Constant,
                        ArrivalsArg::Poisson => Arrivals::Poisson,
                    };
                    Load::Open { rate_per_s, arrivals, clients: depth }
                }
            };
            let name = if sweep { format!("ops-{}-x{depth}", plain(size)) } else { "ops".to_owned() };
            let most = sizes.most().max(1);
            let objects = args.objects.unwrap_or_else(|| (SET_BYTES / most).clamp(u64::from(depth).max(16), 1000));
            // Only deletes: a delete takes an object for good, so the set must last for the run.
            let only_deletes = mix == Mix::only(Verb::Delete) && args.objects.is_none();
            let objects = if only_deletes { args.count.unwrap_or(100_000) } else { objects };
            let spec = OpsSpec {
                sizes,
                objects,
                popularity: args.popularity.parse().or_usage()?,
                range_bytes: args.range_size,
                part_bytes: if args.part_size == Bytes(0) {
                    return Err(usage("--part-size 0 makes no parts: S3 wants at least 5MiB"));
                } else {
                    args.part_size
                },
                count: args.count,
                prefix: prefix(target, &name),
                seed: args.shared.seed,
                load,
                ..OpsSpec::new(mix)
            };
            let spec = apply(spec, "ops", &own)?;
            spec.check().or_usage()?;
            members.push(match spec.count {
                Some(_) => bounded_by_work(&args.shared, &name, SpecPlan::Ops(spec)),
                None => timed(&args.shared, &name, DURATION, SpecPlan::Ops(spec)),
            });
        }
    }
    Ok(members)
}

/// A size as part of a name.
fn plain(size: &str) -> String {
    size.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// Splits at commas outside parentheses.
fn split_outside(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_a_sweep_outside_parentheses() {
        assert_eq!(split_outside("4KiB"), ["4KiB"]);
        assert_eq!(split_outside("4KiB, 1MiB"), ["4KiB", "1MiB"]);
        assert_eq!(split_outside("uniform(1KiB,2KiB),4KiB"), ["uniform(1KiB,2KiB)", "4KiB"]);
    }
}
